"""Differences of treatments on the same task and seed, or the reason why there are none.

A contrast is a weighted sum of treatments, for instance {transfer: 1, selffer: -1}. Each is looked up at the same
task, the same seed and (where it copies layers) the same n; only complete sets count. Where the sides share nothing,
the contrast is "not identified": it has no number, only a reason.

`reference` in a contrast means `scratch` (trained anew in the second phase, as the other networks are); where a study
has none, `base`, and the result says so. A base is the parent of its selffer networks, so its luck stands on both
sides; scratch has no such tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from analysis.units import FEWEST, Estimate, Pairs, estimate
from analysis.vocabulary import SHORT, WITHOUT_N, span

if TYPE_CHECKING:
    from analysis.scope import Scope, Side


@dataclass(frozen=True)
class Contrast:
    """The paired differences of one weighted sum of treatments, in fractions."""

    pairs: Pairs
    values: np.ndarray
    """(task, seed) pair x n; nan where the set of networks is not complete"""
    diverged: np.ndarray
    """same shape: whether a diverged network is in it"""
    weights: Mapping[str, float]
    reason: str = ""
    """why it is not identified; empty where it is"""
    fallback: str = ""
    """`base` where the reference should have been `scratch`"""

    @property
    def identified(self) -> bool:
        """Whether the sides share at least one task, seed and n."""
        return not self.reason

    @property
    def name(self) -> str:
        """`AnB - BnB`."""
        return formula(self.weights)

    @cached_property
    def _estimates(self) -> dict[tuple[int, ...], Estimate]:
        return {}

    @property
    def layers(self) -> tuple[int, ...]:
        """The n that have pairs."""
        return tuple(int(n) for n in np.flatnonzero(np.isfinite(self.values).any(axis=0)))

    @property
    def cells(self) -> np.ndarray:
        """Every complete set's value, unweighted."""
        return self.values[np.isfinite(self.values)]

    def covered(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The n to average together: of those that enough units have, the choice with most units x n. Units that
        average different n would differ for that reason alone, so `over` takes units that have them all."""
        sizes = {n: self.splits(self.at([n])) for n in layers if n in self.layers}
        choices = [tuple(n for n in sizes if sizes[n] >= least) for least in set(sizes.values())]

        def worth(chosen: tuple[int, ...]) -> tuple[int, int, int]:
            units = self.splits(self.over(chosen))
            return min(units, FEWEST), units * len(chosen), len(chosen)

        return max(choices, key=worth, default=())

    @cached_property
    def several(self) -> bool:
        """Whether it lies on several splits, so that seeds are no units anywhere in it."""
        return len(np.unique(self.pairs.unit[np.isfinite(self.values).any(axis=1)])) > 1

    def splits(self, found: Estimate) -> int:
        """Units of replication of one of its estimates; all seeds of one split among several are one unit."""
        return min(found.units, 1) if self.several and found.kind == "seed" else found.units

    def over(self, layers: Sequence[int]) -> Estimate:
        """The estimate of the mean over these n, from (task, seed) pairs that have every one of them."""
        whole = np.isfinite(self.values[:, list(layers)]).all(axis=1, keepdims=True)
        return estimate(
            self.pairs, np.where(whole, self.values, np.nan)[:, list(layers)], self.diverged[:, list(layers)]
        )

    def at(self, layers: Sequence[int]) -> Estimate:
        """The estimate over these n: each (task, seed) first averages those that it has."""
        key = tuple(layers)
        if key not in self._estimates:
            columns = [n for n in key if n < self.values.shape[1]]
            self._estimates[key] = estimate(self.pairs, self.values[:, columns], self.diverged[:, columns])
        return self._estimates[key]


def formula(weights: Mapping[str, float]) -> str:
    """`AnB - BnB`, `scratch - 2 BnB + AnB`."""
    text = ""
    for treatment, weight in weights.items():
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        text += f"{sign}{size}{SHORT.get(treatment, treatment)}"
    return text


def contrast(scope: Scope, weights: Mapping[str, float], layers: Sequence[int] | None = None) -> Contrast:
    """Pair the treatments of `weights` on task and seed within one scope; `layers` limits n."""
    key = (tuple(weights.items()), None if layers is None else tuple(layers))
    if key not in scope.contrasts:
        scope.contrasts[key] = _contrast(scope, weights, layers)
    return scope.contrasts[key]


def _contrast(scope: Scope, weights: Mapping[str, float], layers: Sequence[int] | None) -> Contrast:
    if "reference" not in weights:
        return _paired(scope, weights, layers, "")
    first = _paired(scope, _resolved(weights, "scratch"), layers, "")
    if first.identified:
        return first
    second = _paired(scope, _resolved(weights, "base"), layers, "base")
    return second if second.identified or scope.has("base") else first


def _resolved(weights: Mapping[str, float], treatment: str) -> dict[str, float]:
    return {treatment if t == "reference" else t: w for t, w in weights.items()}


def _paired(scope: Scope, weights: Mapping[str, float], layers: Sequence[int] | None, fallback: str) -> Contrast:
    sides = {t: _side(scope, t, layers) for t in weights}
    none = np.full((len(scope.pairs.unit), 1), np.nan)
    for treatment, (scores, _) in sides.items():
        if not np.isfinite(scores).any():
            where = "" if layers is None or treatment in WITHOUT_N else f" at n = {span(layers)}"
            why = f"no {SHORT.get(treatment, treatment)} network with a score{where}"
            return Contrast(scope.pairs, none, none > 0, weights, why, fallback)
    values: np.ndarray = sum((weight * sides[t][0] for t, weight in weights.items()), start=np.zeros((1, 1)))
    diverged = np.logical_or.reduce(np.broadcast_arrays(*(sides[t][1] for t in weights)))
    if not np.isfinite(values).any():
        return Contrast(scope.pairs, none, none > 0, weights, _why(scope.pairs, sides), fallback)
    return Contrast(scope.pairs, values, diverged, weights, "", fallback)


def _side(scope: Scope, treatment: str, layers: Sequence[int] | None) -> Side:
    """Scores of one treatment by pair and n; one column for treatments without n, to stand beside every n."""
    scores, diverged = scope.side(treatment)
    if treatment in WITHOUT_N:
        return scores[:, :1], diverged[:, :1]
    if layers is not None:
        wanted = np.isin(np.arange(scores.shape[1]), list(layers))
        scores = np.where(wanted, scores, np.nan)
    return scores, diverged


def _why(pairs: Pairs, sides: Mapping[str, Side]) -> str:
    names = [SHORT.get(t, t) for t in sides]
    both = "both" if len(names) == 2 else "all of them"
    have = [np.isfinite(scores).any(axis=1) for scores, _ in sides.values()]
    if not set.intersection(*(set(pairs.task[there].tolist()) for there in have)):
        if len(names) == 2:
            return f"no task has both treatments ({' and '.join(names)})"
        return f"no task has {', '.join(names)} together"
    shared = np.logical_and.reduce(have).any()
    what = "no n of a shared task and seed has" if shared else "no seed of a shared task has"
    return f"{what} {both} ({', '.join(names)})"
