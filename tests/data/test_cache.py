"""Laws: a node's cache holds a data set whole or not at all; every byte is verified once; many may fetch at once."""

import hashlib
import io
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from raygrid.data.arrays import Arrays, open_arrays, publish
from raygrid.data.cache import VERIFIED, cached, data_folder
from raygrid.data.manifest import MANIFEST
from raygrid.data.shards import npy
from raygrid.errors import DataError, IntegrityError, RaygridError
from raygrid.store import Store


@pytest.fixture
def published(icons: Arrays, tmp_path: Path) -> tuple[Store, str, Path]:
    """A store with the icons: (store, content hash, folder in the store)."""
    store = Store(str(tmp_path / "store"))
    publish(icons.manifest, Path(icons.train._files[0][0]).parent, store)
    sha256 = icons.manifest.sha256
    return store, sha256, tmp_path / "store" / "data" / sha256


def test_fetched_once(published: tuple[Store, str, Path], icons: Arrays, own_cache: Path) -> None:
    store, sha256, folder = published
    opened = open_arrays(store, sha256)
    assert opened.manifest == icons.manifest
    assert np.array_equal(opened.test.gather(np.arange(1023)), icons.test.gather(np.arange(1023)))
    for path in folder.iterdir():
        path.unlink()
    assert open_arrays(store, sha256).manifest == icons.manifest
    assert open_arrays(store, sha256, own_cache).manifest == icons.manifest


def _open(args: tuple[str, str, str]) -> tuple[str, int]:
    url, sha256, cache = args
    opened = open_arrays(Store(url), sha256, cache)
    return hashlib.sha256(opened.train.gather(np.arange(100)).tobytes()).hexdigest(), len(opened.train)


def test_many_processes_at_once(published: tuple[Store, str, Path], own_cache: Path) -> None:
    store, sha256, _ = published
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_open, [(store.url, sha256, str(own_cache))] * 6, chunksize=1)
    assert len(set(found)) == 1
    names = {path.name for path in data_folder(own_cache, sha256).iterdir()}
    assert len(names) == 4 + 2 and VERIFIED in names, "temporary files stayed"


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_damage_in_the_store_never_enters(published: tuple[Store, str, Path], own_cache: Path, kind: str) -> None:
    store, sha256, folder = published
    path = next(folder.glob(f"train-*-{kind}-*"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(
        IntegrityError, match=f"{path.name} is damaged.*delete it, and what depends on it is made again"
    ):
        open_arrays(store, sha256)
    assert cached(data_folder(own_cache, sha256), sha256) is None
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    assert len(open_arrays(store, sha256).train) == 3409


def test_a_manifest_that_lies(published: tuple[Store, str, Path], own_cache: Path) -> None:
    """Shard hashes that fit other pixels do not help: the content hash covers the pixels themselves."""
    store, sha256, folder = published
    manifest = json.loads((folder / MANIFEST).read_text())
    shard = manifest["shards"][1]
    pixels = np.load(folder / shard["images"])
    pixels[7, 3, 3, 1] ^= 1
    data = npy(pixels)
    (folder / shard["images"]).write_bytes(data)
    shard["images_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the test images are not those of its manifest"):
        open_arrays(store, sha256)
    assert not (data_folder(own_cache, sha256) / VERIFIED).exists()


def test_another_data_set_in_its_place(published: tuple[Store, str, Path]) -> None:
    store, sha256, folder = published
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["classes"][0] = "sky"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="it holds the data set"):
        open_arrays(store, sha256)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["npy", "bare", "manifest"])
def test_nothing_is_unpickled(published: tuple[Store, str, Path], form: str, tmp_path: Path) -> None:
    store, sha256, folder = published
    out = io.BytesIO()
    bomb = Bomb(tmp_path / "went-off")
    if form == "npy":
        np.save(out, np.array([bomb], dtype=object), allow_pickle=True)
    else:
        pickle.dump(bomb, out)
    manifest = json.loads((folder / MANIFEST).read_text())
    shard = manifest["shards"][0]
    (folder / shard["images"]).write_bytes(out.getvalue())
    shard["images_sha256"] = hashlib.sha256(out.getvalue()).hexdigest()
    (folder / MANIFEST).write_bytes(out.getvalue() if form == "manifest" else json.dumps(manifest).encode())
    with pytest.raises(DataError):
        open_arrays(store, sha256)
    assert not bomb.path.exists()


@pytest.mark.parametrize("spoil", ["truncate", "remove", "unmark", "other marker", "manifest"])
def test_a_damaged_cache_is_mended(published: tuple[Store, str, Path], own_cache: Path, spoil: str) -> None:
    store, sha256, _ = published
    open_arrays(store, sha256)
    folder = data_folder(own_cache, sha256)
    path = next(folder.glob("train-*-images-*"))
    whole = path.read_bytes()
    if spoil == "truncate":
        path.write_bytes(whole[:-1])
    elif spoil == "remove":
        path.unlink()
    elif spoil == "unmark":  # killed before the end, with a spoilt file
        (folder / VERIFIED).unlink()
        path.write_bytes(whole[:-1] + b"x")
        (folder / ".part-left").write_bytes(b"by a process that was killed")
    elif spoil == "other marker":
        (folder / VERIFIED).write_text("\x00garbage")
    else:
        (folder / MANIFEST).write_text("{}")
    assert len(open_arrays(store, sha256).train.gather(np.arange(3409))) == 3409
    assert path.read_bytes() == whole
    assert cached(folder, sha256) is not None
    assert not list(folder.glob(".part-*")) or spoil != "unmark"


def test_neither_here_nor_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither in the cache of this machine .* nor in the store"):
        open_arrays(Store(str(tmp_path / "store")), "0" * 64)


def test_publish_completes_what_was_begun(published: tuple[Store, str, Path], icons: Arrays) -> None:
    store, sha256, folder = published
    place = Path(icons.train._files[0][0]).parent
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    publish(icons.manifest, place, store)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before, "written again"
    next(folder.glob("test-*-images-*")).unlink()
    publish(icons.manifest, place, store)
    assert {path.name for path in folder.iterdir()} == set(before)
    assert len(open_arrays(store, sha256).test) == 1023


@pytest.mark.fault("a shard that is damaged before it is published")
@pytest.mark.parametrize("spoil", ["flip", "remove"])
def test_a_damaged_shard_is_never_published(icons: Arrays, tmp_path: Path, spoil: str) -> None:
    """Its name is its hash: nobody would put the right one there any more."""
    folder = Path(shutil.copytree(Path(icons.train._files[0][0]).parent, tmp_path / "mine"))
    path = next(folder.glob("train-*-images-*"))
    whole = path.read_bytes()
    path.unlink() if spoil == "remove" else path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    store = Store(str(tmp_path / "store"))
    with pytest.raises(DataError, match=f"{folder}: {path.name} is damaged or missing; delete it"):
        publish(icons.manifest, folder, store)
    assert not any(name.endswith((path.name, MANIFEST)) for name in store.list())
    path.write_bytes(whole)
    publish(icons.manifest, folder, store)
    assert open_arrays(store, icons.manifest.sha256).manifest == icons.manifest


def test_the_manifest_is_published_last(icons: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "store"))
    real = Store.put_file

    def fails(self: Store, path: str, local: Path) -> None:
        if "test" in path:
            raise RaygridError("the disk is full")
        real(self, path, local)

    monkeypatch.setattr(Store, "put_file", fails)
    with pytest.raises(RaygridError, match="full"):
        publish(icons.manifest, Path(icons.train._files[0][0]).parent, store)
    assert not store.exists(f"data/{icons.manifest.sha256}/{MANIFEST}")


def test_publish_from_a_url(published: tuple[Store, str, Path], icons: Arrays, tmp_path: Path) -> None:
    store, sha256, _ = published
    other = Store(str(tmp_path / "other"))
    publish(icons.manifest, f"{store.url}/data/{sha256}", other)
    assert open_arrays(other, sha256, tmp_path / "another cache").manifest == icons.manifest
