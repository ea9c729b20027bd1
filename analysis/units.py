"""From paired differences to a mean with an honest interval (law 9).

The unit of replication is the split: its value is the mean over its halves of the mean over their seeds. Cells are no
units: all n of a source share one base, and the halves of a split are complementary. With one split the unit is the
seed, and the estimate says "conditional on this split". Intervals are Student-t, two-sided, from 3 units up; below,
the points stand alone. There is no bootstrap: with 3 to 10 units it is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Two-sided Student-t interval of the mean; None below 3 values."""
    if len(values) < FEWEST:
        return None
    mean = math.fsum(values) / len(values)
    half = quantile(len(values) - 1, level) * deviation(values) / math.sqrt(len(values))
    return mean - half, mean + half


@lru_cache(maxsize=1024)
def quantile(freedom: int, level: float = LEVEL) -> float:
    """Student's t for a two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


EMPTY = Estimate((), (), "split", False, 0, 0)


class Row(NamedTuple):
    """A network, or a complete set of paired networks."""

    unit: str
    task: str
    seed: int
    n: int
    value: float
    diverged: bool


def estimate(rows: Iterable[Row]) -> Estimate:
    """Estimate from rows, one a cell or pair; several n of one task and seed are averaged first."""
    by_seed: dict[tuple[str, str, int], list[float]] = {}
    cells = diverged = 0
    for row in rows:
        by_seed.setdefault((row.unit, row.task, row.seed), []).append(row.value)
        cells += 1
        diverged += row.diverged
    if not cells:
        return EMPTY
    splits = {unit for unit, _, _ in by_seed}
    units: dict[str | int, list[float]] = {}
    if len(splits) > 1:
        by_task: dict[tuple[str, str], list[float]] = {}
        for (unit, task, _), values in by_seed.items():
            by_task.setdefault((unit, task), []).append(_mean(values))
        for (unit, _), values in by_task.items():
            units.setdefault(unit, []).append(_mean(values))
    else:
        for (_, _, seed), values in by_seed.items():
            units.setdefault(seed, []).append(_mean(values))
    order = sorted(units, key=_natural)
    return Estimate(
        values=tuple(_mean(units[u]) for u in order),
        names=tuple(str(u) if len(splits) > 1 else f"seed {u}" for u in order),
        kind="split" if len(splits) > 1 else "seed",
        conditional=len(splits) == 1,
        tasks=len({task for _, task, _ in by_seed}),
        cells=cells,
        diverged=diverged,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _natural(unit: str | int) -> tuple[str, int]:
    """random2 before random10."""
    text = str(unit)
    head = text.rstrip("0123456789")
    return head, int(text[len(head) :] or 0)
