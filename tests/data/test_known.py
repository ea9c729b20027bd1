"""Laws: a known data set is what its pin says, or an error; planning needs no pixels; the study's pin is obeyed."""

import csv
from pathlib import Path

import numpy as np
import pytest

from raygrid.data import bundled, cifar10, known
from raygrid.data.arrays import Arrays, statistics
from raygrid.data.cache import VERIFIED
from raygrid.data.known import KNOWN, facts, prepare
from raygrid.errors import DataError
from raygrid.splits import divide
from raygrid.study import Dataset, RandomSplit, SemanticSplit


@pytest.mark.parametrize("name", ["icons40", "digits"])
def test_content_is_as_pinned(name: str) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    manifest, folder = prepare(Dataset(name=name), progress=False)
    assert manifest.facts() == KNOWN[name]
    assert manifest.sha256 in str(folder) and (Path(folder) / VERIFIED).exists()


def test_icons_are_as_described(icons: Arrays) -> None:
    assert (len(icons.train), len(icons.test), icons.train.size) == (3409, 1023, 32)
    with (bundled.ICONS / "icons40.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4432 and all(row["licence"] and row["author"] for row in rows), "the attribution is missing"
    from PIL import Image

    tile = rows[1000]
    part = icons.train if tile["split"] == "train" else icons.test
    number = int(tile["tile"])
    box = (number % 64 * 32, number // 64 * 32, number % 64 * 32 + 32, number // 64 * 32 + 32)
    with Image.open(bundled.ICONS / "icons40.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB").crop(box))
    same = [
        r for r in part.rows([KNOWN["icons40"].classes.index(tile["class"])]) if (part.gather([r])[0] == pixels).all()
    ]
    assert same, "a tile is not where its label says"
    assert statistics(icons.train, np.arange(3409), "channel")["mean"].min() > 100


@pytest.mark.parametrize("name", ["cifar10", "icons40"])
def test_splits_are_the_golden_ones(name: str) -> None:
    with (Path(__file__).parent / "splits.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["dataset"] == name]
    pinned = KNOWN[name]
    assert [row["class_name"] for row in rows] == list(pinned.classes)
    assert [row["group"] for row in rows] == list(pinned.groups)
    for column, split in (
        ("semantic_half", SemanticSplit(kind="semantic")),
        *((f"random_{seed}", RandomSplit(kind="random", seed=seed)) for seed in range(4)),
    ):
        halves = divide(split, pinned.classes, pinned.groups)
        for half in ("A", "B"):
            assert halves.classes(half) == tuple(i for i, row in enumerate(rows) if row[column] == half), column


def test_planning_reads_nothing(own_cache: Path) -> None:
    for name in (*KNOWN, "imagenet"):
        assert facts(Dataset(name=name)).name == name
    assert not own_cache.exists()


def test_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = prepare(Dataset(name="icons40"), progress=False)
    path = next(Path(folder).glob("train-*-images-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])  # damaged: made again
    _, again = prepare(Dataset(name="icons40"), progress=False)
    assert again == folder and path.read_bytes() == whole
    monkeypatch.setattr(bundled, "icons40", None)  # not made a third time
    prepare(Dataset(name="icons40"), progress=False)


def test_what_a_killed_process_left_is_removed(own_cache: Path) -> None:
    left = own_cache / "data" / f".making-{KNOWN['icons40'].sha256[:12]}-abc"
    left.mkdir(parents=True)
    _, folder = prepare(Dataset(name="icons40"), progress=False)
    assert not left.exists()
    assert sorted(p.name for p in Path(folder).parent.iterdir()) == [Path(folder).name, Path(folder).name + ".lock"]


@pytest.mark.parametrize("length", [8, 16, 64])
def test_the_studys_pin(length: int) -> None:
    sha256 = KNOWN["icons40"].sha256[:length]
    assert facts(Dataset(name="icons40", sha256=sha256)) == KNOWN["icons40"]
    wrong = Dataset(name="icons40", sha256=("0" if sha256[0] != "0" else "1") + sha256[1:])
    for action in (facts, prepare):
        with pytest.raises(
            DataError, match=f"the study pins {wrong.sha256}, but icons40 has the content hash 58d08ef9"
        ):
            action(wrong)


@pytest.mark.fault("a data set that is not what is pinned")
def test_content_that_is_not_as_pinned(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    changed = KNOWN["icons40"].model_copy(update={"sha256": "f" * 64})
    monkeypatch.setitem(known.KNOWN, "icons40", changed)
    with pytest.raises(DataError, match="its source changed"):
        prepare(Dataset(name="icons40"), progress=False)
    assert not list((own_cache / "data").glob("[!f]*")), "the wrong content stayed"


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"no data set is called 'cifar-10'.*did you mean 'cifar10'.*raygrid\.ingest"):
        facts(Dataset(name="cifar-10"))


def test_imagenet_can_be_planned_but_not_launched() -> None:
    nominal = facts(Dataset(name="imagenet"))
    assert (sum(nominal.train), sum(nominal.test)) == (1_281_167, 50_000)
    assert max(nominal.train) == 1300 and len(nominal.classes) == 1000
    assert nominal.sha256 == "nominal"
    with pytest.raises(DataError, match=r"raygrid\.ingest ILSVRC2012"):
        prepare(Dataset(name="imagenet"))
    with pytest.raises(DataError, match="the study pins"):
        facts(Dataset(name="imagenet", sha256="0123456789"))


def test_ingested_folder(icons: Arrays, tmp_path: Path) -> None:
    folder = Path(icons.train._files[0][0]).parent
    assert facts(Dataset(name="icons40", path=str(folder))) == KNOWN["icons40"]
    assert facts(Dataset(name="icons40", path=f"file://{folder}")) == KNOWN["icons40"]
    assert prepare(Dataset(name="icons40", path=str(folder))) == (icons.manifest, folder)
    with pytest.raises(DataError, match=r"write dataset\.name: icons40"):
        facts(Dataset(name="mine", path=str(folder)))
    with pytest.raises(DataError, match="the study pins 00000000"):
        facts(Dataset(name="icons40", path=str(folder), sha256="00000000"))
    with pytest.raises(DataError, match=r"there is no manifest\.json"):
        facts(Dataset(name="mine", path=str(tmp_path)))


def test_cifar10_groups() -> None:
    assert [c for c, g in zip(cifar10.CLASSES, cifar10.GROUPS, strict=True) if g == "man-made"] == [
        "airplane", "automobile", "ship", "truck",
    ]  # fmt: skip
