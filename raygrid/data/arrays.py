"""Images of a data set as memory-mapped arrays, shared by all processes of a node through the page cache."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raygrid.cell import canonical
from raygrid.data.cache import (
    cache_folder,
    cached,
    data_folder,
    is_whole,
    locked,
    mark_verified,
    verify,
    write_atomic,
)
from raygrid.data.manifest import MANIFEST, Manifest, Part
from raygrid.data.shards import open_npy
from raygrid.errors import AlreadyExists, DataError
from raygrid.store import Store

Normalization = Literal["channel", "mean-image"]
FETCHES = 4
"""shards fetched at a time"""
BLOCK_BYTES = 64 << 20
"""pixels that `statistics` holds at a time"""


class Images:
    """One part of a data set, over one or more shards. Opens files when first used; pickles as their paths."""

    def __init__(self, folder: str | Path, manifest: Manifest, part: Part):
        shards = manifest.of(part)
        self.size: int = manifest.image_size
        """side of the square images, pixels"""
        self._files = [(str(Path(folder) / s.images), str(Path(folder) / s.labels), s.count) for s in shards]
        self._ends = np.cumsum([s.count for s in shards], dtype=np.int64)
        self._arrays: list[np.ndarray | None] = [None] * len(shards)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "_files": self._files, "_ends": self._ends, "_arrays": [None] * len(self._files)}

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]: class index of every image."""
        parts = [open_npy(Path(labels), count, None) for _, labels, count in self._files]
        joined = np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
        joined.flags.writeable = False
        return joined

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Images of these rows, in this order: uint8 [len(rows), S, S, 3], a fresh contiguous copy. IndexError for a
        row that is not there."""
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} images")
        if len(self._files) == 1:
            return np.take(self._shard(0), rows, axis=0)
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        where = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(where, kind="stable")
        bounds = np.flatnonzero(np.diff(where[order])) + 1
        for group in np.split(order, bounds) if len(rows) else ():
            index = int(where[group[0]])
            first = int(self._ends[index]) - self._files[index][2]
            out[group] = np.take(self._shard(index), rows[group] - first, axis=0)
        return out

    def rows(self, classes: Sequence[int], images_per_class: int | None = None) -> np.ndarray:
        """Rows of these classes, int64, in canonical order: by class index, then by position. With
        `images_per_class`, the first so many of each class (all of a class that has fewer)."""
        wanted = sorted(set(classes))
        found = [np.flatnonzero(self.labels == c)[:images_per_class] for c in wanted]
        return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)

    def _shard(self, index: int) -> np.ndarray:
        array = self._arrays[index]
        if array is None:
            path, _, count = self._files[index]
            array = self._arrays[index] = np.asarray(open_npy(Path(path), count, self.size))
        return array


@dataclass(frozen=True)
class Arrays:
    """A data set, opened."""

    manifest: Manifest
    train: Images
    test: Images


def open_folder(folder: str | Path, manifest: Manifest) -> Arrays:
    """Open a folder that was verified, or is trusted."""
    return Arrays(manifest, Images(folder, manifest, "train"), Images(folder, manifest, "test"))


def open_arrays(store: Store, sha256: str, cache: str | Path | None = None) -> Arrays:
    """A data set from the node's cache; what is missing there is fetched from `STORE/data/<sha256>/` first.

    Safe when many processes call it at once: one of them fetches, the others wait. All bytes are compared with the
    content hash once, when they enter the cache. Raises DataError where the store does not have the data set.
    """
    root = cache_folder(cache)
    folder = data_folder(root, sha256)
    manifest = cached(folder, sha256)
    if manifest is None:
        with locked(folder):
            manifest = cached(folder, sha256) or _fetch(store, sha256, folder)
    return open_folder(folder, manifest)


def _fetch(store: Store, sha256: str, folder: Path) -> Manifest:
    text = store.find(f"data/{sha256}/{MANIFEST}")
    if text is None:
        raise DataError(
            f"data set {sha256[:12]}...: it is neither in the cache of this machine ({folder.parent}) nor in the store "
            f"({store.url}); run the launch again, which puts it there"
        )
    manifest = Manifest.from_json(text, store.uri(f"data/{sha256}/{MANIFEST}"))
    if manifest.sha256 != sha256:
        raise DataError(
            f"{store.uri(f'data/{sha256}')}: it holds the data set {manifest.sha256[:12]}...; delete it there and "
            "launch again"
        )
    files = {n: s for shard in manifest.shards for n, s in _files(shard)}
    for left in folder.glob(".part-*"):  # by a process that was killed: we hold the lock
        left.unlink(missing_ok=True)

    def fetch(name: str) -> None:
        if not is_whole(folder / name, files[name]):
            try:
                store.get_file(f"data/{sha256}/{name}", folder / name, files[name])
            except FileNotFoundError as error:
                raise DataError(f"{error}: a file of the data set is missing; launch again to put it there") from None

    with ThreadPoolExecutor(FETCHES) as pool:
        list(pool.map(fetch, files))
    write_atomic(folder / MANIFEST, text)
    verify(folder, manifest)
    mark_verified(folder, manifest)
    return manifest


def _files(shard: Any) -> tuple[tuple[str, str], ...]:
    return (shard.images, shard.images_sha256), (shard.labels, shard.labels_sha256)


def publish(manifest: Manifest, place: str | Path, store: Store) -> None:
    """Put a data set under `STORE/data/<sha256>/`: what is there is skipped, the manifest is written last.

    `place` is its folder, or the URL that ingest wrote to (files then pass through a temporary folder). Every file is
    verified before it is put there. Raises DataError for one that is damaged.
    """
    base = f"data/{manifest.sha256}"
    there = set(store.list(base))

    def put(item: tuple[str, str]) -> None:
        name, sha256 = item
        if f"{base}/{name}" in there:
            return
        if "://" not in str(place):
            if not is_whole(Path(place) / name, sha256):  # once there, its name would vouch for it
                raise DataError(
                    f"data set in {place}: {name} is damaged or missing; delete it and make the data set again (ingest "
                    "as before, or launch for one that comes with raygrid)"
                )
            store.put_file(f"{base}/{name}", Path(place) / name)
            return
        import tempfile

        with tempfile.TemporaryDirectory(prefix="raygrid-") as folder:
            local = Path(folder) / name
            Store(str(place)).get_file(name, local, sha256)
            store.put_file(f"{base}/{name}", local)

    with ThreadPoolExecutor(FETCHES) as pool:
        list(pool.map(put, [file for shard in manifest.shards for file in _files(shard)]))
    if f"{base}/{MANIFEST}" in there:
        return
    try:
        store.create(f"{base}/{MANIFEST}", manifest.to_json().encode())
    except AlreadyExists:
        return  # somebody else published the same content meanwhile


# --- statistics of a task --------------------------------------------------------------------------------------------


def statistics(
    images: Images, rows: np.ndarray, kind: Normalization, *, key: str | None = None, cache: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Statistics of pixels (0..255) over some rows, float64, from exact integer sums: independent of order and chunks.

    `channel`: `mean` [3] and `std` [3] (of the population) over images and positions. `mean-image`: `mean` [S, S, 3].
    With `key` (the task's content, in words of the caller) the result is kept in the node's cache.
    Raises DataError for no rows.
    """
    if not len(rows):
        raise DataError("statistics of no images: the task is empty")
    path = None
    if key is not None:
        name = hashlib.sha256(canonical([key, kind, 1]).encode()).hexdigest()[:32]
        path = cache_folder(cache) / "statistics" / f"{name}.npz"
        if (kept := _load(path, kind, images.size)) is not None:
            return kept
    total = np.zeros((images.size, images.size, 3), np.int64)
    squares = np.zeros(3, np.int64)
    block = max(1, min(65536, BLOCK_BYTES // (images.size**2 * 3)))  # 65536 * 255**2 < 2**32
    for start in range(0, len(rows), block):
        pixels = images.gather(rows[start : start + block])
        total += pixels.sum(axis=0, dtype=np.uint32)
        if kind == "channel":
            square = np.multiply(pixels, pixels, dtype=np.uint16)
            squares += square.sum(axis=0, dtype=np.uint32).sum(axis=(0, 1), dtype=np.int64)
    if kind == "mean-image":
        result = {"mean": total / len(rows)}
    else:
        n = len(rows) * images.size**2
        sums = [int(s) for s in total.sum(axis=(0, 1))]
        result = {
            "mean": np.array([s / n for s in sums]),
            "std": np.array([math.sqrt(n * int(q) - s * s) / n for s, q in zip(sums, squares, strict=True)]),
        }
    if path is not None:
        data = io.BytesIO()
        np.savez(data, **result)  # type: ignore[arg-type]
        write_atomic(path, data.getvalue())
    return result


def _load(path: Path, kind: Normalization, size: int) -> dict[str, np.ndarray] | None:
    """Statistics kept in the cache, or None where they are missing or damaged."""
    shapes = {"mean": (3,), "std": (3,)} if kind == "channel" else {"mean": (size, size, 3)}
    try:
        with np.load(path, allow_pickle=False) as kept:
            result = {name: kept[name] for name in kept.files}
    except Exception:  # whatever a damaged zip raises: it is made again
        return None
    good = {n: a.shape for n, a in result.items()} == shapes and all(a.dtype == np.float64 for a in result.values())
    return result if good else None
