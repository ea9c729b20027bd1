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

from analysis.units import FEWEST, Estimate, Row, estimate
from analysis.vocabulary import SHORT, WITHOUT_N, span

if TYPE_CHECKING:
    from analysis.scope import Scope, Side


@dataclass(frozen=True)
class Contrast:
    """The paired differences of one weighted sum of treatments, in fractions."""

    rows: tuple[Row, ...]
    """one row a complete set of networks"""
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
    def _by_n(self) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.n, []).append(row)
        return found

    @cached_property
    def _estimates(self) -> dict[tuple[int, ...], Estimate]:
        return {}

    @property
    def layers(self) -> tuple[int, ...]:
        """The n that have pairs."""
        return tuple(sorted(self._by_n))

    def covered(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The n to average: those with 3 units or more, if there are any. Units that average different n would differ
        for that reason alone."""
        have = tuple(n for n in layers if n in self._by_n)
        full = tuple(n for n in have if self.at([n]).units >= FEWEST)
        return full or have

    def at(self, layers: Sequence[int]) -> Estimate:
        """The estimate over these n: each (task, seed) first averages its n."""
        key = tuple(layers)
        if key not in self._estimates:
            self._estimates[key] = estimate(row for n in key for row in self._by_n.get(n, ()))
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
    return second if second.identified or "base" in scope.sides else first


def _resolved(weights: Mapping[str, float], treatment: str) -> dict[str, float]:
    return {treatment if t == "reference" else t: w for t, w in weights.items()}


def _paired(scope: Scope, weights: Mapping[str, float], layers: Sequence[int] | None, fallback: str) -> Contrast:
    sides = {t: _side(scope, t, layers) for t in weights}
    for treatment, side in sides.items():
        if not side:
            where = "" if layers is None or treatment in WITHOUT_N else f" at n = {span(layers)}"
            return Contrast((), weights, f"no {SHORT.get(treatment, treatment)} network with a score{where}", fallback)
    with_n = [t for t in weights if t not in WITHOUT_N]
    leading = min(with_n or weights, key=lambda t: len(sides[t]))
    rows = []
    for unit, task, seed, n in sides[leading]:
        value, diverged = 0.0, False
        for treatment, weight in weights.items():
            cell = sides[treatment].get((unit, task, seed, 0 if treatment in WITHOUT_N else n))
            if cell is None:
                break
            value += weight * cell[0]
            diverged = diverged or cell[1]
        else:
            rows.append(Row(unit, task, seed, n, value, diverged))
    if not rows:
        return Contrast((), weights, _why(sides), fallback)
    return Contrast(tuple(rows), weights, "", fallback)


def _side(scope: Scope, treatment: str, layers: Sequence[int] | None) -> Side:
    side = scope.sides.get(treatment, {})
    if layers is None or treatment in WITHOUT_N:
        return side
    wanted = set(layers)
    return {key: cell for key, cell in side.items() if key[3] in wanted}


def _why(sides: Mapping[str, Side]) -> str:
    names = [SHORT.get(t, t) for t in sides]
    both = "both" if len(names) == 2 else "all of them"
    if not set.intersection(*({key[1] for key in side} for side in sides.values())):
        if len(names) == 2:
            return f"no task has both treatments ({' and '.join(names)})"
        return f"no task has {', '.join(names)} together"
    pairs = set.intersection(*({key[1:3] for key in side} for side in sides.values()))
    what = "no seed of a shared task has" if not pairs else "no n of a shared task and seed has"
    return f"{what} {both} ({', '.join(names)})"
