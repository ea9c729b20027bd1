"""Figure 3 of the paper: dissimilar tasks and random filters, held against random splits.

Top left: the other split (man-made/natural), one line a target. Top right: random, untrained, frozen filters. Below:
all of them relative to the base of their own task, in differences of accuracy, as the paper does (plain subtraction).
For balanced data this equals the published form (mean of treatments minus mean of bases); for unbalanced data only
the paired form compares like with like.

Beyond the paper, where chance is above 1 % (few classes): the same relative to chance, (accuracy - chance) /
(reference - chance), with chance = 1 / classes and the task's own base as reference. It puts tasks with different
numbers of classes on one scale; at a thousand classes chance is nothing and the paper has no such panel.

Diverged networks stand in the figure as hollow markers with a cross: the paper's random filters at n = 3 and 7 never
left chance, and that is a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis import figure2, placing, style
from analysis import scope as scopes
from analysis.contrasts import contrast
from analysis.scope import Scope
from analysis.tables import points
from analysis.units import Estimate, estimate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.results import Results

HALVES = {"A": "natural", "B": "man-made"}
"""raygrid's semantic split; the paper's text has the letters the other way round"""
FRAME = (-30.0, 3.0)
NORMALIZED_FROM = 0.01
"""chance level from which the normalised panel is drawn"""


@dataclass(frozen=True)
class Curve:
    """One line of the lower panels."""

    label: str
    look: str
    """key of style.MARKS"""
    relative: dict[int, Estimate]
    """accuracy minus own base, fractions"""
    normalized: dict[int, Estimate]
    """(accuracy - chance) / (reference - chance); empty where chance is unknown"""
    chance: float
    """largest chance level among its tasks; nan where unknown"""


def curves(results: Results) -> list[Curve]:
    """The lines that this study can show: random splits, the other split, random filters."""
    other = scopes.other(results)
    here = scopes.peers(results, other) if other else scopes.main(results)
    found = []
    if (here is not None and here.population == "random") or (
        here is not None and here.population not in ("", "all") and other is None
    ):
        found.append(_curve(here, "transfer", _label(here), "transfer"))
    if other is not None:
        found.append(_curve(other, "transfer", _label(other), "semantic"))
    for scope in scopes.random_filters(results)[:1]:
        found.append(_curve(scope, "random", "random, untrained filters", "random"))
    return [c for c in found if c.relative]


def reason_against(results: Results) -> str:
    """Why there is no Figure 3; empty where there is one."""
    if scopes.other(results) is None and not scopes.random_filters(results):
        return "figure3: it compares random splits with another split or with random filters; this study has neither"
    if not curves(results):
        return "figure3: no transfer or random-filter network shares task and seed with a base"
    return ""


def _label(scope: Scope) -> str:
    kinds = {"random": "random splits", "semantic": "man-made/natural split"}
    return f"mean AnB, {kinds.get(scope.population, scope.title)}"


def _curve(scope: Scope, treatment: str, label: str, look: str) -> Curve:
    pairs = contrast(scope, {treatment: 1, "base": -1})
    if not pairs.identified:
        return Curve(label, look, {}, {}, float("nan"))
    ns = pairs.layers
    normalized, chance = _normalized(scope, treatment)
    return Curve(
        label,
        look,
        {n: pairs.at([n]) for n in ns},
        normalized,
        chance,
    )


def _normalized(scope: Scope, treatment: str) -> tuple[dict[int, Estimate], float]:
    """(accuracy - chance) / (reference - chance); empty where classes are unknown or a base is not above chance."""
    classes = scope.frame.drop_duplicates("task").set_index("task")["classes"].to_dict()
    chance = 1 / np.array([classes[t] for t in scope.pairs.tasks], dtype="float64")[scope.pairs.task][:, None]
    (scores, dead), (base, base_dead) = scope.side(treatment), scope.side("base")
    reference = base[:, :1]
    paired = np.isfinite(scores + reference)
    if not (np.broadcast_to(reference - chance, scores.shape)[paired] > 0).all():
        return {}, float("nan")
    values = (scores - chance) / np.where(reference > chance, reference - chance, np.nan)
    diverged = dead | base_dead[:, :1]
    ns = [int(n) for n in np.flatnonzero(paired.any(axis=0))]
    found = {n: estimate(scope.pairs, values[:, [n]], diverged[:, [n]]) for n in ns}
    return found, float(np.broadcast_to(chance, scores.shape)[paired].max())


@style.styled
def draw(results: Results, published: Results | None = None) -> Figure:
    """The paper's 3 x 2 grid, 14 x 10 inches; one panel more where chance matters."""
    found = curves(results)
    other, filters = scopes.other(results), scopes.random_filters(results)
    extra = any(c.normalized and c.chance > NORMALIZED_FROM for c in found)
    fig = style.figure(14, 20.5 if extra else 14)
    counts = 0.25 if extra else 0.4  # room under the top panels
    heights = [1, counts, 1, 1, *([1, 1] if extra else [])]
    grid = fig.add_gridspec(len(heights), 2, height_ratios=heights, hspace=0.5 if extra else 0.42, wspace=0.42)
    theirs = scopes.other(published) if published and other and other.population == "semantic" else None
    moved = _targets(fig.add_subplot(grid[0, 0]), other, results.depth, theirs)
    whole = scopes.random_filters(published)[0] if published else None
    moved += _filters(fig.add_subplot(grid[0, 1]), filters[0] if filters else None, results.depth, whole)
    lower = fig.add_subplot(grid[2:4, :])
    _relative(lower, found, results.depth, curves(published) if published else [])
    last = lower
    if extra:
        last = fig.add_subplot(grid[4:6, :])
        _share(last, found, results.depth)
    last.set_xlabel("Layer n at which network is chopped and retrained")
    rows = [(row_name(c), c.relative) for c in found]
    top = -0.2
    style.count_rows(last, rows, "units (pairs)", top=top, step=0.06)
    _caption(last, results, found, moved, top - 0.06 * (len(rows) + 0.8))
    return fig


def row_name(curve: Curve) -> str:
    if curve.look == "random":
        return "random filters"
    return curve.label.removeprefix("mean AnB, ").removesuffix(" split")


def _caption(ax: Axes, results: Results, found: list[Curve], moved: list[str], y: float) -> None:
    said = ["Minus the base of the same task and seed. Whiskers: 95 % Student-t, from 3 units up."]
    alone = [row_name(c) for c in found if any(e.conditional for e in c.relative.values())]
    if alone:
        said.append(f"Where only one split counts ({', '.join(alone)}), units are seeds: conditional on this split.")
    other = scopes.other(results)
    against = scopes.peers(results, other) if other else None
    if other is not None and against is not None:
        if scopes.equal_terms(other, against):
            said.append(
                "The two kinds of split are on equal terms: same setting, same number of classes in every task."
            )
        else:
            said.append(
                "The two kinds of split are not on equal terms: their tasks differ in number of classes or setting."
            )
    if moved:
        said.append(f"Dotted: published; in the top panels moved to this study's bases ({', '.join(moved)} points).")
    if any(e.diverged for c in found for e in c.relative.values()):
        said.append("Hollow with ×: diverged networks (at chance, or loss not finite), kept: they are results.")
    style.caption(ax, said, y)


def targets(other: Scope) -> dict[str, dict[int, Estimate]]:
    """Means of base (n = 0) and frozen transfer by target and n, in fractions: the lines of the top left panel."""
    found = {}
    for target in sorted(other.frame.loc[_shown(other), "target"].unique()):
        half = Scope(other.frame[_shown(other) & (other.frame["target"] == target)], other.population)
        name = HALVES.get(str(target), str(target)) if other.population == "semantic" else str(target)
        found[name] = {**figure2.lines_of(half, "base"), **figure2.lines_of(half, "transfer")}
    return found


def _shown(other: Scope) -> pd.Series:
    return other.frame["treatment"].isin(["base", "transfer"]) & other.frame["score"].notna()


def untrained(scope: Scope) -> dict[int, Estimate]:
    """Means of random filters by n, and of the bases of their tasks at n = 0: the line of the top right panel."""
    frame = scope.frame[scope.frame["score"].notna()]
    tasks = frame.loc[frame["treatment"] == "random", "task"].unique()
    base = frame[(frame["treatment"] == "base") & frame["task"].isin(tasks)]
    return {**figure2.lines_of(Scope(base, scope.population), "base"), **figure2.lines_of(scope, "random")}


def _targets(ax: Axes, other: Scope | None, depth: int, published: Scope | None) -> list[str]:
    """The top left panel; how far each published line was moved."""
    ax.set_title("Man-made/Natural split" if other is None or other.population == "semantic" else other.title)
    if other is None:
        _nothing(ax, "no other split in this study")
        return []
    frame, rows = other.frame[_shown(other)], targets(other)
    look = style.MARKS["semantic"]
    lines = [look.line, "-"]
    for i, means in enumerate(rows.values()):
        ys = [e.mean for e in means.values()]
        ax.plot(list(means), ys, color=look.color, lw=2, ls=lines[i % 2], zorder=2.5)
    dead = list(frame["status"] == "diverged")
    style.points(ax, "semantic", list(frame["n"]), list(frame["score"]), dead, scale=0.7)
    theirs = targets(published) if published else {}
    drawn = {name: _overlay(ax, "semantic", rows[name], theirs[name], depth) for name in rows if name in theirs}
    _top_axis(ax, depth, [*frame["score"], *(y for ys, _ in drawn.values() for y in ys)])
    ends = [(float(max(means)), means[max(means)].mean, name, "black") for name, means in rows.items()]
    style.end_labels(ax, ends, size=12, gap=0.1)
    _counts(ax, list(rows.items()))
    return [f"{name} {points(move, 1)}" for name, (_, move) in drawn.items()]


def _filters(ax: Axes, scope: Scope | None, depth: int, published: Scope | None) -> list[str]:
    """The top right panel; how far the published line was moved."""
    ax.set_title("Random, untrained filters")
    if scope is None:
        _nothing(ax, "no random filters in this study")
        return []
    frame = scope.frame[scope.frame["score"].notna()]
    own = frame[frame["treatment"] == "random"]
    base = frame[(frame["treatment"] == "base") & frame["task"].isin(own["task"].unique())]
    means = untrained(scope)
    look = style.MARKS["random"]
    ax.plot(list(means), [e.mean for e in means.values()], color=look.color, lw=2, ls=look.line, zorder=2.5)
    style.points(ax, "random", list(own["n"]), list(own["score"]), list(own["status"] == "diverged"), scale=0.8)
    style.points(ax, "base", [0] * len(base), list(base["score"]), list(base["status"] == "diverged"), scale=0.8)
    ys, move = _overlay(ax, "random", means, untrained(published), depth) if published else ([], 0.0)
    _top_axis(ax, depth, [0.0, *own["score"], *base["score"], *(y for y in ys if y > 0)])
    chance = 1 / own["classes"].dropna()
    if len(chance) and chance.max() > NORMALIZED_FROM:
        ax.axhline(float(chance.mean()), color="#777777", lw=1, ls=":")
        place = ax.get_yaxis_transform()
        ax.text(1.01, float(chance.mean()), "chance", transform=place, size=11, va="center", color="#444444")
    _counts(ax, [("random", means)])
    return [f"random filters {points(move, 1)}"] if ys else []


def _overlay(
    ax: Axes, look: str, ours: Mapping[int, Estimate], theirs: Mapping[int, Estimate], depth: int
) -> tuple[list[float], float]:
    """A published line, moved so that its base lies on this study's, as in Figure 2; what was drawn, and the move."""
    move = ours[0].mean - theirs[0].mean if 0 in ours and 0 in theirs else 0.0
    xs = [n for n in theirs if n < depth]
    ys = [theirs[n].mean + move for n in xs]
    style.overlay(ax, style.MARKS[look].color, xs, ys)
    return ys, move


def _counts(ax: Axes, rows: list[tuple[str, dict[int, Estimate]]]) -> None:
    style.count_rows(ax, rows, "units (networks)", top=-0.27, step=0.13)


def _nothing(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", size=13, color="#555555")
    ax.set_xticks([])
    ax.set_yticks([])


def _top_axis(ax: Axes, depth: int, values: list[float]) -> None:
    ax.set_xlim(-0.3, depth - 1 + 0.3)
    ax.set_xticks(range(depth))
    ax.set_ylim(*style.limits(values, margin=0.1))
    ax.set_ylabel("Top-1 accuracy", size=14)


def _relative(ax: Axes, found: list[Curve], depth: int, published: list[Curve]) -> None:
    ends, seen = [], [0.0, 2.0]
    for theirs in published:
        xs = [n for n in theirs.relative if n < depth]
        ys = [100 * theirs.relative[n].mean for n in xs]
        style.overlay(ax, style.MARKS[theirs.look].color, [0, *xs], [0, *ys])
        if theirs.look != "random":
            seen += ys
    for curve in found:
        style.curve(ax, curve.look, curve.relative, markers=True)
        _start(ax, curve, curve.relative, 0.0, 100.0)
        ends.append(
            (float(max(curve.relative)), 100 * curve.relative[max(curve.relative)].mean, row_name(curve), "black")
        )
        if curve.look != "random":
            seen += [100 * v for e in curve.relative.values() for v in (e.interval or (e.mean,))]
    fallen = [e for c in found if c.look == "random" for e in c.relative.values()]
    filters = [100 * e.mean for e in fallen]
    low, high = min(seen), max(seen)
    low, high = (FRAME[0], max(FRAME[1], high + 0.5)) if -30 <= low < -15 else (low * 1.15 - 0.5, high + 1)
    if filters and (min(filters) > 1.6 * low or len(found) == 1):
        low = min(low, *(106 * (e.interval or (e.mean,))[0] for e in fallen))
    gone = [v for v in filters if v < low]
    ax.set_ylim(low, high)
    ax.set_xlim(-0.2, depth - 1 + 0.3)
    ax.set_xticks(range(depth))
    for line in ax.lines:
        line.set_clip_on(True)
    _reference(ax, 0.0)
    if gone:
        fall = next(c.relative for c in found if c.look == "random")
        out = min(n for n, e in fall.items() if 100 * e.mean < low)
        ax.text(out - 0.35, low + 0.03 * (high - low), f"random filters: down to {min(gone):+.1f} points", size=12)
    ax.set_ylabel("Relative top-1 accuracy\n(points, higher is better)")
    style.end_labels(ax, ends, size=13, gap=0.06)
    _legend(ax, found, published)


def _share(ax: Axes, found: list[Curve], depth: int) -> None:
    ends, seen = [], [0.0, 1.0]
    for curve in (c for c in found if c.normalized):
        style.curve(ax, curve.look, curve.normalized, scale=1.0)
        _start(ax, curve, curve.normalized, 1.0, 1.0)
        values = [v for e in curve.normalized.values() for v in (e.interval or (e.mean,))]
        seen += [max(v, -0.1) for v in values]
        ends.append(
            (float(max(curve.normalized)), curve.normalized[max(curve.normalized)].mean, row_name(curve), "black")
        )
    ax.axhline(0, color="#777777", lw=1, ls=":")
    ax.text(0.02, 0, "chance", size=11, va="bottom", color="#444444")
    ax.set_xlim(-0.2, depth - 1 + 0.3)
    ax.set_xticks(range(depth))
    ax.set_ylim(*style.limits(seen, margin=0.06))
    _reference(ax, 1.0)
    ax.set_ylabel("(accuracy - chance) /\n(reference - chance)")
    style.end_labels(ax, ends, size=13, gap=0.06)


def _start(ax: Axes, curve: Curve, means: Mapping[int, Estimate], y: float, scale: float) -> None:
    """A line starts at the reference, n = 0."""
    first = min(style.joined(means))
    mark = style.MARKS[curve.look]
    ax.plot([0, first], [y, scale * means[first].mean], color=mark.color, lw=2, ls=mark.line, zorder=2)


def _reference(ax: Axes, y: float) -> None:
    ax.axhline(y, color="black", lw=1, ls=style.MARKS["base"].line, zorder=1)
    style.points(ax, "base", [0], [y], [False], scale=0.9)


def _legend(ax: Axes, found: list[Curve], published: list[Curve]) -> None:
    handles = [style.legend_handle("base", 0.8)]
    labels = ["reference: base of the same task"]
    for curve in found:
        handles.append(style.line_handle(curve.look))
        labels.append(curve.label)
    if published:
        handles.append(style.overlay_handle())
        labels.append("published (2014)")
    placing.legend(ax, handles, labels, fontsize=13)


def table(results: Results) -> Mapping[str, Mapping[int, float]]:
    """Means of the relative panel by label and n, in fractions."""
    return {c.label: {n: e.mean for n, e in c.relative.items()} for c in curves(results)}
