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
from typing import TYPE_CHECKING

from analysis.units import EMPTY, FEWEST, Estimate, estimate
from analysis.vocabulary import SHORT, WITHOUT_N, span

if TYPE_CHECKING:
    import pandas as pd

KEY = ["unit", "task", "seed"]


@dataclass(frozen=True)
class Contrast:
    """The paired differences of one weighted sum of treatments, in fractions."""

    rows: pd.DataFrame
    """unit, task, seed, n, value, diverged: one row a complete set of networks"""
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

    def covered(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The n to average: those with 3 units or more, if there are any. Units that average different n would differ
        for that reason alone."""
        present = {int(n) for n in self.rows["n"].unique()} if len(self.rows) else set()
        have = tuple(n for n in layers if n in present)
        full = tuple(n for n in have if self.at([n]).units >= FEWEST)
        return full or have

    def at(self, layers: Sequence[int]) -> Estimate:
        """The estimate over these n: each (task, seed) first averages its n."""
        rows = self.rows[self.rows["n"].isin(list(layers))] if len(self.rows) else self.rows
        return estimate(rows) if len(rows) else EMPTY


def formula(weights: Mapping[str, float]) -> str:
    """`AnB - BnB`, `scratch - 2 BnB + AnB`."""
    text = ""
    for treatment, weight in weights.items():
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        text += f"{sign}{size}{SHORT.get(treatment, treatment)}"
    return text


def contrast(frame: pd.DataFrame, weights: Mapping[str, float], layers: Sequence[int] | None = None) -> Contrast:
    """Pair the treatments of `weights` on task and seed within one scope's frame; `layers` limits n."""
    if "reference" not in weights:
        return _paired(frame, weights, layers, "")
    first = _paired(frame, _resolved(weights, "scratch"), layers, "")
    if first.identified:
        return first
    second = _paired(frame, _resolved(weights, "base"), layers, "base")
    return second if second.identified or (frame["treatment"] == "base").any() else first


def _resolved(weights: Mapping[str, float], treatment: str) -> dict[str, float]:
    return {treatment if t == "reference" else t: w for t, w in weights.items()}


def _paired(frame: pd.DataFrame, weights: Mapping[str, float], layers: Sequence[int] | None, fallback: str) -> Contrast:
    import pandas as pd

    none = pd.DataFrame({c: [] for c in [*KEY, "n", "value", "diverged"]})
    sides = {t: _side(frame, t, layers) for t in weights}
    for treatment, side in sides.items():
        if side.empty:
            where = "" if layers is None or treatment in WITHOUT_N else f" at n = {span(layers)}"
            return Contrast(
                none, weights, f"no {SHORT.get(treatment, treatment)} network with a score{where}", fallback
            )
    joined = None
    for treatment, side in sides.items():
        side = side.assign(value=side["score"] * weights[treatment]).drop(columns="score")
        if joined is None:
            joined = side
            continue
        on = KEY + (["n"] if "n" in joined.columns and "n" in side.columns else [])
        joined = joined.merge(side, on=on, suffixes=("", "_r"))
        joined["value"] += joined.pop("value_r")
        joined["diverged"] |= joined.pop("diverged_r")
    assert joined is not None
    if joined.empty:
        return Contrast(none, weights, _why(sides), fallback)
    if "n" not in joined.columns:
        joined["n"] = 0
    return Contrast(joined[[*KEY, "n", "value", "diverged"]], weights, "", fallback)


def _side(frame: pd.DataFrame, treatment: str, layers: Sequence[int] | None) -> pd.DataFrame:
    """One treatment's scores by unit, task, seed (and n); several sources of one target are averaged."""
    rows = frame[(frame["treatment"] == treatment) & frame["score"].notna()]
    keys = KEY if treatment in WITHOUT_N else [*KEY, "n"]
    if layers is not None and treatment not in WITHOUT_N:
        rows = rows[rows["n"].isin(list(layers))]
    rows = rows.assign(diverged=rows["status"] == "diverged")
    return rows.groupby(keys, sort=False, as_index=False).agg(score=("score", "mean"), diverged=("diverged", "any"))


def _why(sides: Mapping[str, pd.DataFrame]) -> str:
    names = [SHORT.get(t, t) for t in sides]
    both = "both" if len(names) == 2 else "all of them"
    tasks = set.intersection(*(set(s["task"]) for s in sides.values()))
    if not tasks:
        return (
            f"no task has both treatments ({' and '.join(names)})"
            if len(names) == 2
            else (f"no task has {', '.join(names)} together")
        )
    pairs = set.intersection(*(set(zip(s["task"], s["seed"], strict=True)) for s in sides.values()))
    what = "no seed of a shared task has" if not pairs else "no n of a shared task and seed has"
    return f"{what} {both} ({', '.join(names)})"
