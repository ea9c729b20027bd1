"""From paired differences to a mean with an honest interval (law 9).

The unit of replication is the split: its value is the mean over its halves of the mean over their seeds. Cells are no
units: all n of a source share one base, and the halves of a split are complementary. With one split the unit is the
seed (of those that have both halves: two halves are two tasks), and the estimate says "conditional on this split".
Intervals are Student-t, two-sided, from 3 units up; below, the points stand alone. There is no bootstrap: with 3 to 10
units it is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from analysis.vocabulary import count

LEVEL = 0.95
FEWEST = 3
"""units from which an interval is given"""


@dataclass(frozen=True)
class Estimate:
    """A mean over units. Values are fractions (or differences of fractions) unless the caller scaled them."""

    values: tuple[float, ...]
    """one value a unit, in the order of `names`"""
    names: tuple[str, ...]
    """`random0`, `random1`, ... or `seed 0`, ..."""
    kind: str
    """`split` or `seed`"""
    conditional: bool
    """true with one split: nothing is said about other splits"""
    tasks: int
    cells: int
    """networks, or pairs of networks, behind the mean"""
    diverged: int = 0
    """of these, how many include a diverged network"""

    @property
    def units(self) -> int:
        """Number of units of replication."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over units; nan without any."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Standard deviation between units (n - 1); nan below 2."""
        return deviation(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Student-t interval; None below 3 units."""
        return interval(self.values)

    @property
    def who(self) -> str:
        """`4 splits`, or `3 seeds, conditional on this split`."""
        return count(self.units, self.kind) + (", conditional on this split" if self.conditional else "")


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; rounding noise of equal values counts as zero."""
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return 0.0 if sd < 1e-12 else sd


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % Student-t interval of the mean; None below 3 values."""
    if len(values) < FEWEST:
        return None
    mean = math.fsum(values) / len(values)
    half = quantile(len(values) - 1) * deviation(values) / math.sqrt(len(values))
    return mean - half, mean + half


@lru_cache(maxsize=1024)
def quantile(freedom: int) -> float:
    """Student's t for a two-sided interval of LEVEL."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


EMPTY = Estimate((), (), "split", False, 0, 0)


@dataclass(frozen=True)
class Pairs:
    """The (task, seed) pairs of a scope, numbered: the rows of every matrix of scores. The columns are n."""

    unit: np.ndarray
    """index into `units`, one a pair"""
    task: np.ndarray
    """index into `tasks`"""
    seed: np.ndarray
    """the seed itself"""
    units: tuple[str, ...]
    """names in natural order: random2 before random10"""
    tasks: tuple[str, ...]

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """The unit of every (unit, task), and which of these each pair is."""
        found, index = np.unique(np.stack([self.unit, self.task]), axis=1, return_inverse=True)
        return found[0], index.ravel()


def estimate(pairs: Pairs, values: np.ndarray, diverged: np.ndarray) -> Estimate:
    """Estimate from matrices (pair x n) of values, nan where there is none; n of one pair are averaged first."""
    there = np.isfinite(values)
    kept = there.any(axis=1)
    if not kept.any():
        return EMPTY
    if not (pairs.unit[kept] != pairs.unit[kept][0]).any():
        there &= _whole_seeds(pairs, kept)[:, None]
        kept = there.any(axis=1)
    by_pair = np.where(there, values, 0.0)[kept].sum(axis=1) / there[kept].sum(axis=1)
    unit, task, seed = pairs.unit[kept], pairs.task[kept], pairs.seed[kept]
    several = bool((unit != unit[0]).any())
    if several:
        unit_of, half = pairs.halves
        halves, of_half = _means(half[kept], by_pair)
        groups, means = _means(unit_of[halves], of_half)
        names = tuple(pairs.units[int(u)] for u in groups)
    else:
        groups, means = _means(seed, by_pair)
        names = tuple(f"seed {int(s)}" for s in groups)
    return Estimate(
        values=tuple(float(v) for v in means),
        names=names,
        kind="split" if several else "seed",
        conditional=not several,
        tasks=len(np.unique(task)),
        cells=int(there.sum()),
        diverged=int((diverged & there).sum()),
    )


def _whole_seeds(pairs: Pairs, kept: np.ndarray) -> np.ndarray:
    """Of the pairs of one split, those whose seed has as many halves as any: a seed that lacks one estimates another
    quantity."""
    seeds, index = np.unique(pairs.seed, return_inverse=True)
    halves = np.bincount(index[kept], minlength=len(seeds))
    return kept & (halves[index] == halves.max())


def _means(groups: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted groups, and the mean of each."""
    found, index = np.unique(groups, return_inverse=True)
    return found, np.bincount(index, values) / np.bincount(index)
