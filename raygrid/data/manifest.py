"""The manifest: what a data set holds, and its content hash.

The content hash covers what can change a network's numbers or the meaning of a class index: the class names in order,
the image size, and every image with its label, in order. It leaves out what cannot: the data set's name, licence and
source, how its pixels were made (the pixels say it), the groups of its classes (they choose a split, and a task holds
the classes themselves), and how it was cut in files. So the same images have the same hash whether they were ingested
by one worker or by a hundred, fetched from one mirror or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from raygrid.cell import DatasetFacts, digest
from raygrid.errors import DataError, StoreError, expanded
from raygrid.study import Frozen, Name

MANIFEST = "manifest.json"
"""its file name beside the shards"""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.npy$")]
ClassName = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]
Count = Annotated[int, Field(ge=0)]
Part = Literal["train", "test"]
Group = Literal["natural", "man-made"]


class Shard(Frozen):
    """Consecutive images of one part: two `.npy` files, uint8 [count, S, S, 3] RGB and int16 or int32 [count]."""

    part: Part
    images: FileName
    images_sha256: Sha256
    labels: FileName
    labels_sha256: Sha256
    count: Annotated[int, Field(ge=1)]


class Manifest(Frozen):
    """A data set: what it holds and in which files."""

    format: Literal[1] = 1
    name: Name
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)]
    """names, in the order of the labels"""
    groups: tuple[Group | None, ...]
    """`natural`, `man-made` or null, one a class"""
    image_size: Annotated[int, Field(ge=1, le=4096)]
    """side of the square images, pixels"""
    preprocessing: dict[str, str]
    """how the pixels were made, for people"""
    shards: tuple[Shard, ...]
    """in the order of the images, the training part first"""
    train: tuple[Count, ...]
    """training images, one number a class"""
    test: tuple[Count, ...]
    train_sha256: Sha256
    """digest of the part's images and labels in order (`shards.part_digest`)"""
    test_sha256: Sha256
    source: str
    licence: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        k = len(self.classes)
        if len(set(self.classes)) < k:
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"class {twice!r} is listed twice")
        for key, values in (("groups", self.groups), ("train", self.train), ("test", self.test)):
            if len(values) != k:
                raise ValueError(f"{key} has {len(values)} entries for {k} classes")
        for part, counts in (("train", self.train), ("test", self.test)):
            held = sum(shard.count for shard in self.of(part))
            if held != sum(counts):
                raise ValueError(f"the {part} shards hold {held} images, the counts say {sum(counts)}")
        names = [name for shard in self.shards for name in (shard.images, shard.labels)]
        if len(set(names)) < len(names):
            raise ValueError("a shard file is listed twice")
        return self

    @cached_property
    def sha256(self) -> str:
        """Content hash: 64 hexadecimal digits (see the module's docstring for what it covers)."""
        return content_hash(self.classes, self.image_size, self.train_sha256, self.test_sha256)

    def of(self, part: str) -> tuple[Shard, ...]:
        """Shards of `train` or `test`, in order."""
        return tuple(shard for shard in self.shards if shard.part == part)

    def facts(self) -> DatasetFacts:
        """What planning needs."""
        return DatasetFacts(
            name=self.name,
            sha256=self.sha256,
            classes=self.classes,
            groups=self.groups,
            train=self.train,
            test=self.test,
            image_size=self.image_size,
        )

    def to_json(self) -> str:
        """Text for `manifest.json`: the same for equal manifests."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST) -> Manifest:
        """Read `to_json`'s text. Raises DataError with the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{where} is no manifest of a data set: {at + ': ' if at else ''}{problem}") from None


def content_hash(classes: Sequence[str], image_size: int, train_sha256: str, test_sha256: str) -> str:
    """Hash of what the numbers depend on."""
    return digest(
        {
            "format": 1,
            "classes": list(classes),
            "image_size": image_size,
            "train": train_sha256,
            "test": test_sha256,
        }
    )


def read_manifest(place: str | Path) -> Manifest:
    """The manifest in a folder or under a URL. Raises DataError where there is none."""
    text: bytes | None
    if "://" in str(place) and not str(place).startswith("file://"):
        from raygrid.store import Store

        try:
            text = Store(str(place)).find(MANIFEST)
        except StoreError as error:
            raise DataError(f"data set at {place}: {error}") from None
    else:
        path = expanded(str(place).removeprefix("file://")) / MANIFEST  # to open a store would make its folder
        try:
            text = path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise DataError(f"data set at {place}: {error.strerror}") from None
    if text is None:
        raise DataError(
            f"data set at {place}: there is no {MANIFEST}; make one with: python -m raygrid.ingest IMAGES {place}"
        )
    return Manifest.from_json(text, f"{place}/{MANIFEST}")
