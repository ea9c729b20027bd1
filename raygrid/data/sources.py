"""What there is to ingest: class folders, ILSVRC2012's layout, or Parquet files, as one ordered list of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from raygrid.data.ground_truth import read_ground_truth
from raygrid.data.manifest import Part
from raygrid.errors import DataError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FOLDERS = ("val", "valid", "validation", "test")
"""the first that exists holds the test images"""
HELD_OUT = 10
"""one in so many images of a class is for testing where a source has no test part"""


class Entry(NamedTuple):
    """One image to read."""

    file: str
    """path under its part's root"""
    row: int
    """row of a Parquet file; -1 for an image file"""
    label: int
    bytes: int
    """size of the file, to notice on a resume that it changed"""


@dataclass(frozen=True)
class Listing:
    """All images of a source, in the order in which they will be stored."""

    kind: str
    """`folders` or `parquet`"""
    classes: tuple[str, ...]
    roots: dict[Part, str]
    entries: dict[Part, list[Entry]]
    ignored: int = 0
    """files whose names do not end like an image's"""
    held_out: bool = False
    """whether the source had no test part, and `_hold_out` made one"""


def list_source(source: Path, test: Path | None = None, ground_truth: Path | None = None) -> Listing:
    """List a source. Raises DataError where it is none, or where its two parts do not fit together.

    Folders: `source/train/CLASS/...` and `source/{val,valid,validation,test}/CLASS/...`, or `source/CLASS/...` with the
    test images in `test`, or held out of each class where there is no `test`; a test folder without class folders needs
    `ground_truth`. Classes are ordered by name, images by class and path. Parquet: files named train-*, validation-*
    (or test-*), or two folders of them; order as in the files; classes as `raygrid.data.parquet` says.
    """
    for path in (source, test, ground_truth):
        if path is not None and not path.exists():
            raise DataError(f"ingest: {path}: no such file or folder")
    from raygrid.data import parquet

    listing = parquet.list_parquet(source, test) if parquet.is_parquet(source) else _folders(source, test, ground_truth)
    names = {"train": "training", "test": "test"}
    if not listing.classes:
        raise DataError(f"ingest: {source}: no class in it, so nothing to learn; is it the right folder?")
    for part, entries in listing.entries.items():
        held = {entry.label for entry in entries}
        if empty := [name for label, name in enumerate(listing.classes) if label not in held]:
            raise DataError(
                f"ingest: {len(empty)} of {len(listing.classes)} classes have no {names[part]} images in "
                f"{listing.roots[part]}: {_some(empty)}; add images or remove the class from both parts"
            )
    return listing


def _folders(source: Path, test: Path | None, ground_truth: Path | None) -> Listing:
    train = source / "train" if (source / "train").is_dir() else source
    if test is None:
        found = [source / name for name in TEST_FOLDERS if (source / name).is_dir()]
        if train is source and not found and ground_truth is None and len(_subfolders(source)) > 1:
            return _hold_out(source)
        if train is source or not found:
            raise DataError(
                f"ingest: {source}: expected train/CLASS/IMAGES and one of {', '.join(TEST_FOLDERS)} in it, or folders "
                "of two classes or more (or Parquet files); give the folder of test images with --test"
            )
        test = found[0]
    classes = _subfolders(train)
    if not classes:
        raise DataError(f"ingest: {train}: there are no class folders in it (expected {train}/CLASS/IMAGE.jpg)")
    entries, ignored = _class_entries(train, classes)
    test_classes = _subfolders(test)
    if test_classes:
        if test_classes != classes:
            only = [sorted(set(one) - set(other)) for one, other in ((classes, test_classes), (test_classes, classes))]
            raise DataError(
                f"ingest: train and test have different classes: only in {train}: {_some(only[0])}; only in {test}: "
                f"{_some(only[1])}"
            )
        test_entries, more = _class_entries(test, classes)
    else:
        names, more = _image_files(test)
        if not names:
            raise DataError(f"ingest: {test}: there are no images in it")
        if ground_truth is None:
            raise DataError(
                f"ingest: {test} has no class folders; give the file that says which image is of which class with "
                "--ground-truth"
            )
        labels = read_ground_truth(ground_truth, [name for name, _ in names], classes)
        test_entries = [Entry(name, -1, label, size) for (name, size), label in zip(names, labels, strict=True)]
    return Listing(
        "folders",
        tuple(classes),
        {"train": str(train), "test": str(test)},
        {"train": entries, "test": test_entries},
        ignored + more,
    )


def _hold_out(source: Path) -> Listing:
    """Class folders alone: of each class, the one in ten images (at least one) whose CLASS/FILE has the smallest sha256
    are for testing. Names alone decide, so that the same folder is parted alike everywhere."""
    classes = _subfolders(source)
    entries, ignored = _class_entries(source, classes)
    tests: set[Entry] = set()
    for label, held in groupby(entries, lambda entry: entry.label):
        order = sorted(held, key=lambda entry: sha256(entry.file.encode()).digest())
        if len(order) == 1:
            raise DataError(
                f"ingest: {source / classes[label]}: a single image, so that none is left to train on when one is held "
                "out for testing; add images, remove the class, or give the folder of test images with --test"
            )
        tests.update(order[: max(1, len(order) // HELD_OUT)])
    parts: dict[Part, list[Entry]] = {
        "train": [entry for entry in entries if entry not in tests],
        "test": [entry for entry in entries if entry in tests],
    }
    return Listing("folders", tuple(classes), {"train": str(source), "test": str(source)}, parts, ignored, True)


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"ingest: {folder} is not a folder")
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _class_entries(root: Path, classes: Sequence[str]) -> tuple[list[Entry], int]:
    entries: list[Entry] = []
    ignored = 0
    for label, name in enumerate(classes):
        files, more = _image_files(root / name)
        entries += [Entry(f"{name}/{file}", -1, label, size) for file, size in files]
        ignored += more
    return entries, ignored


def _image_files(folder: Path) -> tuple[list[tuple[str, int]], int]:
    """(path under the folder, size) of files named like images, sorted; and how many files are not."""
    files: list[tuple[str, int]] = []
    ignored = 0
    stack = [""]
    while stack:
        inner = stack.pop()
        for entry in os.scandir(folder / inner):
            path = f"{inner}{entry.name}"
            if entry.name.startswith("."):
                continue
            if not path.isprintable():
                raise DataError(f"ingest: {folder}: rename {path!a}: its name is not printable text")
            if entry.is_dir():
                stack.append(f"{path}/")
            elif entry.name.lower().endswith(ENDINGS):
                files.append((path, entry.stat().st_size if entry.is_file() else 0))
            else:
                ignored += 1
    return sorted(files), ignored


def _some(names: Sequence[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
