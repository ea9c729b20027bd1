"""The node's cache of data sets: a folder per content hash, whole or not there, verified once.

$RAYGRID_CACHE (default ~/.cache/raygrid)
    data/<sha256>/      manifest.json, shards, and `verified` once all bytes were compared with the content hash
    data/<sha256>.lock  held while somebody fills it; a dead process holds nothing
    statistics/         channel means and mean images of tasks
    downloads/          files put there by hand
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from raygrid.data.manifest import MANIFEST, Manifest, Shard, read_manifest
from raygrid.data.shards import image_digests, open_npy, part_digest
from raygrid.errors import DataError, EnvironmentError_, StoreError, expanded

VERIFIED = "verified"


def cache_folder(cache: str | Path | None = None) -> Path:
    """The cache: `cache`, else `$RAYGRID_CACHE`, else `~/.cache/raygrid`. Raises EnvironmentError_ where it cannot be
    made."""
    folder = expanded(cache or os.environ.get("RAYGRID_CACHE") or "~/.cache/raygrid")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentError_(
            f"cache {folder}: cannot be made ({error.strerror}); name another folder in RAYGRID_CACHE"
        ) from None
    return folder.absolute()


def data_folder(cache: Path, sha256: str) -> Path:
    """Where a data set lies in the cache."""
    return cache / "data" / sha256


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the one lock for making or filling a file or folder, over all processes of this host."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all. Raises StoreError where the disk is full or read-only."""
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        with os.fdopen(handle, "wb") as out:
            out.write(data)
        Path(name).replace(path)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be written ({error.strerror or error})") from None
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """sha256 of a file, without holding it in memory."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_whole(path: Path, sha256: str) -> bool:
    """Whether a file is there with that sha256."""
    return path.is_file() and file_sha256(path) == sha256


def cached(folder: Path, sha256: str) -> Manifest | None:
    """The manifest of a folder that was verified and whose files still have their sizes; else None. Costs one `stat`
    a file."""
    try:
        lines = (folder / VERIFIED).read_text().splitlines()
        sizes = dict(line.rsplit(" ", 1) for line in lines[1:])
        if lines[:1] != [sha256] or any((folder / f).stat().st_size != int(n) for f, n in sizes.items()):
            return None
        manifest = read_manifest(folder)
    except (OSError, ValueError):
        return None
    return manifest if manifest.sha256 == sha256 else None


def mark_verified(folder: Path, manifest: Manifest) -> None:
    """Note that all files were verified, with their sizes."""
    files = [MANIFEST, *(name for shard in manifest.shards for name in (shard.images, shard.labels))]
    lines = [manifest.sha256, *(f"{name} {(folder / name).stat().st_size}" for name in files)]
    write_atomic(folder / VERIFIED, "\n".join(lines).encode())


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every file's form, every image and every label with the manifest's digests. Raises DataError."""

    def read(shard: Shard) -> tuple[bytes, np.ndarray]:
        """Digests of a shard's images, and its labels."""
        for name, sha256 in ((shard.images, shard.images_sha256), (shard.labels, shard.labels_sha256)):
            if not is_whole(folder / name, sha256):
                found = "damaged" if (folder / name).is_file() else "missing"
                raise DataError(f"data set in {folder}: {name} is {found}; delete the folder and make it again")
        images = open_npy(folder / shard.images, shard.count, manifest.image_size)
        return image_digests(images), np.asarray(open_npy(folder / shard.labels, shard.count, None))

    for part, expected, counts in (
        ("train", manifest.train_sha256, manifest.train),
        ("test", manifest.test_sha256, manifest.test),
    ):
        with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock
            shards = list(pool.map(read, manifest.of(part)))
        joined = np.concatenate([np.empty(0, np.int16), *(labels for _, labels in shards)])
        if joined.size and not 0 <= joined.min() <= joined.max() < len(manifest.classes):
            raise DataError(
                f"data set in {folder}: labels {joined.min()} to {joined.max()} for {len(manifest.classes)} classes"
            )
        found_counts = tuple(int(n) for n in np.bincount(joined, minlength=len(manifest.classes)))
        if found_counts != counts or part_digest(joined, b"".join(digests for digests, _ in shards)) != expected:
            raise DataError(
                f"data set in {folder}: the {part} images are not those of its manifest; delete the folder and make "
                "it again"
            )
