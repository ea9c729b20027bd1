"""Ours, the authors', the differences: side by side in the paper's own layout.

Columns: this study, the authors' logs, the difference. Rows: Figure 2 (bottom) and, where this study has something
for it, Figure 3 (bottom). The first two columns of Figure 2 are mean accuracies as in the paper; everything else is
relative to the base of the same task, since two studies share no task and their raw levels need not agree.
A difference of two studies has no pairing; it is shown without an interval and proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis import figure2, figure2_paired, figure3, style, table1
from analysis import scope as scopes
from analysis.tables import Table, points
from analysis.units import Estimate
from analysis.vocabulary import CURVES, SHORT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.results import Results

Lines = Mapping[str, Mapping[int, Estimate]]


def reason_against(results: Results) -> str:
    """Why there is no comparison; empty where there is one."""
    if figure2_paired.differences(scopes.main(results), "base"):
        return ""
    return "comparison: no network shares task and seed with a base, so nothing can be held against the authors' curves"


@style.styled
def draw(results: Results, published: Results) -> Figure:
    """One or two rows of three panels."""
    ours, theirs = scopes.main(results), scopes.main(published)
    mine, yours = figure2_paired.differences(ours, "base"), figure2_paired.differences(theirs, "base")
    third = [{c.look: c.relative for c in figure3.curves(r)} for r in (results, published)]
    rows = 2 if third[0] and not figure3.reason_against(results) else 1
    fig = style.figure(18, 5.6 * rows)
    grid = fig.add_gridspec(rows, 3, wspace=0.36, hspace=0.38)
    names = (results.study if len(results.study) < 30 else "this study", "the authors (2014)", "difference")
    for column, scope in enumerate((ours, theirs)):
        ax = fig.add_subplot(grid[0, column])
        _accuracies(ax, figure2.lines(scope), results.depth if column == 0 else 8)
        ax.set_title(names[column])
        if column == 0:
            ax.set_ylabel("Figure 2: top-1 accuracy", size=13)
    ax = fig.add_subplot(grid[0, 2])
    _gaps(ax, _subtract(mine, yours), results.depth)
    ax.set_title(names[2])
    ax.set_ylabel("ours - theirs, each\nminus own base (points)", size=12)
    if rows == 2:
        bare = [{k: {n: e.mean for n, e in v.items()} for k, v in lines.items()} for lines in third]
        for column, lines in enumerate((*bare, _subtract(*third))):
            ax = fig.add_subplot(grid[1, column])
            _gaps(ax, lines, published.depth if column == 1 else results.depth)
            ax.set_xlabel("n", size=13)
            if column == 0:
                ax.set_ylabel("Figure 3: minus own base (points)", size=13)
    return fig


def _accuracies(ax: Axes, lines: Lines, depth: int) -> None:
    base = lines.get("base", {}).get(0)
    ends = []
    for treatment in (t for t in CURVES if t in lines):
        means = dict(style.joined(lines[treatment]))
        style.curve(ax, treatment, figure2.from_base(means, base), scale=1.0)
        ends.append((float(max(means)), means[max(means)].mean, SHORT[treatment], "black"))
    if base:
        ax.axhline(base.mean, color="black", lw=1.5, ls=style.MARKS["base"].line, zorder=1)
    ax.set_xlim(-0.2, depth - 0.7)
    ax.set_xticks(range(depth))
    ax.tick_params(labelsize=12)
    style.end_labels(ax, ends, size=11, gap=0.055)


def _gaps(ax: Axes, lines: Mapping[str, Mapping[int, float]], depth: int) -> None:
    ends = []
    for name, means in lines.items():
        mark = style.MARKS[name]
        ys = [100 * v for v in means.values()]
        ax.plot(list(means), ys, color=mark.color, lw=2, ls=mark.line)
        style.points(ax, name, list(means), ys, [False] * len(ys), scale=0.6)
        label = {"transfer": "AnB", "semantic": "semantic"}.get(name, SHORT.get(name, name))
        ends.append((float(max(means)), ys[-1], label, "black"))
    ax.axhline(0, color="black", lw=1.5, ls=style.MARKS["base"].line, zorder=1)
    ax.set_xlim(-0.2, depth - 0.7)
    ax.set_xticks(range(depth))
    ax.tick_params(labelsize=12)
    style.end_labels(ax, ends, size=11, gap=0.055)


def _subtract(ours: Lines, theirs: Lines) -> dict[str, dict[int, float]]:
    found = {}
    for name in ours:
        shared = [n for n in ours[name] if n in theirs.get(name, {})]
        if shared:
            found[name] = {n: ours[name][n].mean - theirs[name][n].mean for n in shared}
    return found


def tables(results: Results, published: Results) -> list[Table]:
    """Figure 2 relative to own base, and Table 1, each as ours, theirs, difference."""
    ours, theirs = scopes.main(results), scopes.main(published)
    mine, yours = figure2_paired.differences(ours, "base"), figure2_paired.differences(theirs, "base")
    rows, records = [], []
    ns = sorted({n for t in mine for n in mine[t]} & {n for t in yours for n in yours[t]})
    for treatment in (t for t in CURVES if t in mine):
        lines: list[list[str]] = [[f"{SHORT[treatment]} {who}"] for who in ("ours", "authors", "difference")]
        for n in ns:
            a, b = mine[treatment].get(n), yours.get(treatment, {}).get(n)
            gap = points(a.mean - b.mean) if a and b else ""
            texts = [f"{points(e.mean)} ({e.units})" if e else "" for e in (a, b)]
            for line, text in zip(lines, [*texts, gap], strict=True):
                line.append(text)
            records.append({"treatment": treatment, "n": n, "ours": texts[0], "authors": texts[1], "difference": gap})
        rows += lines
    columns = ["points, in brackets units", *[f"n = {n}" for n in ns]]
    notes = ["Relative to the base of the same task and seed. Two studies share no task: no interval, no test."]
    found = [Table("comparison", "Figure 2, relative to own base", columns, rows, records, notes)]
    one, two = table1.tables(ours, results.depth)[0], table1.tables(theirs, published.depth)[0]
    both = []
    for row in one.rows:
        other = next((r for r in two.rows if r[0] == row[0].split(" ")[0]), None)
        both.append([row[0], row[1], other[1] if other else "-", row[2], other[2] if other else "-"])
    columns = ["layers kept", "over baseB: ours", "authors", "over BnB+: ours", "authors"]
    found.append(
        Table(
            "comparison",
            "Table 1, pooled",
            columns,
            both,
            [],
            [f"The authors' runs: {note}" for note in two.notes[2:3]],
        )
    )
    return found
