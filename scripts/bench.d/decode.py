"""What `decode = "fast"` changes: pixels, logits, probabilities and CPU time beside `exact`, on large photos."""

import json
import math
import shutil
from urllib.parse import urlencode

from photos import import_pillow
from report import machine_table, table
from server import Server
from tools import HERE, SETUP, WORK, BenchError, link_models, median, ocelli_bench, say

# As a camera takes them: large, and less sharp from pixel to pixel than a photo that was made smaller for the web.
SHORT_SIDE = 3000
QUALITY = {"quality": 90, "subsampling": "4:2:0"}
# Its "logits" are the values of pixel_values, in a row: a Flatten of [batch, 3, height, width], and nothing else.
PIXELS = HERE / "pixels.onnx"
MODES = ("exact", "fast")
# Where f32 has the best label ahead by less, another first label is a near tie.
CLEAR = 0.05


def write(options, sizes):
    """Compares the modes for the first classifier and writes the page."""
    folder = WORK / "decode"
    shutil.rmtree(folder, ignore_errors=True)
    photos = [*large_photos(folder / "photos"), sizes["12"]]
    name = classifier(options)
    models = [(name, options.models_dir / name), ("pixels", pixel_folder(folder / "pixels", options.models_dir / name))]
    models_dir = link_models(folder / "models", models)
    rows, std = [], pixel_std(options.models_dir / name)
    answers = {mode: ask(models_dir, folder, name, mode, photos) for mode in MODES}
    for index, photo in enumerate(photos):
        exact, fast = (answers[mode][index] for mode in MODES)
        rows.append(compare(photo, exact, fast, std))
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / "bench-decode.md"
    page.write_text("\n".join(markdown(options, name, rows)), encoding="utf-8")
    return page


def large_photos(folder):
    """Every picture that scripts/setup fetches, enlarged, as JPEG."""
    import_pillow()
    from PIL import Image

    folder.mkdir(parents=True)
    say("making large photos …")
    made = []
    for path in sorted((SETUP / "photos").glob("*.*g")):
        photo = Image.open(path).convert("RGB")
        scale = SHORT_SIDE / min(photo.size)
        size = tuple(round(side * scale) for side in photo.size)
        made.append(folder / f"{path.stem}.jpg")
        photo.resize(size, Image.LANCZOS).save(made[-1], **QUALITY)
    return made


def classifier(options):
    """The first model that is none for zero-shot: those have two encoders."""
    for name in options.models:
        if not list((options.models_dir / name).glob("**/text_model*.onnx")):
            return name
    raise BenchError(f"there is no classifier in {options.models_dir}")


def pixel_folder(folder, model):
    """A model folder that answers with its own pixels, preprocessed as for `model`."""
    folder.mkdir()
    shutil.copy(model / "preprocessor_config.json", folder)
    shutil.copy(PIXELS, folder / "model.onnx")
    model_type = json.loads((model / "config.json").read_text())["model_type"]
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def pixel_std(model):
    """What a pixel value of 1 is divided by, by channel, to tell differences in steps of 1/255."""
    settings = json.loads((model / "preprocessor_config.json").read_text())
    std = settings.get("image_std", [0.5, 0.5, 0.5])
    return [one * one for one in std] if settings.get("include_top") else std


def ask(models_dir, folder, name, mode, photos):
    """(logits, pixels, CPU-ms of preprocessing) of each photo."""
    say(f"{mode}: {len(photos)} photos …")
    options = ["--decode", mode, "--precision", "f32", "--tune", "off"]
    costs = ocelli_bench(models_dir, folder / "cache", name, photos, "--seconds", 0.2, "--largest-batch", 1, *options)
    with Server(models_dir, folder / "cache", folder / "server.log", options) as server:
        values = [
            (answer(server, name, photo), answer(server, "pixels", photo), cost["cpu_ms"])
            for photo, cost in zip(photos, costs["preprocessing"])
        ]
    return values


def answer(server, model, photo):
    """The graph's output, in the order of its labels."""
    query = urlencode({"model": model, "function_to_apply": "none", "top_k": 10**6})
    status, body = server.request("POST", f"/v1/classify?{query}", photo.read_bytes(), "image/jpeg")
    if status != 200:
        raise BenchError(f"{model} answered {status}: {body[:300].decode(errors='replace')}")
    (result,) = json.loads(body)["results"]
    values = [0.0] * len(result["predictions"])
    for prediction in result["predictions"]:
        values[prediction["index"]] = prediction["score"]
    return values


def compare(photo, exact, fast, std):
    (logits, pixels, cost), (fast_logits, fast_pixels, fast_cost) = exact, fast
    plane = len(pixels) // 3
    steps = [abs(a - b) * std[index // plane] * 255 for index, (a, b) in enumerate(zip(pixels, fast_pixels))]
    probabilities, fast_probabilities = softmax(logits), softmax(fast_logits)
    first, second = sorted(probabilities, reverse=True)[:2]
    return {
        "photo": photo.stem,
        "cost": cost,
        "fast_cost": fast_cost,
        "largest_step": max(steps),
        "mean_step": sum(steps) / len(steps),
        "logit": max(abs(a - b) for a, b in zip(logits, fast_logits)),
        "probability": max(abs(a - b) for a, b in zip(probabilities, fast_probabilities)),
        "same": max(range(len(logits)), key=logits.__getitem__) == max(range(len(logits)), key=fast_logits.__getitem__),
        "clear": first - second > CLEAR,
    }


def softmax(logits):
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def markdown(options, name, rows):
    changed = [row for row in rows if not row["same"]]
    clear = sum(row["clear"] for row in changed)
    yield "# What `decode = \"fast\"` changes"
    yield ""
    yield f"Written by `{options.command}` with {name} in f32: {len(rows)} JPEGs, all but the last of them a picture of"
    yield f"scripts/setup's enlarged to a short side of {SHORT_SIDE} pixels, the last one four of them side by side, with more detail, in 12"
    yield "megapixels. `exact` decodes every pixel, as the reference does; `fast` decodes at 1/2, 1/4 or 1/8, to not less than twice what"
    yield "the image is resized to."
    yield ""
    yield from machine_table()
    yield ""
    yield f"- **Top-1**: the same for {len(rows) - len(changed)} of {len(rows)}; {clear} of the others led by more than {CLEAR}."
    yield f"- **Probabilities** move by at most {worst(rows, 'probability'):.3f}, **logits** by at most {worst(rows, 'logit'):.2f}."
    yield f"- **Pixels** move by {median([row['mean_step'] for row in rows]):.2f} steps of 1/255 in the mean (median photo),"
    yield f"by {worst(rows, 'largest_step'):.0f} at most."
    exact, fast = median([row["cost"] for row in rows]), median([row["fast_cost"] for row in rows])
    ratio = median([row["cost"] / row["fast_cost"] for row in rows])
    yield f"- **CPU time** of decoding and preprocessing: `exact` takes {exact:.1f} ms, `fast` {fast:.1f}; {ratio:.1f} times as long (median photo)."
    yield "What is left is the entropy decoding, which no scale avoids: it grows with the file, whatever the pixels."
    yield ""
    yield "So the default is `fast`, unless `precision` is set to `f32`: who leaves the precision open allows tuning to take a lower one,"
    yield "which may move probabilities by 0.05 and change the best label where it leads by no more, and the above is less than that"
    yield "(with a lower precision, it comes on top). Who asks for `f32` gets the reference's pixels bit for bit and its logits within"
    yield "1e-4, as [parity.md](parity.md) tells; `decode` decides either way, for each model."
    yield ""
    header = ["photo", "exact, CPU-ms", "fast, CPU-ms", "largest step", "mean step", "logits", "probabilities", "top-1"]
    cells = [
        [
            row["photo"],
            f"{row['cost']:.1f}",
            f"{row['fast_cost']:.1f}",
            f"{row['largest_step']:.0f}",
            f"{row['mean_step']:.2f}",
            f"{row['logit']:.2f}",
            f"{row['probability']:.3f}",
            "same" if row["same"] else ("another" if row["clear"] else "another, a near tie"),
        ]
        for row in rows
    ]
    yield from table(header, cells)
    yield ""


def worst(rows, key):
    return max(row[key] for row in rows)
