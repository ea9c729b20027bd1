"""Figure 2 of the paper: accuracy against the layer at which the network is cut. Top: every network. Bottom: means.

After Yosinski et al. 2014, Figure 2. Points are networks; lines join means over splits (or over seeds, with one
split) and start at the mean base. The shaded areas carry the paper's explanations, each only where this study shows
it: where its paired difference on the same tasks exceeds 0.5 points at some n. Raw means compare different tasks
where a treatment does not cover all of them; the counts under the axis show it, and the paired figure mends it.

Beyond the paper: scratch and base-long at n = 0, t intervals from 3 units up, crosses on diverged networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from analysis import placing, style
from analysis.contrasts import contrast
from analysis.scope import Scope
from analysis.units import Estimate
from analysis.vocabulary import CURVES, LABELS, SHORT, WITHOUT_N

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OFFSETS = {"selffer": -0.25, "selffer+": -0.09, "transfer": 0.09, "transfer+": 0.27, "scratch": 0.16, "base-long": 0.32}
DODGE = {"selffer": -0.05, "selffer+": -0.02, "transfer": 0.02, "transfer+": 0.05}
"""whiskers stand side by side; lines and markers at n itself"""
PAPER_POINTS = (0.52, 0.66)
PAPER_LINES = (0.54, 0.655)
VISIBLE = 0.005
"""a shaded explanation needs a paired difference of at least this much (a fraction)"""
TEXTS = {
    2: "Performance drops due to fragile co-adaptation",
    3: "Fine-tuning recovers co-adapted interactions",
    4: "Performance drops due to representation specificity",
    5: "Transfer + fine-tuning improves generalization",
}
X_LABEL = "Layer n at which network is chopped and retrained"


def lines(scope: Scope) -> dict[str, dict[int, Estimate]]:
    """Means of every treatment by n, in fractions: the bottom panel's lines; n = 0 treatments have the key 0."""
    found = {t: lines_of(scope, t) for t in (*WITHOUT_N, *CURVES)}
    return {t: means for t, means in found.items() if means}


def lines_of(scope: Scope, treatment: str) -> dict[int, Estimate]:
    """Means of one treatment by n, in fractions; empty where it has no score."""
    found = contrast(scope, {treatment: 1})
    return {n: found.at([n]) for n in found.layers}


def reason_against(scope: Scope) -> str:
    """Why there is no Figure 2; empty where there is one."""
    return "" if scope.has(*CURVES, *WITHOUT_N) else "figure2: no network of its treatments has a score yet"


@style.styled
def draw(scope: Scope, depth: int, published: Scope | None = None) -> Figure:
    """Both panels, 15 x 8 inches each, as in the paper."""
    fig = style.figure(15, 17.5)
    grid = fig.add_gridspec(2, 1, hspace=0.12)
    found = lines(scope)
    _points(fig.add_subplot(grid[0]), scope, depth, found)
    _lines(fig.add_subplot(grid[1]), scope, depth, found, lines(published) if published else None)
    return fig


def _frame_fits(scope: Scope, depth: int, found: Mapping[str, Mapping[int, Estimate]]) -> bool:
    """Whether the paper's own axis limits show everything."""
    scores = scope.frame.loc[scope.frame["treatment"].isin(list(found)), "score"].dropna()
    return depth == 8 and bool(scores.between(*PAPER_POINTS).all()) and bool(scores.max() - scores.min() > 0.04)


def _points(ax: Axes, scope: Scope, depth: int, found: Mapping[str, Mapping[int, Estimate]]) -> None:
    frame = scope.frame.loc[scope.frame["score"].notna(), ["treatment", "n", "score", "status"]]
    shown = [t for t in ("base", "scratch", "base-long", *CURVES) if t in found]
    crowd = frame[frame["treatment"].isin(shown)].groupby(["treatment", "n"]).size().max()
    scale = min(1.0, max(0.3, (16 / crowd) ** 0.5)) if crowd == crowd else 1.0
    for treatment in shown:
        own = frame[frame["treatment"] == treatment]
        xs = own["n"].to_numpy() + OFFSETS.get(treatment, 0.0)
        style.points(ax, treatment, xs, own["score"], own["status"] == "diverged", scale, LABELS[treatment])
    _x_axis(ax, depth)
    values = frame.loc[frame["treatment"].isin(shown), "score"]
    ax.set_ylim(*(PAPER_POINTS if _frame_fits(scope, depth, found) else style.limits(list(values))))
    ax.set_ylabel("Top-1 accuracy (higher is better)")
    from matplotlib.legend_handler import HandlerTuple

    placing.legend(
        ax,
        [style.legend_handle(t) for t in shown],
        [LABELS[t] for t in shown],
        handler_map={tuple: HandlerTuple(ndivide=1, pad=0)},
    )


def _lines(
    ax: Axes,
    scope: Scope,
    depth: int,
    found: Mapping[str, Mapping[int, Estimate]],
    published: Mapping[str, Mapping[int, Estimate]] | None,
) -> None:
    base = found.get("base", {}).get(0)
    curves = {t: from_base(found[t], base) for t in CURVES if t in found}
    _shade(ax, curves, base)
    if base:
        ax.plot([-0.2, depth - 1], [base.mean] * 2, color="black", lw=2, ls=style.MARKS["base"].line, zorder=2)
    for treatment, means in curves.items():
        style.curve(ax, treatment, {n: e for n, e in means.items()}, scale=1.0, markers=False, dodge=DODGE[treatment])
        own = {n: e for n, e in found[treatment].items()}
        dead = [e.diverged > 0 for e in own.values()]
        style.points(ax, treatment, list(own), [e.mean for e in own.values()], dead, scale=0.6)
    for treatment in ("base", "scratch", "base-long"):
        if treatment in found:
            at = OFFSETS.get(treatment, 0.0)
            only = found[treatment][0]
            style.curve(ax, treatment, {at: only}, scale=1.0, markers=False)
            style.points(ax, treatment, [at], [only.mean], [only.diverged > 0])
    _x_axis(ax, depth)
    theirs = _overlay(ax, found, published, depth) if published else []
    spread = [v for means in found.values() for e in means.values() for v in (e.interval or (e.mean,))] + theirs
    low, high = style.limits(spread, margin=0.1)
    if _frame_fits(scope, depth, found) and published is None:  # the paper's limits, wider where a whisker needs it
        low, high = min(PAPER_LINES[0], min(spread) - 0.002), max(PAPER_LINES[1], max(spread) + 0.002)
    ax.set_ylim(low, high)
    ax.set_ylabel("Top-1 accuracy (higher is better)")
    ax.set_xlabel(X_LABEL)
    _explain(ax, scope, curves, base, depth)
    ends = [(float(max(m)), m[max(m)].mean, SHORT[t], "black") for t, m in curves.items() if m]
    ends += [(float(depth - 1), base.mean, "baseB", "black")] if base else []
    style.end_labels(ax, [(max(e[0] for e in ends), *e[1:]) for e in ends])
    rows = [(SHORT[t], found[t]) for t in (*WITHOUT_N, *CURVES) if t in found]
    kind = "seeds" if base and base.conditional else "splits"
    style.count_rows(ax, rows, f"{kind} (networks)")
    _caption(ax, scope, found, len(rows))


def _caption(ax: Axes, scope: Scope, found: Mapping[str, Mapping[int, Estimate]], rows: int) -> None:
    conditional = any(e.conditional for m in found.values() for e in m.values())
    said = [f"Means over {scope.title}; whiskers: 95 % Student-t interval of the mean, from 3 units up."]
    if conditional:
        said.append("Where only one split counts, units are seeds: conditional on this split.")
    if any(len(style.joined(m)) < len(m) for m in found.values()):
        said.append("n that fewer splits cover stand alone, off the line.")
    tasks = {t: max(e.tasks for e in m.values()) for t, m in found.items()}
    if len(set(tasks.values())) > 1:
        covered = ", ".join(f"{SHORT[t]} {k}" for t, k in tasks.items())
        said.append(f"Treatments cover different tasks ({covered}): compare them in the paired figure.")
    if any(e.diverged for m in found.values() for e in m.values()):
        said.append("× = diverged networks, included and marked.")
    style.caption(ax, said, -0.155 - 0.042 * (rows + 0.6))


def from_base(means: Mapping[int, Estimate], base: Estimate | None) -> dict[int, Estimate]:
    """A line starts at (0, mean base), as in the paper."""
    return {**({0: _bare(base)} if base else {}), **means}


def _bare(base: Estimate) -> Estimate:
    """The start of a line repeats the base's mean without its interval."""
    return Estimate((base.mean,), ("start",), base.kind, base.conditional, base.tasks, base.cells)


def _shade(ax: Axes, curves: Mapping[str, Mapping[int, Estimate]], base: Estimate | None) -> None:
    def fill(upper: Mapping[int, float], lower: Mapping[int, float], color: str) -> None:
        xs = sorted(set(upper) & set(lower))
        ax.fill_between(xs, [lower[x] for x in xs], [upper[x] for x in xs], color=color, lw=0, zorder=1)

    means = {t: {n: e.mean for n, e in style.joined(m).items()} for t, m in curves.items()}
    if base and "transfer+" in means:
        fill(means["transfer+"], dict.fromkeys(means["transfer+"], base.mean), "#ffeeee")
    if base and "selffer" in means:
        fill(dict.fromkeys(means["selffer"], base.mean), means["selffer"], "#eeeeff")
    if "selffer" in means and "transfer" in means:
        fill(means["selffer"], means["transfer"], "#ffcccc")


def shown_explanations(scope: Scope) -> dict[int, int]:
    """Which of the paper's explanations hold here, and the n at which each is largest.

    A paired mean of at least 0.5 points; where there are 3 units, its interval must also exclude zero.
    """
    parts = {
        2: {"reference": 1.0, "selffer": -1.0},
        4: {"selffer": 1.0, "transfer": -1.0},
        5: {"transfer+": 1.0, "reference": -1.0},
    }
    shown: dict[int, int] = {}
    for number, weights in parts.items():
        found = contrast(scope, weights)
        if not found.identified:
            continue
        sizes = style.joined({n: found.at([n]) for n in found.layers})
        best = max(sizes, key=lambda n: sizes[n].mean)
        surely = sizes[best].interval
        if sizes[best].mean >= VISIBLE and (surely is None or surely[0] > 0):
            shown[number] = best
    recovery = contrast(scope, {"selffer+": 1.0, "selffer": -1.0})
    if 2 in shown and recovery.identified and recovery.at([shown[2]]).units and recovery.at([shown[2]]).mean >= VISIBLE:
        shown[3] = shown[2]
    return dict(sorted(shown.items()))


def _explain(
    ax: Axes,
    scope: Scope,
    curves: Mapping[str, Mapping[int, Estimate]],
    base: Estimate | None,
    depth: int,
) -> None:
    """The paper's explanations as a list where nothing is, and their numbers in the areas that they speak of."""
    shown = shown_explanations(scope)
    taken = [placing.text(ax, [f"{number}: {TEXTS[number]}" for number in shown], 15)] if shown else []
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        taken.append(placing.legend(ax, handles, labels, taken, fontsize=12).get_window_extent())
    level = dict.fromkeys((0, depth - 1), base.mean) if base else {}
    means = {t: {n: e.mean for n, e in style.joined(m).items()} for t, m in curves.items()}
    sides = {
        2: (level, means.get("selffer", {})),
        3: (means.get("selffer+", {}), means.get("selffer+", {})),
        4: (means.get("selffer", {}), means.get("transfer", {})),
        5: (level, means.get("transfer+", {})),
    }
    for number, n in shown.items():
        if anchors := _between(*sides[number], n):
            taken.append(placing.badge(ax, str(number), anchors, taken))


def _between(one: Mapping[int, float], other: Mapping[int, float], n: int) -> list[placing.Place]:
    """Points midway between two lines, from n outwards as far as the next n on either side."""
    if not one or not other:
        return []
    low, high = max(min(one), min(other)) + 0.2, min(max(one), max(other)) - 0.2
    steps = [0.0, *(side * d / 10 for d in range(1, 10) for side in (-1, 1))]
    xs = [n + step for step in steps if low <= n + step <= high] or [n]
    return [(x, float(np.interp(x, *_line(one)) + np.interp(x, *_line(other))) / 2) for x in xs]


def _line(means: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return sorted(means), [means[n] for n in sorted(means)]


def _overlay(
    ax: Axes,
    found: Mapping[str, Mapping[int, Estimate]],
    published: Mapping[str, Mapping[int, Estimate]],
    depth: int,
) -> list[float]:
    """The published lines, moved so that their base lies on this study's; gives what it drew."""
    drawn: list[float] = []
    theirs, ours = published.get("base", {}).get(0), found.get("base", {}).get(0)
    move = ours.mean - theirs.mean if ours and theirs else 0.0
    for i, treatment in enumerate(t for t in CURVES if t in published):
        means = {**({0: theirs} if theirs else {}), **published[treatment]}
        xs = [n for n in means if n < depth]
        label = f"published, moved by {100 * move:+.1f} points to this base" if i == 0 else None
        ys = [means[n].mean + move for n in xs]
        ax.plot(xs, ys, color=style.MARKS[treatment].color, lw=1.2, ls=":", marker=".", ms=5, zorder=2.2, label=label)
        drawn += ys
    return drawn


def _x_axis(ax: Axes, depth: int) -> None:
    ax.set_xlim(-0.2 if depth == 8 else -0.4, depth - 1 + 0.4)
    ax.set_xticks(range(depth))
