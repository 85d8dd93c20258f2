"""Compares trained models, as the server serves them over HTTP, with a PyTorch run of their published weights."""

import argparse
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import accuracy_report, agreement, export, inputs, measures, photos, pixel_probe, published, served
from .agreement import Agreement
from .errors import Refused
from .parity import in_parallel
from .server import Server

ROOT = Path(__file__).resolve().parents[2]
PROBES = ROOT / ".setup" / "accuracy-probes"
REPORT = ROOT / "docs" / "accuracy.md"


@dataclass(frozen=True)
class Run:
    """How the server computes. Only f32 promises the reference's answers, so only it is judged."""

    device: str
    precision: str

    @property
    def is_judged(self) -> bool:
        return self.precision == "f32"

    @property
    def settings(self) -> tuple:
        """All that `auto` would otherwise choose."""
        return ("--device", self.device, "--precision", self.precision, "--instances", "1", "--decode", "exact")


RUNS = (Run("cpu", "f32"), Run("openvino", "f32"), Run("openvino", "bf16"))


@dataclass
class Result:
    """What came out for one model in one run."""

    model: str
    run: Run
    lossless: Agreement = field(default_factory=Agreement)
    jpeg: Agreement = field(default_factory=Agreement)
    #: Why nothing was measured.
    failure: str = ""
    labels: list = field(default_factory=list)
    #: The server's answer by the photo's name.
    rows: dict = field(default_factory=dict)

    def part(self, photo) -> Agreement:
        return self.jpeg if photo.is_jpeg else self.lossless

    def faults(self) -> list:
        return ([self.failure] if self.failure else []) + self.lossless.faults + self.jpeg.faults

    @property
    def failed(self) -> bool:
        return self.run.is_judged and bool(self.faults())


def parse_arguments(arguments: list):
    parser = argparse.ArgumentParser(prog="scripts/accuracy", description=__doc__)
    known = ", ".join(published.FOLDERS)
    parser.add_argument("models", metavar="MODEL", nargs="*", help=f"of {known} [default: all]")
    parser.add_argument("--cpu-only", action="store_true", help="for an ONNX Runtime without OpenVINO: f32 on cpu only")
    parser.add_argument("--seed", type=int, default=0, help="of the photos' crops [default: 0]")
    parser.add_argument(
        "--photos", metavar="FOLDER", type=Path, default=photos.SETUP_PHOTOS, help="[default: .setup/photos]"
    )
    parser.add_argument("--server", metavar="PATH", type=Path, help="the binary [default: target/release/ocelli]")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help=f"[default for a full run: {REPORT.relative_to(ROOT)}]"
    )
    options = parser.parse_args(arguments)
    for name in options.models:
        if name not in published.FOLDERS:
            parser.error(f"there are no published weights of {name}; there are {known}")
    if options.seed < 0:
        parser.error("--seed: must be 0 or above")
    if options.report is None and not options.models and not options.cpu_only:
        options.report = REPORT
    options.server = options.server or ROOT / "target" / "release" / "ocelli"
    options.models = options.models or list(published.FOLDERS)
    options.runs = RUNS[:1] if options.cpu_only else RUNS
    return options


def main(arguments: list) -> int:
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    export.quiet()
    results = []
    try:
        prepare(options)
        pictures = choose_photos(options.photos, options.seed)
        for name in options.models:
            started = time.monotonic()
            measured = measure(name, pictures, options)
            print(accuracy_report.lines_about(measured, time.monotonic() - started), flush=True)
            results += measured
    except Refused as refused:
        print(f"scripts/accuracy: {refused}", file=sys.stderr)
        return 1
    text = accuracy_report.document(results, pictures, options)
    print(text)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text, encoding="utf-8")
    return 1 if any(result.failed for result in results) else 0


def prepare(options) -> None:
    """Makes what a run needs, where it is missing: the models, the photos, and the published weights."""
    if not options.server.is_file():
        raise Refused(f"{options.server} is missing; build it (cargo build --release) or name one with --server")
    wanted = ["--more-models", *(["--photos"] if options.photos == photos.SETUP_PHOTOS else [])]
    if subprocess.run([ROOT / "scripts" / "setup", *wanted], check=False).returncode != 0:
        raise Refused(f"scripts/setup {' '.join(wanted)} failed, see above")
    published.make_importable()


def choose_photos(folder: Path, seed: int) -> list:
    """Every photo, and a crop of each, as PNG and as JPEG."""
    random = np.random.default_rng(seed)
    originals = photos.read_folder(folder)
    crops = []
    for index, original in enumerate(originals):
        crop = photos.random_crop(inputs.open_image(original.content), random)
        name = f"crop of {Path(original.name).stem}"
        crops.append(photos.Photo(f"{name}.png", photos.encoded(crop, "PNG", compress_level=1)))
        crops.append(photos.as_jpeg(name, crop, index, {}))
    return originals + crops


def measure(name: str, pictures: list, options) -> list:
    """A result for each run."""
    folder = published.FOLDERS[name]
    model = published.PublishedReference(name, folder)
    answers = [model.answer(picture.content) for picture in pictures]
    pixels = serve_pixels(folder, pictures, answers[0].pixels.shape, options)
    results = [Result(name, run) for run in options.runs]
    for result in results:
        try:
            serve(result, folder, pictures, options)
        except Refused as refused:
            result.failure = str(refused)
            continue
        for picture, answer, seen in zip(pictures, answers, pixels):
            compare(result, model, picture, answer, seen)
    return results


def serve_pixels(folder: Path, pictures: list, shape: tuple, options) -> list:
    """The server's pixel_values of each photo. Devices and precisions do not change them."""
    probe = PROBES / f"{folder.name}-pixels"
    pixel_probe.write(probe, folder, shape)
    with Server(options.server, [probe], *RUNS[0].settings) as server:
        return in_parallel(lambda content: served.pixels(server, probe.name, content, shape), pictures)


def serve(result: Result, folder: Path, pictures: list, options) -> None:
    """Asks for every photo's labels."""
    with Server(options.server, [folder], *result.run.settings) as server:
        state = server.states()[folder.name]
        (graph,) = state["graphs"]
        if (graph["provider"], graph["precision"]) != (result.run.device, result.run.precision):
            raise Refused(f"{folder.name} runs on {graph['provider']} in {graph['precision']}, not as it was told to")
        result.labels = state["labels"]
        count = len(result.labels)
        rows = in_parallel(lambda content: served.classified(server, folder.name, content, count)[0], pictures)
    result.rows = {picture.name: row for picture, row in zip(pictures, rows)}


def compare(result: Result, model, picture, answer, seen: np.ndarray) -> None:
    row, part = result.rows[picture.name], result.part(picture)
    if not result.run.is_judged:
        part.photos += 1
        part.add_row(row, answer.values[0], answer.scores[0])
        part.add_first(picture.name, row, answer, None)
    elif picture.is_jpeg:
        judge_jpeg(part, model, picture.name, row, answer, seen)
    else:
        part.add_pixels(picture.name, seen, answer.pixels, (measures.PIXELS, measures.PIXELS))
        part.judge_lossless(picture.name, row, answer.values[0], answer.scores[0], measures.LOGITS)
        part.add_first(picture.name, row, answer, 0.0)


def judge_jpeg(part: Agreement, model, photo: str, row, answer, seen: np.ndarray) -> None:
    """Exact from the server's own pixels; from the reference's, within what a decoder may change."""
    part.add_pixels(photo, seen, answer.pixels, measures.jpeg_limits(model.processor.to_dict()))
    same = model.answer_pixels(seen)
    part.judge_jpeg(photo, row, answer.values[0], answer.scores[0], (same.values[0], measures.LOGITS))
    part.require(photo, "logits are", float(np.abs(row.values - answer.values[0]).max()), agreement.JPEG_LOGITS)
    part.require(photo, "scores are", float(np.abs(row.scores - answer.scores[0]).max()), agreement.JPEG_SCORES)
    part.add_first(photo, row, answer, agreement.JPEG_LEAD)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
