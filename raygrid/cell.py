"""A cell, one network to train, and its identity.

A cell holds what changes its numbers and nothing else, so its identity needs no list of exclusions: the content hash
is taken over all of it, except the names by which people call its split. Every random number of the project comes
from a generator seeded by names (`seed_from`), so there is no random state to save or to restore.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any

from raygrid.study import COPYING, FROZEN, Frozen, Half, Network, Recipe, Treatment

HASH_LENGTH = 12
"""hexadecimal digits of a content hash in addresses: 48 bits, collisions improbable below a million cells"""


def canonical(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces; refuses what JSON cannot say."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object, length: int = 64) -> str:
    """Beginning of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


_texts: dict[int, tuple[weakref.ref[Frozen], str]] = {}


def _text(value: object) -> str:
    """Canonical JSON of a field. A model's is made once: thousands of cells share one recipe and one task.

    Kept beside the object, not in it: what lies in a pydantic model's `__dict__` goes with its copies.
    """
    if isinstance(value, str):
        return _quoted(value)
    known = _texts.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    if not isinstance(value, Frozen):
        return canonical(value)
    text = value.identity_text if isinstance(value, Task) else canonical(value.model_dump(mode="json"))
    key = id(value)
    _texts[key] = (weakref.ref(value, lambda _: _texts.pop(key, None)), text)
    return text


@lru_cache(maxsize=4096)
def _quoted(value: str) -> str:
    return canonical(value)


def _joined(template: str, values: Iterable[object]) -> str:
    """Canonical JSON of an object, put together from its values'."""
    return template % tuple([value if type(value) is int else _text(value) for value in values])


def _template(keys: Iterable[str]) -> str:
    return "{" + ",".join(f'"{key}":%s' for key in keys) + "}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def seed_from(*names: str | int | None) -> int:
    """A 64-bit seed from names, such as (task, seed, layer, "reinit"): law 3, no hidden randomness."""
    return int.from_bytes(hashlib.sha256(canonical(names).encode()).digest()[:8], "big")


class DatasetFacts(Frozen):
    """What planning needs to know of a data set, without its pixels."""

    name: str
    sha256: str
    """content hash: that of the manifest"""
    classes: tuple[str, ...]
    groups: tuple[str | None, ...]
    """`natural`, `man-made` or null, one a class"""
    train: tuple[int, ...]
    """training images, one number a class"""
    test: tuple[int, ...]
    image_size: int
    """side of the square stored images, pixels"""


class Task(Frozen):
    """A set of classes with its images."""

    dataset: str
    data_sha256: str
    split: str
    """name of the split; a label, not identity"""
    split_seed: int | None
    half: Half
    classes: tuple[int, ...]
    images_per_class: int | None
    split_classes: int
    """classes in the whole split; a label, not identity"""

    @property
    def identity(self) -> dict[str, Any]:
        """What the task's images depend on."""
        return {
            "data_sha256": self.data_sha256,
            "classes": list(self.classes),
            "images_per_class": self.images_per_class,
        }

    @cached_property
    def identity_text(self) -> str:
        """Canonical JSON of the identity."""
        return canonical(self.identity)

    @cached_property
    def id(self) -> str:
        """Short content hash: two splits that give the same classes give the same task."""
        return _short(self.identity_text)

    @cached_property
    def label(self) -> str:
        """`random0/B`, `random0/B/100-a-class`"""
        return f"{self.split_label}/{self.half}{self.few}"

    @property
    def split_label(self) -> str:
        """`random0`"""
        return self.split if self.split_seed is None else f"{self.split}{self.split_seed}"

    @property
    def few(self) -> str:
        """`/100-a-class`; empty where all images are used."""
        return "" if self.images_per_class is None else f"/{self.images_per_class}-a-class"

    def images(self, facts: DatasetFacts) -> int:
        """Number of training images."""
        k = self.images_per_class
        return sum(facts.train[c] if k is None else min(k, facts.train[c]) for c in self.classes)

    def test_images(self, facts: DatasetFacts) -> int:
        """Number of test images."""
        return sum(facts.test[c] for c in self.classes)


class Cell(Frozen):
    """One network to train."""

    network: Network
    target: Task
    """what it is trained and tested on"""
    source: Task | None
    """where its first n layers were trained; null where they come from no base"""
    treatment: Treatment
    n: int
    """how many layers are copied (or kept random); 0 for base, scratch and base-long"""
    preserved: int = 0
    """how many layers above the frozen n are copied too, and learn"""
    seed: int
    """the replicate: a seed has its own bases, and is the seed of the stream"""
    recipe: Recipe
    outputs: int
    """outputs of the head"""
    image_size: int
    """side of the stored images, pixels"""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the cell's numbers depend on."""
        whole = self.model_dump(mode="json")
        whole["target"] = self.target.identity
        whole["source"] = self.source.identity if self.source else None
        return whole

    @cached_property
    def hash(self) -> str:
        """Content hash of the identity: equals `digest(self.identity, HASH_LENGTH)`, put together from shared parts."""
        return _short(_joined(_CELL_TEMPLATE, _cell_fields(self.__dict__)))

    @cached_property
    def address(self) -> str:
        """Where the cell lives in the store: a readable key and the content hash."""
        network = self.network.name if self.network.width == 1 else f"{self.network.name}-w{self.network.width:g}"
        return f"{self.target.dataset}/{network}/{self.target.label}/{self.name}/seed{self.seed}-{self.hash}"

    @property
    def name(self) -> str:
        """The paper's notation: baseB, B3B, A3B+, R3B."""
        half = "All" if self.target.half == "all" else self.target.half
        if self.treatment in COPYING:
            assert self.source is not None
            first = "All" if self.source.half == "all" else self.source.half
            preserved = f"-preserve{self.preserved}" if self.preserved else ""
            return f"{first}{self.n}{half}{'+' if self.treatment.endswith('+') else ''}{preserved}"
        return f"R{self.n}{half}" if self.treatment == "random" else f"{self.treatment}{half}"

    @property
    def title(self) -> str:
        """Short enough for a legend: `A3B+ random0 s0`, `baseA random0/9-a-class s0`. Two recipes can share one."""
        return f"{self.name} {self.target.split_label}{self.target.few} s{self.seed}"

    @property
    def series(self) -> str:
        """The treatment as figures, tables and tracking name it: `selffer-preserve1` is not pooled with `selffer`."""
        return f"{self.treatment}-preserve{self.preserved}" if self.preserved else self.treatment

    @property
    def phase(self) -> str:
        """`base` or `retrain`; part of the stream, so that BnB does not see its base's crops again (law 4)."""
        return "base" if self.treatment == "base" else "retrain"

    @property
    def frozen(self) -> int:
        """How many layers, counted from the input, do not learn."""
        return self.n if self.treatment in FROZEN else 0

    @cached_property
    def base(self) -> Cell | None:
        """The base whose first n layers this cell copies."""
        if self.treatment not in COPYING:
            return None
        assert self.source is not None
        return Cell(
            network=self.network,
            target=self.source,
            source=None,
            treatment="base",
            n=0,
            seed=self.seed,
            recipe=self.recipe,
            outputs=self.base_outputs,
            image_size=self.image_size,
        )

    @property
    def base_outputs(self) -> int:
        """Outputs of the base's head: as many as its task has classes, or all of the data set's."""
        assert self.source is not None
        return self.outputs if self.recipe.outputs == "dataset" else len(self.source.classes)

    @cached_property
    def stream(self) -> str:
        """The ordered, augmented batches that the cell trains on: cells with equal streams can share a cohort."""
        recipe = self.recipe
        parts = {
            "augmentation": recipe.augmentation,
            "batch_size": recipe.batch_size,
            "image_size": self.image_size,
            "order": recipe.order,
            "phase": self.phase,
            "seed": self.seed,
            "task": self.target,
            "threads": recipe.numerics.threads,
        }
        return _short(_joined(_template(parts), parts.values()))

    def sibling(self, n: int) -> Cell:
        """This cell with another n. As pydantic copies, but with what this one knows of its stream and its base, which
        are the same, and one set of field names for both: a plan has a hundred thousand cells."""
        copy = Cell.__new__(Cell)
        for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(copy, name, getattr(self, name))
        object.__setattr__(copy, "__dict__", {**self.__dict__, "n": n})
        return copy

    @property
    def stretch(self) -> int:
        """How many times as long as its recipe the cell is trained: `base-long` twice, its schedule stretched."""
        return 2 if self.treatment == "base-long" else 1

    def steps(self, facts: DatasetFacts) -> int:
        """Training steps."""
        return self.recipe.steps(self.target.images(facts)) * self.stretch


_cell_fields = itemgetter(*sorted(Cell.model_fields))
_CELL_TEMPLATE = _template(sorted(Cell.model_fields))


def difference(one: Cell, other: Cell) -> list[tuple[str, Any, Any]]:
    """Every field in which two cells differ: (dotted key, value in one, value in other)."""

    def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{path}.{key}" if path else key)
        else:
            yield path, value

    left, right = dict(leaves(one.identity, "")), dict(leaves(other.identity, ""))
    return [(k, left.get(k), right.get(k)) for k in {**left, **right} if left.get(k) != right.get(k)]
