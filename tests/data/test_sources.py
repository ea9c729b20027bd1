"""Laws: every layout gives the same list of images; what does not fit together is one message before any work."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygrid.data import ilsvrc2012
from raygrid.data.parquet import read_rows
from raygrid.data.sources import Listing, list_source
from raygrid.errors import DataError

CLASSES = ("bus", "car", "cloud", "sun")


def seen(listing: Listing) -> dict[str, list[tuple[str, str]]]:
    """(file name, class) of every image."""
    return {
        part: [(Path(e.file).name, listing.classes[e.label]) for e in held] for part, held in listing.entries.items()
    }


def test_class_folders(image_folder: Path) -> None:
    listing = list_source(image_folder)
    assert listing.classes == CLASSES, "classes are not in ascending order"
    assert [len(listing.entries[part]) for part in ("train", "test")] == [96, 28]
    assert listing.ignored == 1
    files = [e.file for e in listing.entries["train"]]
    assert files == sorted(files)
    assert seen(list_source(image_folder / "train", test=image_folder / "val")) == seen(listing)
    assert list_source(image_folder, test=image_folder / "train").entries["test"] == listing.entries["train"]


def flat(folder: Path) -> tuple[dict[str, str], Path]:
    """Make val/ flat: {file: class}."""
    truth = {}
    for name in CLASSES:
        for path in sorted((folder / "val" / name).iterdir()):
            new = f"ILSVRC2012_val_{(len(truth) * 17) % 28 + 1:08d}{path.suffix}"
            path.rename(folder / "val" / new)
            truth[new] = name
        (folder / "val" / name).rmdir()
    return truth, folder / "truth.txt"


def devkit(file: Path, lines: list[str]) -> None:
    """The devkit's numbers, in an order of their own, and its meta.mat."""
    from scipy.io import savemat

    ids = {name: number for number, name in zip((3, 1, 4, 2), CLASSES, strict=True)}
    synsets = np.array([(ids[n], n, "words") for n in CLASSES], [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    savemat(file.parent / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    file.write_text("".join(f"{ids[line]}\n" for line in lines))


FORMS: dict[str, Callable[[Path, dict[str, str]], object]] = {
    "name and class": lambda f, t: f.write_text("".join(f"{n} {c}\n" for n, c in reversed(t.items()))),
    "name and index": lambda f, t: f.write_text("".join(f"{n} {CLASSES.index(c)}\n" for n, c in t.items())),
    "kaggle": lambda f, t: f.write_text(
        "ImageId,PredictionString\n" + "".join(f"{Path(n).stem},{c} 1 2 3 4 {c} 5 6 7 8\n" for n, c in t.items())
    ),
    "classes": lambda f, t: f.write_text("".join(f"{t[n]}\n" for n in sorted(t))),
    "devkit": lambda f, t: devkit(f, [t[n] for n in sorted(t)]),
}


@pytest.mark.parametrize("form", FORMS)
def test_ground_truth(own_folder: Path, form: str) -> None:
    truth, file = flat(own_folder)
    FORMS[form](file, truth)
    assert dict(seen(list_source(own_folder, ground_truth=file))["test"]) == truth


WRONG_TRUTH: dict[str, tuple[Callable[[Path, dict[str, str]], object], str]] = {
    "no file": (lambda f, t: None, "no such file"),
    "short": (lambda f, t: f.write_text("bus\n" * 27), "27 lines for 28 images"),
    "empty": (lambda f, t: f.write_text(""), "0 lines for 28 images"),
    "numbers alone": (lambda f, t: f.write_text("1\n" * 28), r"the devkit's meta\.mat"),
    "not a meta.mat": (
        lambda f, t: (f.write_text("1\n" * 28), (f.parent / "meta.mat").write_text("x")),
        "not the devkit's",
    ),
    "class": (
        lambda f, t: f.write_text("".join(f"{n} buss\n" for n in t)),
        r"'buss' .* is no class.*did you mean 'bus'",
    ),
    "index": (lambda f, t: f.write_text("".join(f"{n} 4\n" for n in t)), "nor a number from 0 to 3"),
    "negative": (lambda f, t: f.write_text("".join(f"{n} -1\n" for n in t)), "label '-1'"),
    "image": (lambda f, t: f.write_text("other.jpg bus\n" * 28), "no line for the image ILSVRC2012_val_00000001"),
    "binary": (lambda f, t: f.write_bytes(b"\xff\xfe\x00"), "cannot be read as text"),
}


@pytest.mark.fault("a wrong ground-truth file")
@pytest.mark.parametrize("kind", WRONG_TRUTH)
def test_wrong_ground_truth(own_folder: Path, kind: str) -> None:
    truth, file = flat(own_folder)
    write, message = WRONG_TRUTH[kind]
    write(file, truth)
    with pytest.raises(DataError, match=message):
        list_source(own_folder, ground_truth=file)


def remove(path: Path) -> None:
    shutil.rmtree(path)


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def test_without_a_test_part_one_in_ten_images_of_each_class_is_held_out_by_its_name(
    own_folder: Path, tmp_path: Path
) -> None:
    source = own_folder / "train"
    for number in range(21):
        (source / "sun" / "more").mkdir(exist_ok=True)
        shutil.copy(source / "sun" / "train_001.JPEG", source / "sun" / "more" / f"{number}.jpg")
    for path in sorted((source / "bus").iterdir())[2:]:
        path.unlink()
    listing = list_source(source)
    assert listing.held_out and listing.classes == CLASSES and listing.ignored == 1
    parts = {part: [entry.file for entry in held] for part, held in listing.entries.items()}
    files = sorted(str(path.relative_to(source)) for path in source.rglob("[t0-9]*.[pjJ]*"))
    assert sorted(parts["train"] + parts["test"]) == files and all(held == sorted(held) for held in parts.values())
    for name, count in {"bus": 1, "car": 2, "cloud": 2, "sun": 4}.items():
        own = sorted((f for f in files if f.startswith(f"{name}/")), key=lambda f: sha256(f.encode()).hexdigest())
        assert [f for f in parts["test"] if f in own] == sorted(own[:count])
    for path in source.rglob("*.JPEG"):
        path.write_bytes(b"other bytes")
    again = list_source(Path(shutil.copytree(source, tmp_path / "elsewhere")))
    assert {part: [entry.file for entry in held] for part, held in again.entries.items()} == parts
    given = list_source(source, test=own_folder / "val")
    assert [e.file for e in given.entries["train"]] == files and not given.held_out, "with a test part all is training"


WRONG_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda r: empty(r), "expected train/CLASS/IMAGES and one of val"),
    "no test": (lambda r: remove(r / "val"), "give the folder of test images with --test"),
    "one class without parts": (lambda r: (remove(r / "val"), (r / "train").rename(r / "all")), "two classes or more"),
    "flat": (lambda r: flat(r), "--ground-truth"),
    "class only in train": (
        lambda r: remove(r / "val" / "sun"),
        "different classes.*only in .*train: sun; only in .*: none",
    ),
    "class only in test": (lambda r: (r / "val" / "moon").mkdir(), "only in .*val: moon"),
    "class without images": (lambda r: empty(r / "train" / "sun"), "1 of 4 classes have no training images in .*: sun"),
    "class without test images": (lambda r: empty(r / "val" / "car"), "no test images in .*: car"),
    "no classes": (lambda r: empty(r / "train"), "no class folders"),
    "name": (lambda r: (r / "train" / "sun" / "a\nb.jpg").touch(), "rename"),
}


def test_nothing_can_be_held_out_of_a_single_image(own_folder: Path, tmp_path: Path) -> None:
    for path in sorted((own_folder / "train" / "car").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match=r"train.car: a single image, .* none is left to train on .*--test") as caught:
        list_source(own_folder / "train")
    assert "\n" not in str(caught.value)
    assert list_source(own_folder / "train", test=own_folder / "val").classes == CLASSES
    (tmp_path / "truth.txt").touch()
    with pytest.raises(DataError, match=r"expected train/CLASS/IMAGES .* --test"):
        list_source(own_folder / "train", ground_truth=tmp_path / "truth.txt")


@pytest.mark.fault("a folder that is no data set")
@pytest.mark.parametrize("kind", WRONG_FOLDERS)
def test_wrong_folders(own_folder: Path, kind: str) -> None:
    spoil, message = WRONG_FOLDERS[kind]
    spoil(own_folder)
    with pytest.raises(DataError, match=message) as caught:
        list_source(own_folder)
    assert "\n" not in str(caught.value)


# --- Parquet ----------------------------------------------------------------------------------------------------------


def parquet(folder: Path, labels: dict[str, list], names: list[str] | None = None, struct: bool = True) -> Path:
    """Files as Hugging Face writes them, in row groups of 3; an image's bytes are its file's name and row."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, column in labels.items():
        data = [f"{name}:{i}".encode() for i in range(len(column))]
        images = [{"bytes": b, "path": None} for b in data] if struct else data
        table = pa.table({"image": images, "label": column})
        if names is not None:
            features = {"label": {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=3)
    return folder


def test_parquet_with_names(tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "data",
        {"train-00000-of-00002": [1, 0, 1], "train-00001-of-00002": [2, 2], "validation-00000-of-00001": [0, 1, 2],
         "test-00000-of-00001": [-1, -1]},
        ["zebra", "ant", "mole"],
    ).parent  # fmt: skip
    listing = list_source(source)
    assert listing.kind == "parquet"
    assert listing.classes == ("zebra", "ant", "mole"), "the files' own order of classes was lost"
    assert [(e.file, e.row, e.label) for e in listing.entries["train"]] == [
        ("train-00000-of-00002.parquet", 0, 1),
        ("train-00000-of-00002.parquet", 1, 0),
        ("train-00000-of-00002.parquet", 2, 1),
        ("train-00001-of-00002.parquet", 0, 2),
        ("train-00001-of-00002.parquet", 1, 2),
    ]
    assert [e.label for e in listing.entries["test"]] == [0, 1, 2]


def test_parquet_without_names(tmp_path: Path) -> None:
    numbers = parquet(tmp_path / "n", {"train": [10, *range(10)], "test": list(range(11))}, struct=False)
    assert list_source(numbers).classes == ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10")
    texts = parquet(tmp_path / "t", {"train": ["b", "a"], "test": ["a", "b"]})
    assert list_source(texts).classes == ("a", "b")
    assert [e.label for e in list_source(texts).entries["train"]] == [1, 0]
    two = parquet(tmp_path / "u", {"all": ["b", "a"]}), parquet(tmp_path / "v", {"other": ["a", "b"]})
    assert [e.label for e in list_source(two[0], test=two[1]).entries["test"]] == [0, 1]


def test_parquet_that_nobody_can_learn_from(tmp_path: Path) -> None:
    for name, labels, message in (
        ("lists", {"train": [[1], [2]], "test": [[1], [2]]}, r"whole numbers or texts; found \[1\]"),
        ("halves", {"train": [0.5, 1.0], "test": [0.5, 1.0]}, "whole numbers or texts; found 0.5"),
        ("empty", {"train": pa.array([], pa.int64()), "test": pa.array([], pa.int64())}, "no class in it"),
    ):
        with pytest.raises(DataError, match=message):
            list_source(parquet(tmp_path / name, labels))  # type: ignore[arg-type]


def test_parquet_of_imagenet_gets_wnids(tmp_path: Path) -> None:
    words = [words for _, words in ilsvrc2012.synsets()]
    source = parquet(tmp_path, {"train-0": list(range(1000)), "validation-0": list(range(1000))}, words)
    assert list_source(source).classes == ilsvrc2012.wnids()


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("rows", [[0], [9], [2, 3], [0, 4, 8, 9], list(range(10)), []])
def test_parquet_rows(tmp_path: Path, rows: list[int], struct: bool) -> None:
    folder = parquet(tmp_path, {"train": [0] * 10}, struct=struct)
    assert list(read_rows(folder / "train.parquet", rows)) == [f"train:{row}".encode() for row in rows]


WRONG_PARQUET: dict[str, tuple[dict[str, list], list[str] | None, str]] = {
    "negative": ({"train": [0, 1], "test": [0, -1]}, None, r"test\.parquet: row 1 has the label -1"),
    "beyond": ({"train": [0, 1, 2], "test": [0, 1]}, ["a", "b"], r"train\.parquet: row 2 has the label 2, .* 0 to 1"),
    "null": ({"train": [0, None], "test": [0, 1]}, None, "row 1 has no label"),
    "gap": ({"train": [0, 2], "test": [0, 2]}, None, "1 of 3 classes have no training images in .*: 1"),
    "huge": ({"train": [0, 10**9], "test": [0]}, None, "largest label is 1000000000"),
    "fractions": ({"train": [0.5], "test": [0.5]}, None, "whole numbers or texts"),
    "no test": ({"train": [0]}, None, "give the test images' files with --test"),
    "class only in test": ({"train": ["a"], "test": ["a", "b"]}, None, "no training images in .*: b"),
}


@pytest.mark.fault("a wrong Parquet file")
@pytest.mark.parametrize("kind", WRONG_PARQUET)
def test_wrong_parquet(tmp_path: Path, kind: str) -> None:
    labels, names, message = WRONG_PARQUET[kind]
    with pytest.raises(DataError, match=message):
        list_source(parquet(tmp_path, labels, names))


@pytest.mark.parametrize("kind", ["damaged", "columns"])
def test_other_parquet(tmp_path: Path, kind: str) -> None:
    if kind == "damaged":
        (tmp_path / "train.parquet").write_bytes(b"PAR1" + b"x" * 50)
    else:
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    (tmp_path / "test.parquet").write_bytes((tmp_path / "train.parquet").read_bytes())
    with pytest.raises(DataError, match=r"not a readable Parquet file|no column of labels .* found text"):
        list_source(tmp_path)
