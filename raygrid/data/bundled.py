"""Data sets that need no network: the icons that ship with raygrid, and scikit-learn's digits."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from raygrid.data.manifest import Group, Manifest
from raygrid.data.shards import write_data_set
from raygrid.errors import DataError

ICONS = Path(__file__).parent / "icons40"
TILE = 32


def icons40(folder: Path) -> Manifest:
    """Write the 40 classes of icons (32 pixels; 3,409 + 1,023 images) to a folder.

    Test icons are by other authors than training icons. Author and licence of every icon: `icons40.csv`. A few per
    cent of the labels are wrong.
    """
    from PIL import Image

    with (ICONS / "icons40.csv").open(encoding="utf-8", newline="") as handle:
        tiles = list(csv.DictReader(handle))
    with Image.open(ICONS / "icons40.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    high, wide = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    grid = pixels.reshape(high, TILE, wide, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    groups: dict[str, Group] = {}
    for tile in tiles:
        groups[tile["class"]] = "natural" if tile["group"] == "natural" else "man-made"
    order = {name: index for index, name in enumerate(groups)}
    labels = np.array([order[tile["class"]] for tile in tiles])
    numbers = np.array([int(tile["tile"]) for tile in tiles])
    parts = np.array([tile["split"] for tile in tiles])
    return write_data_set(
        folder,
        name="icons40",
        classes=tuple(groups),
        groups=tuple(groups.values()),
        parts={
            "train": (grid[numbers[parts == "train"]], labels[parts == "train"]),
            "test": (grid[numbers[parts == "test"]], labels[parts == "test"]),
        },
        preprocessing={"pixels": "icons drawn at 32 pixels, as in icons40.png"},
        source="raygrid/data/icons40/icons40.png",
        licence="one an icon, in icons40.csv (MIT, Apache-2.0, CC-BY-4.0, OFL, ISC, BSD-3, Unlicense)",
    )


def digits(folder: Path) -> Manifest:
    """Write scikit-learn's 1,797 handwritten digits to a folder: 8 x 8 pixels, grey to RGB. Every fifth image is a test
    image. Quick; for trying the plumbing. Raises DataError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "data set digits: it comes with scikit-learn, which is not installed (pip install scikit-learn)"
        ) from None
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = np.asarray(bunch.target, np.int64)
    test = np.arange(len(labels)) % 5 == 4
    return write_data_set(
        folder,
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        groups=(None,) * 10,
        parts={"train": (pixels[~test], labels[~test]), "test": (pixels[test], labels[test])},
        preprocessing={"pixels": "8 x 8 grey, 0..16 scaled to 0..255, grey to RGB"},
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test part)",
        licence="CC BY 4.0 (UCI); scikit-learn: BSD-3-Clause",
    )
