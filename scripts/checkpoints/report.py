"""The results of a parity run, as lines for the terminal and as a Markdown document."""

import platform
from pathlib import Path

import torch
import torchvision
import transformers

from . import measures, reference
from .measures import Measure

SCORES = ("of up to", "scores, max", "same top-1", "same top-5")
LOSSLESS = ("photos", "pixels, max", "logits, max", *SCORES)
JPEG = ("photos", "pixels, max", "pixels, mean", "logits of the same pixels, max", "logits, max", *SCORES)
BF16 = ("photos", "logits, max", *SCORES)


def lines_about(result, seconds: float) -> str:
    verdict = "PAST TOLERANCE" if result.faults() else "within tolerance"
    lines = [f"{result.name}: {verdict} ({seconds:.0f} s)"]
    for kind, part in (("lossless", result.lossless), ("JPEG", result.jpeg), ("bf16", result.bf16)):
        # In bf16 the pixels are those of f32, and are not asked for again.
        text = summary(part, kind != "bf16") if isinstance(part, Measure) else " ".join(str(part).split())[:300]
        lines.append(f"  {kind:<9}{text}")
    faults = result.faults()
    lines += [f"  ! {fault}" for fault in faults[:8]]
    if len(faults) > 8:
        lines.append(f"  ! and {len(faults) - 8} more")
    return "\n".join(lines)


def summary(part: Measure, with_pixels: bool) -> str:
    if not part.rankings:
        return "nothing was measured"
    pixels = f"pixels {part.pixels:.2g} (mean {part.mean_pixels:.2g}), " if with_pixels else ""
    same_pixels = f"logits of the same pixels {part.same_pixels:.2g}, " if part.same_pixels else ""
    logits = f"logits {part.values:.2g} of up to {part.largest_value:.3g}, scores {part.scores:.2g}"
    same = f"top-1 {share(part.same_first, part)}, top-5 {share(part.same_top, part)}"
    return f"{part.photos} photos: {pixels}{same_pixels}{logits}, {same}"


def share(count: int, part: Measure) -> str:
    return f"{count}/{part.rankings}"


def document(results: list, pictures: list, options) -> str:
    jpegs = sum(picture.is_jpeg for picture in pictures)
    failures = [result for result in results if result.faults()]
    parts = [
        introduction(results, len(pictures) - jpegs, jpegs, options),
        "## f32, lossless photos", about_lossless(), table(LOSSLESS, [(result, result.lossless) for result in results]),
        "## f32, JPEG", about_jpeg(results), table(JPEG, [(result, result.jpeg) for result in results]),
        "## bf16", ABOUT_BF16, table(BF16, [(result, result.bf16) for result in results]),
    ]  # fmt: skip
    if failures:
        parts += [
            "## Past tolerance",
            "\n".join(f"- {result.name}: {fault}" for result in failures for fault in result.faults()),
        ]
    return "\n\n".join(parts) + "\n"


def introduction(results: list, lossless: int, jpegs: int, options) -> str:
    past = sum(bool(result.faults()) for result in results)
    verdict = f"{past} are past tolerance." if past else "All are within tolerance."
    questions, labels = len(reference.QUESTIONS), len(reference.LABELS)
    versions = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    return f"""# Parity with transformers

Written by `scripts/parity --seed {options.seed}`: full-size architectures with random weights, exported by
`scripts/export`, served by `ocelli serve --device cpu --precision f32`, and asked over HTTP. The reference is
`transformers`' pipelines on the same bytes, with its torchvision image processors and PyTorch in f32. {verdict}

Each of {len(results)} checkpoints answers {lossless} lossless photos and {jpegs} JPEGs: photos cropped at random, and
from these 32×32 pixels, a 4000×300 panorama, 12 megapixels, 100×80, 150×900, gray, RGBA, a palette, and one turned by
EXIF. Random weights show whether the arithmetic is the same. They say nothing about accuracy, and a random model may be
more or less sensitive to small changes than a trained one.

All values of `pixel_values` are compared; a probe model with the checkpoint's processor file returns them as its
logits. "Of up to" is the largest logit's size. Zero-shot checkpoints answer {questions} questions per photo, of {labels}
labels: without a template, with the pipeline's default one, and with four templates averaged; in place of logits stands
the logarithm of the score. SigLIP's tokenizer has a stand-in vocabulary, because its own is in no package registry; its
steps are the real ones.

Made with {versions}, CPU capability {torch.backends.cpu.get_cpu_capability()}, on {processor_name()}."""


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def about_lossless() -> str:
    return (
        f"Limits: pixels {measures.PIXELS:g}; logits and scores {measures.LOGITS:g}, or that share of the largest "
        f"logit; zero-shot {measures.ZERO_SHOT_LOGITS:g}. The top five must be the reference's, except that labels "
        "whose logits are closer than twice the limit may change places."
    )


def about_jpeg(results: list) -> str:
    beyond = sum(result.jpeg.scores > measures.JPEG_SCORES for result in results)
    return (
        "JPEG decoders may round differently. Limits under ImageNet's deviations: pixels "
        f"{measures.JPEG_PIXELS:g} at most and {measures.JPEG_MEAN:g} on average, under others in proportion. From the "
        "same pixels, the server's, logits and top five must be the reference's within the limits above. How far they "
        "are from those of the reference's own pixels is measured, not judged: it says how much a model with random "
        f"weights makes of the last bit of a pixel. Scores of a trained EfficientNet-Lite0 moved by less than "
        f"{measures.JPEG_SCORES:g}; {beyond} of the {len(results)} checkpoints here go past that."
    )


ABOUT_BF16 = (
    "`--device openvino --precision bf16 --decode exact`, all photos, against the same f32 reference. Measured, not judged: what bf16 "
    "does to a trained model depends on its weights."
)


def table(columns: tuple, measured: list) -> str:
    lines = [("checkpoint", *columns), ["---"] * (len(columns) + 1)]
    for result, part in measured:
        if isinstance(part, Measure) and part.rankings:
            cells = [cell(part, column) for column in columns]
        else:
            # One line: what an inference library says may have many.
            why = " ".join((result.failure or str(part)).replace("|", "/").split())[:200]
            cells = [why, *"–" * (len(columns) - 1)]
        lines.append([result.name, *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def cell(part: Measure, column: str) -> str:
    texts = {
        "photos": f"{part.photos}",
        "pixels, max": f"{part.pixels:.2g}",
        "pixels, mean": f"{part.mean_pixels:.2g}",
        "logits of the same pixels, max": f"{part.same_pixels:.2g}",
        "logits, max": f"{part.values:.2g}",
        "of up to": f"{part.largest_value:.3g}",
        "scores, max": f"{part.scores:.2g}",
        "same top-1": share(part.same_first, part),
        "same top-5": share(part.same_top, part),
    }
    return texts[column]
