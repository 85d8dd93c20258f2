"""The results of an accuracy run, as lines for the terminal and as a Markdown document."""

import platform
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import PIL
import torch
import torchvision
import transformers

from . import agreement, measures, published
from .report import processor_name, share

ROOT = Path(__file__).resolve().parents[2]

DIFFERENCES = ("of up to", "logits, max", "logits, mean", "scores, max", "scores, mean", "same top-1", "same top-5")
LOSSLESS = ("photos", "pixels, max", *DIFFERENCES)
JPEG = ("photos", "pixels, max", "pixels, mean", "logits of the same pixels, max", *DIFFERENCES)
BF16 = ("photos", *DIFFERENCES)


def lines_about(results: list, seconds: float) -> str:
    lines = [f"{results[0].model} ({seconds:.0f} s)"]
    for result in results:
        verdict = ("PAST TOLERANCE" if result.failed else "within tolerance") if result.run.is_judged else "measured"
        lines.append(f"  {result.run.device} {result.run.precision}: {verdict}")
        lines += [f"    {kind:<9}{summary(part)}" for kind, part in parts(result) if part.rankings]
        lines += [f"    ! {fault}" for fault in result.faults()[:8]]
        if len(result.faults()) > 8:
            lines.append(f"    ! and {len(result.faults()) - 8} more")
    return "\n".join(lines)


def parts(result) -> list:
    return [("lossless", result.lossless), ("JPEG", result.jpeg)]


def summary(part) -> str:
    first = f"top-1 {share(part.same_first, part)}, top-5 {share(part.same_top, part)}"
    logits = f"logits {part.values:.2g} (mean {mean(part.mean_values):.2g})"
    return f"{first}, {logits}, scores {part.scores:.2g} (mean {mean(part.mean_scores):.2g})"


def mean(values: list) -> float:
    return sum(values) / len(values)


def document(results: list, pictures: list, options) -> str:
    f32 = [result for result in results if result.run.is_judged]
    bf16 = [result for result in results if not result.run.is_judged]
    sections = [
        introduction(results, pictures, options),
        "## f32, lossless photos", about_lossless(), table(LOSSLESS, [(result, result.lossless) for result in f32]),
        "## f32, JPEG", about_jpeg(), table(JPEG, [(result, result.jpeg) for result in f32]),
    ]  # fmt: skip
    if bf16:
        sections += [
            "## bf16, lossless photos", ABOUT_BF16, table(BF16, [(result, result.lossless) for result in bf16]),
            "## bf16, JPEG", table(BF16, [(result, result.jpeg) for result in bf16]),
        ]  # fmt: skip
    sections += ["## Another label first", swaps(results), "## What the models see", answers(results, pictures)]
    faults = [(result, fault) for result in results if result.failed for fault in result.faults()]
    if faults:
        lines = [f"- {result.model}, {result.run.device} {result.run.precision}: {fault}" for result, fault in faults]
        sections += ["## Past tolerance", "\n".join(lines)]
    sections += ["## Made with", versions(options)]
    return "\n\n".join(sections) + "\n"


def introduction(results: list, pictures: list, options) -> str:
    jpegs = sum(picture.is_jpeg for picture in pictures)
    past = sum(result.failed for result in results)
    verdict = f"**{past} of the runs in f32 are past tolerance.**" if past else "All runs in f32 are within tolerance."
    return f"""# Accuracy of trained models

Written by `{command(options)}`: models with their published weights, which `scripts/setup` made into
model folders, served by `ocelli serve` and asked over HTTP. The reference is the same weights in the code of their own
PyPI package, run by PyTorch in f32 on the pixels that `transformers`' torchvision-backed image processor makes of the
same bytes. {verdict}

Every model answers {len(pictures) - jpegs} lossless photos and {jpegs} JPEGs: all of
`{shown(options.photos)}`, and a random crop of each as PNG and as JPEG (quality 90; 4:2:0, 4:2:2 and 4:4:4 in turn).
"Of up to" is the largest logit's size. Means are over all labels of all photos. "Same top-5" is the same five labels in
the same order."""


def shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def command(options) -> str:
    words = ["scripts/accuracy"]
    if options.models != list(published.FOLDERS):
        words += options.models
    words += ["--cpu-only"] if len(options.runs) == 1 else []
    return shlex.join([*words, "--seed", str(options.seed)])


def about_lossless() -> str:
    return f"""Limits: pixels {measures.PIXELS:g}; logits and scores {measures.LOGITS:g}, or that share of the photo's
largest logit. The best label must be the reference's on every photo; of the next four, those whose logits are closer
than twice the limit may change places."""


def about_jpeg() -> str:
    pixels, mean_pixels = measures.jpeg_limits({"image_std": [published.DEVIATION]})
    return f"""A JPEG decoder may round otherwise than Pillow's. Limits: pixels {pixels:.2g} at most and
{mean_pixels:.2g} on average; logits {agreement.JPEG_LOGITS:g} and scores {agreement.JPEG_SCORES:g}; the best label must
be the reference's where its logit leads by more than {agreement.JPEG_LEAD:g}. From the same pixels, the server's, logits
must follow within the limits for lossless photos."""


ABOUT_BF16 = """Against the same f32 reference, on the same photos. Measured, not judged: bf16 keeps eight bits of every
number, and the server uses it only if told to, or if `auto` finds that it moves no probability of its built-in photos by
more than `tune_max_shift`."""


def table(columns: tuple, measured: list) -> str:
    rows = []
    for result, part in measured:
        if part.rankings:
            cells = [cell(part, column) for column in columns]
        else:
            why = one_line(result.failure) if result.failure else "no such photos"
            cells = [why, *["–"] * (len(columns) - 1)]
        rows.append((result.model, result.run.device, *cells))
    return markdown(("model", "device", *columns), rows)


def one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:200]


def markdown(header: tuple, rows: list) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def cell(part, column: str) -> str:
    texts = {
        "photos": f"{part.photos}",
        "pixels, max": f"{part.pixels:.2g}",
        "pixels, mean": f"{part.mean_pixels:.2g}",
        "logits of the same pixels, max": f"{part.same_pixels:.2g}",
        "of up to": f"{part.largest_value:.3g}",
        "logits, max": f"{part.values:.2g}",
        "logits, mean": f"{mean(part.mean_values):.2g}",
        "scores, max": f"{part.scores:.2g}",
        "scores, mean": f"{mean(part.mean_scores):.2g}",
        "same top-1": share(part.same_first, part),
        "same top-5": share(part.same_top, part),
    }
    return texts[column]


def swaps(results: list) -> str:
    """Whether another label than the reference's came first because of near ties, or in earnest."""
    rows = []
    for result in results:
        for swap in result.lossless.swaps + result.jpeg.swaps:
            expected = f"{short(result.labels[swap.expected])} {swap.expected_score:.3f}"
            found = f"{short(result.labels[swap.found])} {swap.found_score:.3f}"
            rows.append((result.model, f"{result.run.device} {result.run.precision}", swap.photo, expected, found))
    if not rows:
        return "On no photo."
    header = ("model", "run", "photo", "the reference's best label", "what came first")
    return "Both scores are the reference's.\n\n" + markdown(header, rows)


def short(label: str) -> str:
    return label.split(",")[0]


def answers(results: list, pictures: list) -> str:
    """What a person can check: the labels of the photos that are not crops."""
    first_runs = {result.model: result for result in reversed(results) if result.rows}
    models = [first_runs[model] for model in dict.fromkeys(result.model for result in results) if model in first_runs]
    rows = []
    for picture in pictures:
        if not picture.name.startswith("crop of "):
            rows.append((picture.name, *(seen(model, picture.name) for model in models)))
    header = ("photo", *(model.model for model in models))
    text = "The best label and its score, as served in f32. Some photos show nothing that ImageNet has a class for."
    return text + "\n\n" + markdown(header, rows)


def seen(result, photo: str) -> str:
    row = result.rows[photo]
    best = row.ranking[0]
    return f"{short(result.labels[best])} {row.scores[best]:.2f}"


def versions(options) -> str:
    server = subprocess.run([options.server, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    package = metadata.version("efficientnet-lite-pytorch")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"""- {server}; {runtime_version()}
- efficientnet-lite-pytorch {package}, torch {torch.__version__}, torchvision {torchvision.__version__}
- transformers {transformers.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}
- {processor_name()}, {platform.system()} {platform.machine()}; PyTorch with {capability}"""


def runtime_version() -> str:
    """Of the library that scripts/setup fetched, which the server takes unless it is told of another."""
    for library in sorted((ROOT / ".setup" / "onnxruntime").glob("libonnxruntime*")):
        version = re.search(r"\d+\.\d+\.\d+", library.name)
        if version:
            return f"ONNX Runtime {version.group()}"
    return "ONNX Runtime of unknown version"
