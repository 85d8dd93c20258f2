"""The photos that are sent: four of about 640x480, and one subject in sizes from 0.1 to 50 megapixels, all JPEG."""

import hashlib
import sys

from tools import HERE, SETUP, WORK, say

QUALITY = {"quality": 90, "subsampling": "4:2:0"}
USUAL = ("coffee.png", "rocket.jpg", "china.jpg", "flower.jpg")
# Megapixels to width and height, all 4:3.
SIZES = {
    "0.1": (368, 276),
    "0.3": (640, 480),
    "1": (1152, 864),
    "3": (2000, 1500),
    "12": (4000, 3000),
    "50": (8160, 6120),
}
# A camera's picture is less sharp from pixel to pixel than a photo that was made smaller for the web.
ENLARGED = 2


def make_photos():
    """Makes what is missing; returns the usual photos, and those by megapixels."""
    from wheels import new_folder, stamp_of

    folder = WORK / "photos"
    stamp = hashlib.sha256((HERE / "photos.py").read_bytes() + (HERE / "pillow.txt").read_bytes()).hexdigest()[:16]
    if stamp_of(folder) != stamp:
        say("making photos …")
        import_pillow()
        with new_folder(folder, stamp) as making:
            make_usual(making)
            make_sizes(making)
    usual = [(folder / name).with_suffix(".jpg") for name in USUAL]
    return usual, {size: folder / f"{size}mp.jpg" for size in SIZES}


def import_pillow():
    """Makes Pillow importable, from a folder of the project's own."""
    from wheels import new_folder, run_pip, stamp_of

    pins = HERE / "pillow.txt"
    folder = WORK / "python"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:16]
    stamp = f"{digest} {sys.version_info[0]}.{sys.version_info[1]}"
    if stamp_of(folder) != stamp:
        say("fetching Pillow, 7 MB …")
        with new_folder(folder, stamp) as making:
            run_pip("install", "--no-deps", "--no-compile", "--target", making, "--requirement", pins)
    sys.path.insert(0, str(folder))


def make_usual(folder):
    from PIL import Image

    for name in USUAL:
        photo = Image.open(SETUP / "photos" / name).convert("RGB")
        photo.save((folder / name).with_suffix(".jpg"), **QUALITY)


def make_sizes(folder):
    """Each size shows as many of the photos side by side as it has room for."""
    from PIL import Image

    photos = [Image.open(SETUP / "photos" / name).convert("RGB") for name in USUAL]
    tiles = [photo.resize((photo.width * ENLARGED, photo.height * ENLARGED), Image.LANCZOS) for photo in photos]
    width, height = max(tile.width for tile in tiles), min(tile.height for tile in tiles)
    for size, (columns, rows) in SIZES.items():
        canvas = Image.new("RGB", (columns, rows))
        places = ((x, y) for y in range(0, rows, height) for x in range(0, columns, width))
        for index, place in enumerate(places):
            # Shifted by one in each row, as rows of the same four would be columns of the same photo.
            row = place[1] // height
            canvas.paste(tiles[(index + row) % len(tiles)].resize((width, height)), place)
        canvas.save(folder / f"{size}mp.jpg", **QUALITY)
