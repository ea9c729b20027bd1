"""Arrays to `.npy` bytes and digests: the one place that knows how a shard looks inside.

An image's digest is the sha256 of its H*W*3 bytes; a part's digest is the sha256 over label and image digest of every
image in order. Digests can be made in parallel, shard by shard, and joined without reading pixels again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raygrid.data.manifest import MANIFEST, Group, Manifest, Part, Shard
from raygrid.errors import DataError

DIGEST = 32
"""bytes of an image's digest"""


def npy(array: np.ndarray) -> bytes:
    """The bytes of a `.npy` file."""
    return b"".join((_header(array), np.ascontiguousarray(array).data))


def _header(array: np.ndarray) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return head.getvalue()


class Blank:
    """A `.npy` file of images in memory, to be filled: a worker makes one and uses it for shard after shard, since
    fresh memory costs as much as a quarter of the decoding."""

    HEADER = 128
    """bytes of the header, which numpy pads"""

    def __init__(self, count: int, size: int):
        self._data = np.empty(self.HEADER + count * size * size * 3, np.uint8)
        self.images = self._data[self.HEADER :].reshape(count, size, size, 3)
        """to be written into, from the first on"""

    def file(self, count: int) -> memoryview:
        """The file with the first `count` images; valid until the next image is written."""
        kept = self.images[:count]
        header = _header(kept)
        assert len(header) == self.HEADER
        self._data[: self.HEADER] = np.frombuffer(header, np.uint8)
        return self._data[: self.HEADER + kept.size].data


def open_npy(path: Path, count: int, size: int | None) -> np.ndarray:
    """Memory-map a shard file and check its form: uint8 [count, size, size, 3], or integers [count] where size is
    None. Raises DataError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({' '.join(str(error).split())[:120]})") from None
    good = (
        array.dtype in (np.int16, np.int32) and array.shape == (count,)
        if size is None
        else array.dtype == np.uint8 and array.shape == (count, size, size, 3) and array.flags.c_contiguous
    )
    if not good:
        wanted = f"int16 or int32 [{count}]" if size is None else f"uint8 [{count}, {size}, {size}, 3]"
        raise DataError(f"{path}: expected {wanted}, found {array.dtype} {list(array.shape)}")
    return array


def image_digests(images: np.ndarray) -> bytes:
    """Digests of uint8 [N, H, W, 3] images, joined: 32 N bytes."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    return b"".join(hashlib.sha256(row.data).digest() for row in flat)


def part_digest(labels: np.ndarray, digests: bytes) -> str:
    """Digest of a part from its labels [N] and the joined digests of its images."""
    pairs = np.empty((len(labels), 4 + DIGEST), np.uint8)
    pairs[:, :4] = np.asarray(labels).astype("<i4").view(np.uint8).reshape(-1, 4)
    pairs[:, 4:] = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST)
    return hashlib.sha256(pairs.tobytes()).hexdigest()


def label_type(classes: int) -> type[np.signedinteger]:
    """int16 where it is wide enough, else int32."""
    return np.int16 if classes <= np.iinfo(np.int16).max else np.int32


def encode(
    part: Part, index: int, images: np.ndarray | memoryview, labels: np.ndarray
) -> tuple[Shard, dict[str, bytes | memoryview]]:
    """A shard and the bytes of its two files; `images` may be a file already (`Blank.file`). A file's name holds the
    beginning of its sha256, so that two ways to cut one data set can lie in one place."""
    files: dict[str, bytes | memoryview] = {}
    named: dict[str, str] = {}
    for kind, content in (("images", images), ("labels", labels)):
        data = content if isinstance(content, memoryview) else npy(content)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{part}-{index:05d}-{kind}-{sha256[:12]}.npy"
        files[name] = data
        named |= {kind: name, f"{kind}_sha256": sha256}
    return Shard(part=part, count=len(labels), **named), files


def write_data_set(
    folder: Path,
    *,
    name: str,
    classes: Sequence[str],
    groups: Sequence[Group | None],
    parts: dict[Part, tuple[np.ndarray, np.ndarray]],
    preprocessing: dict[str, str],
    source: str,
    licence: str,
) -> Manifest:
    """Write a data set that fits in memory to a folder, one shard a part; the manifest is written last.

    `parts` has, for `train` and `test`, uint8 images [N, S, S, 3] and labels [N].
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards, digests, counts = [], {}, {}
    for part, (images, raw) in parts.items():
        labels = raw.astype(label_type(len(classes)))
        shard, files = encode(part, 0, images, labels)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        shards.append(shard)
        digests[part] = part_digest(labels, image_digests(images))
        counts[part] = tuple(int(n) for n in np.bincount(labels, minlength=len(classes)))
    manifest = Manifest(
        name=name,
        classes=tuple(classes),
        groups=tuple(groups),
        image_size=int(parts["train"][0].shape[1]),
        preprocessing=preprocessing,
        shards=tuple(shards),
        train=counts["train"],
        test=counts["test"],
        train_sha256=digests["train"],
        test_sha256=digests["test"],
        source=source,
        licence=licence,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
