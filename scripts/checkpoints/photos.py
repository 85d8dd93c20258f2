"""Pictures to compare on: photos or made-up ones, and from these the shapes and kinds that cause trouble."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from .errors import Refused

ROOT = Path(__file__).resolve().parents[2]
SETUP_PHOTOS = ROOT / ".setup" / "photos"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ORIENTATION = 0x0112


@dataclass
class Photo:
    """An encoded picture."""

    name: str
    content: bytes

    @property
    def is_jpeg(self) -> bool:
        return self.content[:2] == b"\xff\xd8"


def for_comparison(folder: str | None = None, limit: int = 8) -> tuple:
    """Encoded pictures, and in words where they are from: a folder, what scripts/setup fetched, or made up."""
    if folder is not None or SETUP_PHOTOS.is_dir():
        where = Path(folder) if folder is not None else SETUP_PHOTOS
        return [photo.content for photo in read_folder(where)[:limit]], f"photos of {where}"
    made = [encoded(made_up(seed, 500 + 60 * seed, 400), "PNG") for seed in range(4)]
    return made, "made-up pictures (scripts/setup --photos fetches real ones)"


def read_folder(folder: Path) -> list:
    if not folder.is_dir():
        raise Refused(f"{folder}: there is no such folder with photos")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise Refused(f"{folder} holds no photos ({', '.join(SUFFIXES)})")
    return [Photo(file.name, file.read_bytes()) for file in files]


def made_up(seed: int, width: int, height: int) -> Image.Image:
    """Dead leaves: discs of all sizes that hide one another, more or less sharp, with some grain. They have the edges
    and the spectrum of photos (Lee, Mumford and Huang, "Occlusion models for natural images", 2001)."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    center, contrast = random.uniform(40, 210), random.uniform(10, 80)
    # How many discs there are of a radius falls off with its third power.
    smallest = random.choice([2, 4, 8, 16])
    radii = smallest / np.sqrt(random.uniform((smallest / max(width, height)) ** 2, 1, 8000 // smallest))
    for radius in radii:
        x, y = random.uniform(0, width), random.uniform(0, height)
        color = random.normal(center, contrast) + random.normal(0, contrast / 3, 3)
        color = np.clip(color, 0, 255).astype(int)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(color.tolist()))
    image = image.filter(ImageFilter.GaussianBlur(float(random.choice([0, 0.5, 1, 2, 4]))))
    grain = random.normal(0, random.uniform(0, 8), (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).round().astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def for_parity(folder: Path, seed: int, quick: bool) -> list:
    """Photos drawn from the folder and cropped at random, and derived ones: all of them lossless, many as JPEG too."""
    random = np.random.default_rng(seed)
    originals = read_folder(folder)
    chosen = sorted(random.permutation(len(originals))[: 5 if quick else 8])
    originals = [originals[index] for index in chosen]
    photos = [original for original in originals if original.is_jpeg]
    crops = []
    for index, original in enumerate(originals):
        crop = random_crop(Image.open(io.BytesIO(original.content)), random)
        name = Path(original.name).stem
        photos.append(Photo(f"{name}.png", encoded(crop, "PNG", compress_level=1)))
        if index % 2 == 0:
            photos.append(as_jpeg(name, crop, index // 2, {}))
        crops.append(crop)
    for index, (name, image, options) in enumerate(derived(crops, random)):
        photos.append(Photo(f"{name}.png", encoded(image, "PNG", compress_level=1, **options)))
        if image.mode in ("RGB", "L"):
            photos.append(as_jpeg(name, image, index, options))
    return photos


def as_jpeg(name: str, image: Image.Image, index: int, options: dict) -> Photo:
    """Of quality 90, with one of the usual subsamplings, which decoders treat differently."""
    subsampling = ("4:2:0", "4:2:2", "4:4:4")[index % 3]
    return Photo(f"{name} {subsampling}.jpg", encoded(image, "JPEG", quality=90, subsampling=subsampling, **options))


def random_crop(image: Image.Image, random) -> Image.Image:
    """Seven to ten tenths of each side, so that every seed has photos of its own."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    width, height = (max(1, int(side * random.uniform(0.7, 1.0))) for side in image.size)
    left, top = (int(random.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height)))
    return image.crop((left, top, left + width, top + height))


def derived(crops: list, random):
    """Names, pictures, and options for the encoder."""

    def pick():
        return crops[int(random.integers(len(crops)))]

    yield "tiny 32x32", pick().resize((32, 32)), {}
    yield "panorama 4000x300", pick().resize((4000, 300)), {}
    yield "12 megapixels", pick().resize((4000, 3000), Image.Resampling.BICUBIC), {}
    yield "gray", pick().convert("L"), {}
    yield "small 100x80", pick().resize((100, 80)), {}
    yield "tall 150x900", pick().resize((150, 900)), {}
    turned = Image.Exif()
    turned[ORIENTATION] = int(random.integers(5, 9))
    yield f"EXIF orientation {turned[ORIENTATION]}", pick().resize((420, 300)), {"exif": turned.tobytes()}
    with_alpha = pick().resize((300, 260)).convert("RGBA")
    with_alpha.putalpha(Image.fromarray(random.integers(0, 256, (260, 300), dtype=np.uint8)))
    yield "RGBA", with_alpha, {}
    yield "palette", pick().quantize(64), {}
