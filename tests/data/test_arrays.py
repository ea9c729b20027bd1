"""Laws: gather is indexing, however the images are sharded; rows are canonical; statistics are exact."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from raygrid.data import arrays
from raygrid.data.arrays import Arrays, Images, statistics
from raygrid.data.cache import verify
from raygrid.data.manifest import Manifest
from raygrid.data.shards import encode
from raygrid.errors import DataError


def resharded(whole: Arrays, folder: Path, pieces: int) -> Images:
    """The training images again, in so many shards of unequal size."""
    n = len(whole.train)
    cuts = sorted(np.random.default_rng(pieces).choice(np.arange(1, n), pieces - 1, replace=False))
    shards = []
    for index, rows in enumerate(np.split(np.arange(n), cuts)):
        shard, files = encode("train", index, whole.train.gather(rows), whole.train.labels[rows].astype(np.int16))
        shards.append(shard)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    manifest = whole.manifest.model_copy(update={"shards": (*shards, *whole.manifest.of("test"))})
    return Images(folder, manifest, "train")


@pytest.mark.parametrize("pieces", [1, 2, 60])
def test_gather_is_indexing(icons: Arrays, tmp_path: Path, pieces: int) -> None:
    images = resharded(icons, tmp_path, pieces)
    (path, _, _), *_ = icons.train._files
    truth = np.load(path)
    assert np.array_equal(images.labels, icons.train.labels) and images.labels.dtype == np.int64
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = random.integers(0, len(images), random.integers(0, 300))
        got = images.gather(rows)
        assert np.array_equal(got, truth[rows])
        assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.owndata and got.flags.writeable
        got[:] = 0  # a copy: the file does not change
    assert np.array_equal(images.gather(np.arange(len(images))), truth)


@pytest.mark.parametrize("rows", [[-1], [0, 3409], [10**12]])
def test_rows_that_are_not_there(icons: Arrays, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="3409 images"):
        icons.train.gather(np.array(rows))


def test_rows_are_canonical(icons: Arrays) -> None:
    labels = icons.train.labels
    rows = icons.train.rows([21, 3, 9])
    assert rows.dtype == np.int64
    assert np.array_equal(rows, icons.train.rows([3, 9, 21, 3]))
    assert rows.tolist() == sorted(rows.tolist(), key=lambda r: (labels[r], r))
    assert len(rows) == sum(icons.manifest.train[c] for c in (3, 9, 21))
    few = icons.train.rows([3, 9], 30)  # class 9 has 27
    assert len(few) == 30 + 27
    assert np.array_equal(few[:30], icons.train.rows([3])[:30])
    assert len(icons.train.rows([])) == 0


def test_images_pickle_as_paths(icons: Arrays) -> None:
    _ = icons.train.labels, icons.train.gather(np.arange(5))
    text = pickle.dumps(icons.train)
    assert len(text) < 2000
    again = pickle.loads(text)
    assert np.array_equal(again.gather(np.arange(5)), icons.train.gather(np.arange(5)))


def test_statistics_are_exact(icons: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = icons.train.rows([0, 5, 30])
    pixels = icons.train.gather(rows).astype(np.float64)
    channel = statistics(icons.train, rows, "channel")
    assert set(channel) == {"mean", "std"}
    np.testing.assert_allclose(channel["mean"], pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(channel["std"], pixels.std((0, 1, 2)), rtol=1e-9)
    mean = statistics(icons.train, rows, "mean-image")
    assert mean["mean"].shape == (32, 32, 3) and mean["mean"].dtype == np.float64
    np.testing.assert_allclose(mean["mean"], pixels.mean(0), rtol=1e-12)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 7 * 32 * 32 * 3)
    shuffled = np.random.default_rng(0).permutation(rows)
    for kind, before in (("channel", channel), ("mean-image", mean)):
        after = statistics(icons.train, shuffled, kind)
        assert all(after[name].tobytes() == before[name].tobytes() for name in before), "order or chunks changed a bit"


def test_statistics_do_not_overflow(tmp_path: Path) -> None:
    from raygrid.data.arrays import open_folder
    from raygrid.data.shards import write_data_set

    white = np.full((70_000, 1, 1, 3), 255, np.uint8)
    labels = np.zeros(70_000, int)
    manifest = write_data_set(
        tmp_path,
        name="white",
        classes=("a",),
        groups=(None,),
        parts={"train": (white, labels), "test": (white, labels)},
        preprocessing={},
        source="",
        licence="",
    )
    found = statistics(open_folder(tmp_path, manifest).train, np.arange(70_000), "channel")
    assert found["mean"].tolist() == [255.0] * 3 and found["std"].tolist() == [0.0] * 3


def test_statistics_are_kept(icons: Arrays, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = icons.train.rows([1])
    first = {kind: statistics(icons.train, rows, kind, key="task") for kind in ("channel", "mean-image")}
    (one, two) = sorted((own_cache / "statistics").iterdir())
    one.write_bytes(one.read_bytes()[:-40])  # damaged: made again
    assert all(
        np.array_equal(statistics(icons.train, rows, kind, key="task")[name], value)
        for kind, held in first.items()
        for name, value in held.items()
    )
    monkeypatch.setattr(Images, "gather", None)  # nothing is read any more
    assert np.array_equal(statistics(icons.train, rows, "channel", key="task")["std"], first["channel"]["std"])
    with pytest.raises(TypeError):
        statistics(icons.train, rows, "channel", key="another task")
    assert two.exists()


def test_statistics_of_nothing(icons: Arrays) -> None:
    with pytest.raises(DataError, match="task is empty"):
        statistics(icons.train, np.empty(0, np.int64), "channel")


@pytest.mark.fault("a shard that is damaged")
@pytest.mark.parametrize("spoil", ["shape", "dtype", "pickle", "short", "missing"])
def test_wrong_shard_files(icons: Arrays, tmp_path: Path, spoil: str) -> None:
    shard = icons.manifest.of("train")[0]
    pixels = icons.train.gather(np.arange(len(icons.train)))
    path = tmp_path / shard.images
    if spoil == "shape":
        np.save(path, pixels[:-1])
    elif spoil == "dtype":
        np.save(path, pixels.astype(np.uint16))
    elif spoil == "pickle":
        np.save(path, np.array([{"never": "executed"}], dtype=object), allow_pickle=True)
    elif spoil == "short":
        np.save(path, pixels)
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=str(path)):
        Images(tmp_path, icons.manifest, "train").gather(np.arange(3))
    with pytest.raises(DataError, match="make it again"):
        verify(tmp_path, Manifest.from_json(icons.manifest.to_json()))
