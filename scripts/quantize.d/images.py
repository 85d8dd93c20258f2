"""The user's images: finding them, dividing them between calibration and comparison, and reading them."""

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from errors import Refused
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
#: More make calibration slower and not better; NNCF's own default.
CALIBRATION_LIMIT = 300
#: More would tell the agreement to better than one percent.
HELD_OUT_LIMIT = 2000
FEWEST_HELD_OUT = 10


@dataclass
class Images:
    """Pixels as the processor makes them of the images that could be read, and what was left out."""

    calibration: list = field(default_factory=list)
    held_out: list = field(default_factory=list)
    unreadable: list = field(default_factory=list)
    duplicates: int = 0


def gather(processor, folder: Path, held_out, share: float) -> Images:
    """Images of `folder` for calibration, and of the folder `held_out`, or a share of the first, for comparison."""
    images = Images()
    files = distinct_files(folder, images, seen=set())
    if held_out is None:
        count = round(share * len(files))
        compared, calibrating = files[:count], files[count:]
    else:
        calibrating = files
        # An image that took part in calibration proves nothing.
        compared = distinct_files(held_out, images, seen={digest for digest, _ in files})
    images.calibration = read(calibrating, processor, CALIBRATION_LIMIT, images)
    images.held_out = read(compared, processor, HELD_OUT_LIMIT, images)
    return images


def check(images: Images, force: bool) -> None:
    """There are images for both purposes, and enough to compare."""
    left_out = ((len(images.unreadable), "cannot be read"), (images.duplicates, "are there twice"))
    reasons = ", ".join(f"{number} {reason}" for number, reason in left_out if number)
    reasons = f" ({reasons})" if reasons else ""
    if not images.calibration:
        raise Refused(f"no image is left to calibrate on{reasons}; give more of them, or a smaller --held-out-share")
    count = len(images.held_out)
    if count < FEWEST_HELD_OUT and not (force and count):
        advice = f"give {FEWEST_HELD_OUT} or more, with --held-out FOLDER or more --images"
        forced = ", or --force to go on with so few" if count else ""
        raise Refused(f"{count} images are left to compare on{reasons}, too few to tell; {advice}{forced}")


def counts(images: Images) -> dict:
    return {
        "calibration": len(images.calibration),
        "held_out": len(images.held_out),
        "unreadable": len(images.unreadable),
        "duplicates": images.duplicates,
    }


def distinct_files(folder: Path, images: Images, seen: set) -> list:
    """(digest, file) of the images in the folder and its subfolders whose content is not among `seen`, in the order of
    their digests: by chance as it were, but the same one every time."""
    if not folder.is_dir():
        raise Refused(f"{folder}: there is no such folder with images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise Refused(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    distinct = []
    for file in files:
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError:
            images.unreadable.append(file)
            continue
        if digest in seen:
            images.duplicates += 1
            continue
        seen.add(digest)
        distinct.append((digest, file))
    return sorted(distinct)


def read(files: list, processor, limit: int, images: Images) -> list:
    pixels = []
    for _, file in files:
        if len(pixels) == limit:
            break
        try:
            pixels.append(processor.pixels(decode(file)))
        except Exception:  # Pillow's decoders raise whatever they stumble over.
            images.unreadable.append(file)
    return pixels


def decode(file: Path) -> Image.Image:
    """RGB, turned as EXIF says; alpha is dropped, as in the reference."""
    with warnings.catch_warnings():
        # Of an image so large that it may be an attack: these are the user's own.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                # The high byte, as the server does; Pillow would clip all above 255 to white.
                image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            return image.convert("RGB")
