"""From paired differences to a mean with an honest interval (law 9).

The unit of replication is the split: its value is the mean over its halves of the mean over their seeds. Cells are no
units: all n of a source share one base, and the halves of a split are complementary. With one split the unit is the
seed, and the estimate says "conditional on this split". Intervals are Student-t, two-sided, from 3 units up; below,
the points stand alone. There is no bootstrap: with 3 to 10 units it is too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from analysis.vocabulary import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

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


def estimate(rows: pd.DataFrame) -> Estimate:
    """Estimate from rows with unit, task, seed, value and diverged (one row a cell or pair; several n are averaged)."""
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return EMPTY
    by_seed = rows.groupby(["unit", "task", "seed"], sort=True)["value"].mean()
    splits = rows["unit"].nunique()
    if splits > 1:
        by_task = by_seed.groupby(level=["unit", "task"]).mean()
        units = by_task.groupby(level="unit").mean()
        names = tuple(str(u) for u in units.index)
    else:
        units = by_seed.groupby(level="seed").mean()
        names = tuple(f"seed {s}" for s in units.index)
    return Estimate(
        values=tuple(float(v) for v in units.to_numpy()),
        names=names,
        kind="split" if splits > 1 else "seed",
        conditional=splits == 1,
        tasks=int(rows["task"].nunique()),
        cells=len(rows),
        diverged=int(rows["diverged"].sum()),
    )
