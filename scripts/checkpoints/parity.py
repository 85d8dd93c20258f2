"""Serves full-size checkpoints with random weights and compares the answers over HTTP with those of transformers."""

import argparse
import gc
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from . import export, measures, photos, pixel_probe, random_weights, reference, report, served
from .errors import Refused
from .measures import Measure
from .server import Server

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".setup" / "parity"
REPORT = ROOT / "docs" / "parity.md"

#: One of each preprocessing: shortest edge and crop, squash, nearest with double normalisation, dual encoder.
QUICK = (
    "microsoft/resnet-50",
    "google/vit-base-patch16-224",
    "google/efficientnet-b0",
    "openai/clip-vit-base-patch32",
)
F32 = ("--device", "cpu", "--precision", "f32")
BF16 = ("--device", "openvino", "--precision", "bf16", "--decode", "exact")


@dataclass
class Result:
    """What came out for one checkpoint."""

    name: str
    parameters: int
    zero_shot: bool
    lossless: Measure = field(default_factory=Measure)
    jpeg: Measure = field(default_factory=Measure)
    #: In bf16, all photos; or why there was none.
    bf16: object = "not asked for"
    failure: str = ""

    @property
    def limit(self) -> float:
        return measures.ZERO_SHOT_LOGITS if self.zero_shot else measures.LOGITS

    def faults(self) -> list:
        return ([self.failure] if self.failure else []) + self.lossless.faults + self.jpeg.faults


def parse_arguments(arguments: list):
    parser = argparse.ArgumentParser(prog="scripts/parity", description=__doc__)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="*", help="Hub ids; left out: every one there is")
    parser.add_argument("--quick", action="store_true", help="four checkpoints, fewer photos, no bf16")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of the photos' crops [default: 0]")
    parser.add_argument(
        "--photos", metavar="FOLDER", type=Path, default=photos.SETUP_PHOTOS, help="[default: .setup/photos]"
    )
    parser.add_argument("--server", metavar="PATH", type=Path, help="the binary [default: target/release/ocelli]")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help=f"[default for a full run: {REPORT.relative_to(ROOT)}]"
    )
    parser.add_argument("--no-bf16", action="store_true", help="leave out the run in bf16")
    parser.add_argument(
        "--no-cache", action="store_true", help="remove each exported model after its turn, to save disk"
    )
    options = parser.parse_args(arguments)
    options.server = options.server or ROOT / "target" / "release" / "ocelli"
    if options.report is None and not options.checkpoints and not options.quick:
        options.report = REPORT
    options.checkpoints = options.checkpoints or list(QUICK if options.quick else random_weights.checkpoint_ids())
    options.bf16 = not (options.no_bf16 or options.quick)
    if options.seed < 0:
        parser.error("--seed: must be 0 or above")
    return options


def main(arguments: list) -> int:
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    export.quiet()
    try:
        if not options.server.is_file():
            raise Refused(f"{options.server} is missing; build it (cargo build --release) or name one with --server")
        if options.photos == photos.SETUP_PHOTOS and not options.photos.is_dir():
            raise Refused(
                "there are no photos in .setup/photos; scripts/setup --photos fetches some, --photos names others"
            )
        for name in options.checkpoints:
            random_weights.find_entry(name)
        pictures = photos.for_parity(options.photos, options.seed, options.quick)
    except Refused as refused:
        print(f"scripts/parity: {refused}", file=sys.stderr)
        return 1
    results = []
    for name in options.checkpoints:
        started = time.monotonic()
        results.append(measure(name, pictures, options))
        print(report.lines_about(results[-1], time.monotonic() - started), flush=True)
    text = report.document(results, pictures, options)
    print(text)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text, encoding="utf-8")
    return 1 if any(result.faults() for result in results) else 0


def measure(name: str, pictures: list, options) -> Result:
    entry = random_weights.find_entry(name)
    result = Result(name, entry["parameters"], entry["task"].startswith("zero-shot"))
    versions = f"torch-{torch.__version__.split('+')[0]}-transformers-{transformers.__version__}"
    folder = WORK / "models" / f"{versions}-seed-{options.seed}" / name.split("/")[-1]
    try:
        answers = compare(result, open_reference(name, folder, options), folder, pictures, options)
        # The torch model is gone by now; the next server's model takes its place in memory.
        gc.collect()
        if options.bf16:
            result.bf16 = compare_bf16(folder, pictures, answers, result.zero_shot, options)
    except Refused as refused:
        result.failure = str(refused)
    finally:
        if options.no_cache:
            shutil.rmtree(folder, ignore_errors=True)
    return result


def open_reference(name: str, folder: Path, options):
    """transformers with the checkpoint's weights. Exports the model if it is not there yet."""
    checkpoint = random_weights.build(name, options.seed)
    if not folder.is_dir():
        images, _ = photos.for_comparison(str(options.photos), limit=2)
        export.export(checkpoint, folder, images)
    kind = reference.ZeroShotReference if checkpoint.is_dual_encoder else reference.ClassifierReference
    return kind(checkpoint, folder)


def compare(result: Result, model, folder: Path, pictures: list, options) -> list:
    """The run in f32: pixels through a probe, and answers through the endpoint of the task. Returns the reference's."""
    answers = [model.answer(picture.content) for picture in pictures]
    shape = answers[0].pixels.shape
    probe = WORK / "probes" / f"{folder.name}-pixels"
    pixel_probe.write(probe, folder, shape)
    with Server(options.server, [folder, probe], *F32) as server:
        pixels = in_parallel(lambda content: served.pixels(server, probe.name, content, shape), pictures)
        rows = ask(server, folder, pictures, answers, result.zero_shot)
    for picture, answer, seen, answered in zip(pictures, answers, pixels, rows):
        if picture.is_jpeg:
            judge_jpeg(result, model, picture.name, answer, seen, answered)
        else:
            judge_lossless(result, picture.name, answer, seen, answered)
    return answers


def judge_lossless(result: Result, photo: str, answer, seen, answered: list) -> None:
    result.lossless.add_pixels(photo, seen, answer.pixels, (measures.PIXELS, measures.PIXELS))
    for row, values, scores in zip(answered, answer.values, answer.scores):
        result.lossless.judge_lossless(photo, row, values, scores, result.limit)


def judge_jpeg(result: Result, model, photo: str, answer, seen, answered: list) -> None:
    result.jpeg.add_pixels(photo, seen, answer.pixels, measures.jpeg_limits(model.processor.to_dict()))
    same = model.answer_pixels(seen)
    for row, values, scores, same_values in zip(answered, answer.values, answer.scores, same.values):
        result.jpeg.judge_jpeg(photo, row, values, scores, (same_values, result.limit))


def compare_bf16(folder: Path, pictures: list, answers: list, zero_shot: bool, options):
    """How often bf16 agrees, and how far off it is; or why this machine cannot tell."""
    try:
        with Server(options.server, [folder], *BF16) as server:
            rows = ask(server, folder, pictures, answers, zero_shot)
    except Refused as refused:
        return f"not here: {refused}"
    measure = Measure(photos=len(pictures))
    for answer, answered in zip(answers, rows):
        for row, values, scores in zip(answered, answer.values, answer.scores):
            measure.add_row(row, values, scores)
    return measure


def ask(server: Server, folder: Path, pictures: list, answers: list, zero_shot: bool) -> list:
    question = served.zero_shot if zero_shot else served.classified
    labels = answers[0].values.shape[1]
    return in_parallel(lambda content: question(server, folder.name, content, labels), pictures)


def in_parallel(work, pictures: list) -> list:
    """Three requests at a time, so that the server makes batches as well."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(work, (picture.content for picture in pictures)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
