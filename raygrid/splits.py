"""Divide a data set's classes in two halves. No images, no files: class names in, class indices out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raygrid.errors import StudyError, closest
from raygrid.study import ExplicitSplit, RandomSplit, SemanticSplit, Split, WholeSet


@dataclass(frozen=True)
class Halves:
    """A split carried out: sorted class indices of each half. `whole` is the one task of a split of kind `all`."""

    name: str
    """`random`, `semantic`, `all`, or the explicit list's name"""
    seed: int | None
    A: tuple[int, ...] = ()
    B: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """`random0`, `semantic`, ..."""
        return self.name if self.seed is None else f"{self.name}{self.seed}"

    def classes(self, half: str) -> tuple[int, ...]:
        """Class indices of `A`, `B` or `all`."""
        return self.whole if half == "all" else self.A if half == "A" else self.B


def divide(split: Split, classes: Sequence[str], groups: Sequence[str | None]) -> Halves:
    """Carry a split out on the classes of a data set, in the data set's order.

    Random halves: numpy's legacy generator, whose stream is frozen. With `rule: yosinski2014` it is seeded with the
    list `[seed]` and half A is `choice(K, K // 2, replace=False)`, as in the authors' scripts. Semantic halves: A is
    natural, B man-made. Raises StudyError where a class is unknown or a half would be empty.
    """
    index = {name: i for i, name in enumerate(classes)}

    def find(names: Sequence[str], key: str) -> list[int]:
        for name in names:
            if name not in index:
                raise StudyError(
                    f"splits: {key}: no class {name!r} in the data set{closest(name, _some(name, classes))}"
                )
        return [index[name] for name in names]

    if isinstance(split, ExplicitSplit):
        halves = Halves(split.name, None, tuple(sorted(find(split.A, "A"))), tuple(sorted(find(split.B, "B"))))
    else:
        out = set(find(split.exclude, "exclude"))
        kept = [i for i in range(len(classes)) if i not in out]
        if isinstance(split, WholeSet):
            halves = Halves("all", None, whole=tuple(kept))
        elif isinstance(split, SemanticSplit):
            unknown = [classes[i] for i in kept if groups[i] not in ("natural", "man-made")]
            if unknown:
                raise StudyError(
                    f"splits: kind semantic needs every class to be `natural` or `man-made`; the data set does not say "
                    f"which {', '.join(unknown[:5])} {'is' if len(unknown) == 1 else 'are'} (use kind explicit)"
                )
            halves = Halves(
                "semantic",
                None,
                tuple(i for i in kept if groups[i] == "natural"),
                tuple(i for i in kept if groups[i] == "man-made"),
            )
        else:
            order = _shuffled(split, len(kept))
            first = {kept[i] for i in order[: len(kept) // 2]}
            halves = Halves("random", split.seed, tuple(sorted(first)), tuple(i for i in kept if i not in first))
    for half in ("all",) if halves.whole or isinstance(split, WholeSet) else ("A", "B"):
        if not halves.classes(half):
            raise StudyError(f"splits: half {half} of split {halves.label} is empty")
        if len(halves.classes(half)) < 2:
            raise StudyError(f"splits: half {half} of split {halves.label} has one class; a task needs two")
    return halves


def _shuffled(split: RandomSplit, count: int) -> list[int]:
    if split.rule == "yosinski2014":
        state = np.random.RandomState([split.seed])
        return [int(i) for i in state.choice(np.arange(count), count // 2, replace=False)]
    return [int(i) for i in np.random.RandomState(split.seed).permutation(count)]


def _some(name: str, classes: Sequence[str]) -> Sequence[str]:
    """All classes where they are few; else those that begin like the name."""
    if len(classes) <= 50:
        return classes
    return [c for c in classes if c[:1] == name[:1]][:20] or classes[:20]
