"""The image processors of transformers that the server knows, as far as calibration and comparison need them.

Pixels are within two steps (of 1/255) of transformers' own on photos, and mostly equal. Both graphs get the same ones,
so what is measured of them does not depend on that.
"""

import math
from dataclasses import dataclass

import numpy as np
from errors import Refused
from PIL import Image

HALF = [0.5, 0.5, 0.5]
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
NEAREST, BICUBIC, BILINEAR = 0, 3, 2

#: Where classes differ when the file has no value, as in transformers 5.23: resample, size, whether a lone number means
#: a square, crop_size, do_center_crop, and the mean and standard deviation.
CLASSES = {
    "ViT": (BILINEAR, {"height": 224, "width": 224}, True, None, False, (HALF, HALF)),
    "CLIP": (BICUBIC, {"shortest_edge": 224}, False, 224, True, (CLIP_MEAN, CLIP_STD)),
    "Bit": (BICUBIC, {"shortest_edge": 224}, False, 224, True, (CLIP_MEAN, CLIP_STD)),
    "Siglip": (BICUBIC, {"height": 224, "width": 224}, False, None, False, (HALF, HALF)),
    "DeiT": (BICUBIC, {"height": 256, "width": 256}, True, 224, True, (HALF, HALF)),
    "Beit": (BICUBIC, {"height": 224, "width": 224}, True, 224, False, (HALF, HALF)),
    "EfficientNet": (BICUBIC, {"height": 346, "width": 346}, True, 289, False, (HALF, HALF)),
    "ConvNext": (BICUBIC, {"shortest_edge": 384}, False, None, False, (HALF, HALF)),
}
#: The class that goes with model_type of config.json, for files that name none.
IMPLIED = {
    "beit": "Beit", "clip": "CLIP", "convnext": "ConvNext", "convnextv2": "ConvNext", "deit": "DeiT", "dinov2": "Bit",
    "efficientnet": "EfficientNet", "resnet": "ConvNext", "siglip": "Siglip", "swin": "ViT", "swinv2": "ViT",
    "vit": "ViT",
}  # fmt: skip
KNOWN_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad")


@dataclass
class Processor:
    """What happens to an image, in this order; a step that is None is skipped. Sizes are (height, width)."""

    size: object  # a pair, or the shortest edge alone
    resample: int
    crops: list
    scale: np.ndarray
    shift: np.ndarray

    @property
    def output_size(self) -> tuple:
        return self.crops[-1] if self.crops else self.size

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resized and cropped, [height, width, 3] of uint8: a quarter of the tensor's memory."""
        if self.size is not None:
            image = resized(image, target_size(self.size, image), self.resample)
        pixels = np.asarray(image)
        for height, width in self.crops:
            pixels = center_crop(pixels, height, width)
        return pixels

    def tensor(self, pixels: np.ndarray) -> np.ndarray:
        """The graph's input for one image, [1, 3, height, width] of float32."""
        values = pixels.astype(np.float32) * self.scale + self.shift
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def target_size(size, image: Image.Image) -> tuple:
    if isinstance(size, tuple):
        return size
    width, height = image.size
    # The longer side is truncated, not rounded.
    return (size * height // width, size) if width <= height else (size, size * width // height)


def resized(image: Image.Image, size: tuple, resample: int) -> Image.Image:
    height, width = size
    if resample == NEAREST:
        pixels = np.asarray(image)
        rows, columns = nearest(pixels.shape[0], height), nearest(pixels.shape[1], width)
        return Image.fromarray(pixels[rows][:, columns])
    # Width first, as torchvision does; in one call Pillow may go the other way.
    return image.resize((width, image.height), resample).resize((width, height), resample)


def nearest(source: int, target: int) -> np.ndarray:
    """torchvision's NEAREST_EXACT, in float32 as there."""
    scale = np.float32(source) / np.float32(target)
    positions = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    return np.minimum(positions, source - 1)


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle; where the image is smaller, black around it."""
    missing = [max(0, wanted - side) for wanted, side in zip((height, width), pixels.shape)]
    if any(missing):
        pixels = np.pad(pixels, [*((side // 2, side - side // 2) for side in missing), (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def from_settings(settings: dict, model_type, file: str) -> Processor:
    """The processor of a preprocessor_config.json; `file` is its name, for errors."""
    name = class_name(settings, model_type, file)
    resample, size, square, crop_size, crops_by_default, (mean, std) = CLASSES[name]

    def given(key: str, default):
        value = settings.get(key)
        return default if value is None else value

    refuse_unknown_steps(settings, name, file)
    size = parsed_size(given("size", size), square, f"{file}: size")
    crops = []
    if name == "ConvNext" and given("do_resize", True):
        size, crops = convnext_sizes(size, given("crop_pct", 224 / 256), file)
    if given("do_center_crop", crops_by_default):
        crop = parsed_size(given("crop_size", crop_size), True, f"{file}: crop_size")
        if not isinstance(crop, tuple):
            raise Refused(f"{file}: crop_size must be a number, or height and width")
        crops.append(crop)
    if not given("do_resize", True):
        size = None
    if not crops and not isinstance(size, tuple):
        raise Refused(f"{file}: with this size and without do_center_crop every image would get a size of its own")
    resample = given("resample", resample)
    if resample not in (0, 1, 2, 3):
        raise Refused(f"{file}: resample {resample!r} is not known; 0 nearest, 1 Lanczos, 2 bilinear and 3 bicubic are")
    mean = channels(given("image_mean", mean), f"{file}: image_mean")
    std = channels(given("image_std", std), f"{file}: image_std")
    scale, shift = normalization(name, given, mean, std)
    return Processor(size, resample, crops, scale.astype(np.float32), shift.astype(np.float32))


def class_name(settings: dict, model_type, file: str) -> str:
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if named is None:
        if model_type in IMPLIED:
            return IMPLIED[model_type]
        raise Refused(f"{file}: image_processor_type is missing, and model_type {model_type!r} does not imply one")
    # Old files say FeatureExtractor; Fast and Pil are backends.
    name, _, backend = str(named).replace("FeatureExtractor", "ImageProcessor").partition("ImageProcessor")
    if name not in CLASSES or backend not in ("", "Fast", "Pil"):
        known = ", ".join(f"{name}ImageProcessor" for name in CLASSES)
        raise Refused(f"{file}: image_processor_type {named!r} is not known; these are: {known}")
    return name


def refuse_unknown_steps(settings: dict, name: str, file: str) -> None:
    for key, value in settings.items():
        pads = key == "do_pad" and name not in ("Beit", "EfficientNet", "ConvNext")
        if key.startswith("do_") and value and (key not in KNOWN_STEPS or pads):
            raise Refused(f"{file}: {key} is a step that is not implemented")


def parsed_size(value, square: bool, what: str):
    """(height, width), or the shortest edge as a number."""
    if isinstance(value, dict):
        sides = {key: side for key, side in value.items() if side is not None}
        if sides.keys() == {"height", "width"}:
            value = (sides["height"], sides["width"])
        elif sides.keys() == {"shortest_edge"}:
            value, square = sides["shortest_edge"], False
    elif isinstance(value, list) and len(value) == 2:
        value = tuple(value)
    sides = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(side, int) and 1 <= side <= 8192 for side in sides):
        raise Refused(f"{what} must be a number, height and width, or shortest_edge alone, not {value!r}")
    return (value, value) if square and len(sides) == 1 else value


def convnext_sizes(size, crop_pct: float, file: str) -> tuple:
    """Small sizes are cut from a larger picture, sizes from 384 on are squashed."""
    if isinstance(size, tuple):
        raise Refused(f"{file}: size must have shortest_edge for a ConvNextImageProcessor")
    return (int(size / crop_pct), [(size, size)]) if size < 384 else ((size, size), [])


def channels(value, what: str) -> np.ndarray:
    values = np.array(value if isinstance(value, list) else [value] * 3, dtype=np.float64)
    if values.shape != (3,):
        raise Refused(f"{what} must be one number per colour channel (3), not {value!r}")
    return values


def normalization(name: str, given, mean: np.ndarray, std: np.ndarray) -> tuple:
    """What a value is multiplied by, and what is then added, per channel."""
    scale, shift = np.ones(3), np.zeros(3)
    if given("do_rescale", True):
        scale *= given("rescale_factor", 1 / 255)
        shift -= 1.0 if name == "EfficientNet" and given("rescale_offset", False) else 0.0
    if given("do_normalize", True):
        scale, shift = scale / std, (shift - mean) / std
    # EfficientNet divides once more.
    if name == "EfficientNet" and given("include_top", True):
        scale, shift = scale / std, shift / std
    if not all(math.isfinite(number) for number in (*scale, *shift)):
        raise Refused("the image processor's image_std must not be 0")
    return scale, shift
