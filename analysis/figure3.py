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
from analysis.units import Estimate, estimate

if TYPE_CHECKING:
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
    grid = fig.add_gridspec(len(heights), 2, height_ratios=heights, hspace=0.5 if extra else 0.42, wspace=0.34)
    _targets(fig.add_subplot(grid[0, 0]), other, results.depth)
    _filters(fig.add_subplot(grid[0, 1]), filters[0] if filters else None, results.depth)
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
    _caption(last, results, found, top - 0.06 * (len(rows) + 0.8))
    return fig


def row_name(curve: Curve) -> str:
    if curve.look == "random":
        return "random filters"
    return curve.label.removeprefix("mean AnB, ").removesuffix(" split")


def _caption(ax: Axes, results: Results, found: list[Curve], y: float) -> None:
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
    if any(e.diverged for c in found for e in c.relative.values()):
        said.append("Hollow with ×: diverged networks (at chance, or loss not finite), kept: they are results.")
    style.caption(ax, said, y)


def _targets(ax: Axes, other: Scope | None, depth: int) -> None:
    ax.set_title("Man-made/Natural split" if other is None or other.population == "semantic" else other.title)
    if other is None:
        return _nothing(ax, "no other split in this study")
    frame = other.frame[other.frame["treatment"].isin(["base", "transfer"]) & other.frame["score"].notna()]
    rows = []
    for target, own in frame.groupby("target", sort=True):
        name = HALVES.get(str(target), str(target)) if other.population == "semantic" else str(target)
        half = Scope(own, other.population)
        means = {**figure2.lines_of(half, "base"), **figure2.lines_of(half, "transfer")}
        rows.append((name, means))
        mark = style.MARKS["semantic"]
        ax.plot(
            list(means),
            [e.mean for e in means.values()],
            color=mark.color,
            lw=2,
            ls=mark.line if target == "A" else "-",
            zorder=2,
            label=f"target {name}",
        )
        style.points(ax, "semantic", list(own["n"]), list(own["score"]), list(own["status"] == "diverged"), scale=0.7)
    _top_axis(ax, depth, list(frame["score"]))
    placing.legend(ax, *ax.get_legend_handles_labels(), fontsize=12)
    _counts(ax, rows)
    return None


def _filters(ax: Axes, scope: Scope | None, depth: int) -> None:
    ax.set_title("Random, untrained filters")
    if scope is None:
        return _nothing(ax, "no random filters in this study")
    frame = scope.frame[scope.frame["score"].notna()]
    own = frame[frame["treatment"] == "random"]
    base = frame[(frame["treatment"] == "base") & frame["task"].isin(own["task"].unique())]
    start = figure2.lines_of(Scope(base, scope.population), "base")
    means = {**start, **figure2.lines_of(scope, "random")}
    mark = style.MARKS["random"]
    ax.plot(list(means), [e.mean for e in means.values()], color=mark.color, lw=2, ls=mark.line, zorder=2)
    style.points(ax, "random", list(own["n"]), list(own["score"]), list(own["status"] == "diverged"), scale=0.8)
    style.points(ax, "base", [0] * len(base), list(base["score"]), list(base["status"] == "diverged"), scale=0.8)
    _top_axis(ax, depth, [0.0, *own["score"], *base["score"]])
    chance = 1 / own["classes"].dropna()
    if len(chance) and chance.max() > NORMALIZED_FROM:
        ax.axhline(float(chance.mean()), color="#777777", lw=1, ls=":")
        ax.text(depth - 1, float(chance.mean()), "chance", size=11, ha="right", va="bottom", color="#444444")
    _counts(ax, [("random", means)])
    return None


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
        ax.plot(
            [0, *xs],
            [0, *ys],
            color=style.MARKS[theirs.look].color,
            lw=1.2,
            ls=":",
            marker=".",
            ms=5,
            zorder=1.8,
            label=f"published: {row_name(theirs)}",
        )
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
    from matplotlib.lines import Line2D

    handles = [style.legend_handle("base", 0.8)]
    labels = ["reference: base of the same task"]
    for curve in found:
        handles.append(style.line_handle(curve.look))
        labels.append(curve.label)
    if published:
        handles.append(Line2D([], [], color="#555555", ls=":", lw=1.2, marker=".", ms=5))
        labels.append("published (2014)")
    placing.legend(ax, handles, labels, fontsize=13)


def table(results: Results) -> Mapping[str, Mapping[int, float]]:
    """Means of the relative panel by label and n, in fractions."""
    return {c.label: {n: e.mean for n, e in c.relative.items()} for c in curves(results)}
