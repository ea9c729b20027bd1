"""Files that say of which class the images of a flat folder are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raygrid.errors import DataError, closest


def read_ground_truth(file: Path, images: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Class index of every image, in the order of `images` (file names, sorted).

    Known forms, told apart by their content:

    * `NAME LABEL` a line, where the label is a class name or an index from 0 in the order of the class names (Caffe's
      `val.txt`);
    * `ImageId,PredictionString` with the class first in the second column (Kaggle's `LOC_val_solution.csv`);
    * one class name a line, one line an image, in the order of the file names;
    * one number a line: the devkit's `ILSVRC2012_validation_ground_truth.txt`. Its numbers are *not* in the order of
      the wnids: they are translated by the devkit's `meta.mat`, which must lie in the same folder.

    Raises DataError for anything else, an image without a label, or a label that is no class.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"ground truth {file}: cannot be read as text ({error})") from None
    index = {name: i for i, name in enumerate(classes)}
    if lines and lines[0].lower().replace(" ", "") == "imageid,predictionstring":
        pairs = [line.partition(",")[::2] for line in lines[1:]]
        return _by_name(
            file, [(name, labels.split()[0] if labels.split() else "") for name, labels in pairs], images, index
        )
    words = [line.split() for line in lines]
    if lines and all(len(line) == 2 for line in words):
        return _by_name(file, [(name, label) for name, label in words], images, index)
    if len(lines) != len(images):
        raise DataError(
            f"ground truth {file}: {len(lines)} lines for {len(images)} images; expected a line an image, or lines of "
            "NAME LABEL"
        )
    if all(line in index for line in lines):
        return [index[line] for line in lines]
    if all(line.isdecimal() for line in lines):
        wnids = _devkit(file)
        lines = [wnids.get(int(line), line) for line in lines]
    return [_label(file, line, image, index, numbers=False) for line, image in zip(lines, images, strict=True)]


def _by_name(file: Path, pairs: Sequence[tuple[str, str]], images: Sequence[str], index: dict[str, int]) -> list[int]:
    labels = {Path(name).stem: label for name, label in pairs}
    result = []
    for image in images:
        if (label := labels.get(Path(image).stem)) is None:
            raise DataError(f"ground truth {file}: it has no line for the image {image}")
        result.append(_label(file, label, image, index, numbers=True))
    return result


def _label(file: Path, label: str, image: str, index: dict[str, int], numbers: bool) -> int:
    if label in index:
        return index[label]
    if numbers and label.isdecimal() and int(label) < len(index):
        return int(label)
    allowed = closest(label, index) if len(index) <= 50 else ""
    wanted = f"no class, nor a number from 0 to {len(index) - 1}" if numbers else "no class of the training images"
    raise DataError(f"ground truth {file}: label {label!r} of image {image} is {wanted}{allowed}")


def _devkit(file: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid."""
    meta = file.parent / "meta.mat"
    if not meta.is_file():
        raise DataError(
            f"ground truth {file}: its numbers follow the devkit's own order, not the order of the wnids; put the "
            f"devkit's meta.mat beside it ({meta})"
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, simplify_cells=True)["synsets"]
        return {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # scipy raises many kinds of error on a damaged file
        raise DataError(f"{meta}: not the devkit's meta.mat ({' '.join(str(error).split())[:100]})") from None
