"""Figure 2 of the paper: accuracy against the layer at which the network is cut. Top: every network. Bottom: means.

After Yosinski et al. 2014, Figure 2. Points are networks; lines join means over splits (or over seeds, with one
split) and start at the mean base. The paper's explanations of the shaded areas are printed only where the verdict on
their claim is `supported`; the authors' own logs keep all of them, as in the paper, and the caption says what these
logs decide. Raw means compare different tasks where a treatment does not cover all of them; the counts under the axis
show it, and the paired figure mends it.

Beyond the paper: scratch and base-long at n = 0, t intervals from 3 units up, crosses on diverged networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis import placing, reference, style
from analysis.contrasts import contrast
from analysis.scope import Scope
from analysis.units import Estimate
from analysis.vocabulary import CURVES, LABELS, SHORT, WITHOUT_N, layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.verdicts import Judged

OFFSETS = {"selffer": -0.25, "selffer+": -0.09, "transfer": 0.09, "transfer+": 0.27, "scratch": 0.16, "base-long": 0.32}
DODGE = {"selffer": -0.05, "selffer+": -0.02, "transfer": 0.02, "transfer+": 0.05}
"""whiskers stand side by side; lines and markers at n itself"""
PAPER_POINTS = (0.52, 0.66)
PAPER_LINES = (0.54, 0.655)


class Explanation(NamedTuple):
    """A sentence that the paper writes into its figure."""

    text: str
    claim: str
    """key in claims.py: the sentence stands where this claim is supported"""
    effect: Mapping[str, float]
    """its number stands at the n where this is largest"""
    layers: str
    """group of n, see vocabulary.layers"""


EXPLANATIONS = {
    2: Explanation(
        "Performance drops due to fragile co-adaptation",
        "co-adaptation in the middle",
        {"reference": 1, "selffer": -1},
        "middle",
    ),
    3: Explanation(
        "Fine-tuning recovers co-adapted interactions",
        "fine-tuning recovers co-adaptation",
        {"selffer+": 1, "selffer": -1},
        "middle",
    ),
    4: Explanation(
        "Performance drops due to representation specificity",
        "upper layers are specific",
        {"selffer": 1, "transfer": -1},
        "upper",
    ),
    5: Explanation(
        "Transfer + fine-tuning improves generalization",
        "transfer + fine-tuning improves generalisation",
        {"transfer+": 1, "reference": -1},
        "all",
    ),
}
"""the paper's numbers: items of its section 4.1"""
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
def draw(
    scope: Scope, depth: int, judged: Sequence[Judged], published: Scope | None = None, notes: Sequence[str] = ()
) -> Figure:
    """Both panels, 15 x 8 inches each, as in the paper; `notes` stand in the caption."""
    fig = style.figure(15, 17.5)
    grid = fig.add_gridspec(2, 1, hspace=0.12)
    found = lines(scope)
    _points(fig.add_subplot(grid[0]), scope, depth, found)
    ax = fig.add_subplot(grid[1])
    _lines(ax, scope, depth, found, lines(published) if published else None)
    _explain(ax, found, explained(judged, scope, depth), depth)
    _label_ends(ax, found, depth)
    base, rows = found.get("base", {}).get(0), [(SHORT[t], found[t]) for t in (*WITHOUT_N, *CURVES) if t in found]
    style.count_rows(ax, rows, f"{'seeds' if base and base.conditional else 'splits'} (networks)")
    _caption(ax, scope, found, [*_whose(scope, judged), *notes])
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
    base, curves = found.get("base", {}).get(0), _curves(found)
    shade(ax, curves, base.mean if base else None)
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


def _curves(found: Mapping[str, Mapping[int, Estimate]]) -> dict[str, dict[int, Estimate]]:
    base = found.get("base", {}).get(0)
    return {t: from_base(found[t], base) for t in CURVES if t in found}


def _label_ends(ax: Axes, found: Mapping[str, Mapping[int, Estimate]], depth: int) -> None:
    ends = [(m[max(m)].mean, SHORT[t]) for t, m in _curves(found).items()]
    ends += [(found["base"][0].mean, SHORT["base"])] if "base" in found else []
    style.end_labels(ax, [(float(depth - 1), y, name, "black") for y, name in ends])


def _whose(scope: Scope, judged: Sequence[Judged]) -> list[str]:
    """Of the authors' own logs: that the labels are the paper's, and which of them these logs do not decide."""
    if not _authors(scope):
        return []
    said = {v.claim.key: v.verdict for v in judged}
    words = [f"{number} {said.get(e.claim, 'not judged')}" for number, e in EXPLANATIONS.items()]
    return [f"The labels are the paper's own, whatever these logs decide (verdicts: {', '.join(words)})."]


def _authors(scope: Scope) -> bool:
    return set(scope.frame["study"]) == {reference.STUDY}


def _caption(ax: Axes, scope: Scope, found: Mapping[str, Mapping[int, Estimate]], notes: Sequence[str]) -> None:
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
    style.caption(ax, [*said, *filter(None, notes)], -0.155 - 0.042 * (len(found) + 0.6))


def from_base(means: Mapping[int, Estimate], base: Estimate | None) -> dict[int, Estimate]:
    """A line starts at (0, mean base), as in the paper."""
    return {**({0: _bare(base)} if base else {}), **means}


def _bare(base: Estimate) -> Estimate:
    """The start of a line repeats the base's mean without its interval."""
    return Estimate((base.mean,), ("start",), base.kind, base.conditional, base.tasks, base.cells)


def shade(ax: Axes, curves: Mapping[str, Mapping[int, Estimate]], base: float | None, scale: float = 1.0) -> None:
    """The paper's areas: what AnB+ gains, what BnB loses, what AnB loses beyond it."""

    def fill(upper: Mapping[int, float], lower: Mapping[int, float], color: str) -> None:
        xs = sorted(set(upper) & set(lower))
        ax.fill_between(xs, [lower[x] for x in xs], [upper[x] for x in xs], color=color, lw=0, zorder=1)

    means = {t: {n: scale * e.mean for n, e in style.joined(m).items()} for t, m in curves.items()}
    if base is not None and "transfer+" in means:
        fill(means["transfer+"], dict.fromkeys(means["transfer+"], base), "#ffeeee")
    if base is not None and "selffer" in means:
        fill(dict.fromkeys(means["selffer"], base), means["selffer"], "#eeeeff")
    if "selffer" in means and "transfer" in means:
        fill(means["selffer"], means["transfer"], "#ffcccc")


def explained(judged: Sequence[Judged], scope: Scope, depth: int) -> dict[int, int]:
    """The explanations to print, each with the n at which its effect is largest: those whose claim is supported, and
    all on the authors' own logs."""
    supported = {v.claim.key for v in judged if v.verdict == "supported"}
    shown: dict[int, int] = {}
    for number, explanation in EXPLANATIONS.items():
        found = contrast(scope, explanation.effect)
        at = layers(explanation.layers, depth, found.layers)
        if at and (explanation.claim in supported or _authors(scope)):
            sizes = style.joined({n: found.at([n]) for n in at})
            shown[number] = max(sizes, key=lambda n: sizes[n].mean)
    return shown


def _explain(ax: Axes, found: Mapping[str, Mapping[int, Estimate]], shown: Mapping[int, int], depth: int) -> None:
    """The paper's explanations as a list where nothing is, and their numbers in the areas that they speak of."""
    taken = [placing.text(ax, [f"{number}: {EXPLANATIONS[number].text}" for number in shown], 15)] if shown else []
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        taken.append(placing.legend(ax, handles, labels, taken, fontsize=12).get_window_extent())
    level = dict.fromkeys((0, depth - 1), found["base"][0].mean) if "base" in found else {}
    means = {t: {n: e.mean for n, e in style.joined(m).items()} for t, m in _curves(found).items()}
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
        style.overlay(ax, style.MARKS[treatment].color, xs, ys, label)
        drawn += ys
    return drawn


def _x_axis(ax: Axes, depth: int) -> None:
    ax.set_xlim(-0.2 if depth == 8 else -0.4, depth - 1 + 0.4)
    ax.set_xticks(range(depth))
