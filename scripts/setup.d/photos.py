"""Photos for tests, out of wheels that ship some."""

import re

from wheels import SETUP, extract, fetched, new_folder, say

FOLDER = SETUP / "photos"
# The system and the Python that the pinned hashes are of.
OPTIONS = ("--platform=manylinux_2_28_x86_64", "--implementation=cp", "--python-version=3.12", "--abi=cp312")

# Per package: the folder in its wheel, and what it says of each photo.
PHOTOS = {
    "scikit_image": (
        "skimage/data",
        {
            "astronaut.png": "public domain, NASA",
            "brick.png": "CC0, CC0Textures",
            "camera.png": "CC0, Lav Varshney",
            "chelsea.png": "CC0, Stefan van der Walt",
            "clock_motion.png": "public domain, Stefan van der Walt",
            "coffee.png": "CC0, Rachel Michetti",
            "coins.png": "no known copyright restrictions, Brooklyn Museum",
            "grass.png": "CC0",
            "gravel.png": "CC0, CC0Textures",
            "hubble_deep_field.jpg": "public domain, NASA",
            "ihc.png": "no known copyright restrictions, Center for Microscopy And Molecular Imaging",
            "moon.png": "the package's BSD-3-Clause",
            "motorcycle_left.png": "the package's BSD-3-Clause; from the Middlebury stereo benchmark 2014",
            "motorcycle_right.png": "the package's BSD-3-Clause; from the Middlebury stereo benchmark 2014",
            "page.png": "the package's BSD-3-Clause",
            "retina.jpg": "CC0, by way of Wikimedia Commons",
            "rocket.jpg": "public domain, SpaceX",
            "text.png": "public domain, by way of Wikipedia",
        },
    ),
    "scikit_learn": (
        "sklearn/datasets/images",
        {"china.jpg": "CC BY 2.0, danielbuechele (Flickr)", "flower.jpg": "CC BY 2.0, vultilion (Flickr)"},
    ),
    "holoviews": (
        "holoviews/examples/assets",
        {"macaw.png": "the package's BSD-3-Clause", "penguins.png": "the package's BSD-3-Clause"},
    ),
}


def folder(_name):
    return FOLDER


def make(targets):
    """Makes the folder; `targets` is its stamp by its name."""
    (stamp,) = targets.values()
    say("fetching photos, 29 MB …")
    with fetched("photos.txt", options=OPTIONS) as wheels, new_folder(FOLDER, stamp) as making:
        sources = ["Where each photo is from, and the licence that its package states:", ""]
        for package, (inside, photos) in PHOTOS.items():
            release = "-".join(wheels[package].name.split("-")[:2])
            for name, licence in photos.items():
                extract(wheels[package], re.escape(f"{inside}/{name}"), making)
                sources.append(f"{name}: {release}, {inside}; {licence}")
        (making / "SOURCES.txt").write_text("\n".join(sources) + "\n")
