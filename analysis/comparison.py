"""Ours, the authors', the differences: side by side in the paper's own layout.

Columns: this study, the authors' logs, the first minus the second. Rows: Figure 2 (bottom) and, where this study has
something for it, Figure 3 (bottom). Every value is relative to the base of the same task and seed, in points: the raw
levels of two studies need not agree, nor those of the authors' halves. A difference of two studies has no pairing; it
is shown without an interval and proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from analysis import figure2, figure2_paired, figure3, style, table1
from analysis import scope as scopes
from analysis.tables import DAGGER, Table, diverged_note, points
from analysis.units import Estimate
from analysis.vocabulary import SHORT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.results import Results
    from analysis.scope import Scope

Lines = Mapping[str, Mapping[int, Estimate]]
"""by key of style.MARKS and n"""
BASE = Estimate((0.0,), ("start",), "split", False, 0, 0)
"""where every line starts: the base minus itself"""
SCORES = {
    "top1_last": "the last test",
    "top1_best": "the best test",
    "top1_mean10": "the mean of the ten best tests",
}
UNPAIRED = "The two studies share no task, so their difference has no interval and no test."


class Row(NamedTuple):
    """One figure of the paper, ours and theirs."""

    title: str
    ours: Lines
    theirs: Lines
    labels: Mapping[str, str]


def reason_against(results: Results) -> str:
    """Why there is no comparison; empty where there is one."""
    if figure2_paired.differences(scopes.main(results), "base"):
        return ""
    return "comparison: no network shares task and seed with a base, so nothing can be held against the authors' curves"


def rows(results: Results, published: Results) -> list[Row]:
    """Figure 2, and Figure 3 where this study has it."""
    ours, theirs = (figure2_paired.differences(scopes.main(r), "base") for r in (results, published))
    found = [Row("Figure 2", ours, theirs, SHORT)]
    if not figure3.reason_against(results):
        here, there = figure3.curves(results), figure3.curves(published)
        labels = {c.look: figure3.row_name(c) for c in (*there, *here)}
        found.append(Row("Figure 3", {c.look: c.relative for c in here}, {c.look: c.relative for c in there}, labels))
    return found


def differences(ours: Lines, theirs: Lines) -> dict[str, dict[int, Estimate]]:
    """Ours minus theirs where both have a mean; diverged where either is."""
    return {
        name: {
            n: Estimate((e.mean - b.mean,), ("difference",), e.kind, False, 0, 0, e.diverged + b.diverged)
            for n, e in ours[name].items()
            if (b := theirs[name].get(n))
        }
        for name in ours
        if name in theirs
    }


@style.styled
def draw(results: Results, published: Results) -> Figure:
    """One or two rows of three panels."""
    found = rows(results, published)
    fig = style.figure(17.5, 6.6 * len(found))
    grid = fig.add_gridspec(len(found), 3, wspace=0.48, hspace=0.34)
    names = (
        results.study if len(results.study) < 30 else "this study",
        "the authors (2014)",
        "the first minus the second",
    )
    ax = None
    for i, row in enumerate(found):
        gaps = differences(row.ours, row.theirs)
        on = [{name: set(style.joined(means)) for name, means in lines.items()} for lines in (row.ours, row.theirs)]
        both = {name: on[0][name] & on[1][name] for name in gaps}
        ax = fig.add_subplot(grid[i, 0])
        beside, last = fig.add_subplot(grid[i, 1], sharey=ax), fig.add_subplot(grid[i, 2])
        ax.set_ylim(*_frame(row.ours, row.theirs))
        last.set_ylim(*_frame(gaps))
        drawn = zip((ax, beside, last), (row.ours, row.theirs, gaps), (*on, both), names, strict=True)
        for panel, lines, linked, title in drawn:
            _panel(panel, lines, linked, max(results.depth, published.depth))
            panel.set_title(title)
            if row.title == "Figure 2" and panel is not last:
                figure2.shade(panel, {t: {0: BASE, **m} for t, m in lines.items()}, 0.0, scale=100)
            named = {t: row.labels[t].replace(" ", "\n").replace("/", "/\n") for t in lines}
            ends = [(float(max(m)), 100 * m[max(m)].mean, named[t], "black") for t, m in lines.items() if m]
            style.end_labels(panel, ends, size=11, gap=0.055 if row.title == "Figure 2" else 0.09)
        ax.set_ylabel(f"{row.title}: top-1 accuracy minus\nown base (percentage points)", size=13)
        last.set_ylabel("percentage points", size=13)
    if ax is not None:
        said = [
            "Every network minus the base of its own task and seed, so the third column is the first minus the second "
            "(the paper's own Figure 2 is raw). Whiskers: 95 % Student-t interval over the units, from 3 units up "
            f"(here {scopes.main(results).title}, there {scopes.main(published).title}; n by n in the tables).",
            UNPAIRED,
            *terms(results, published),
        ]
        if any(len(style.joined(m)) < len(m) for row in found for x in (row.ours, row.theirs) for m in x.values()):
            said.append("n that fewer splits cover stand alone, off the line.")
        if any(e.diverged for row in found for e in (*_each(row.ours), *_each(row.theirs))):
            said.append(
                "Hollow with ×: with diverged networks (at chance, or loss not finite), kept: they are results."
            )
        style.caption(ax, said, -0.2, width=158)
    return fig


def _panel(ax: Axes, lines: Lines, linked: Mapping[str, Collection[int]], depth: int) -> None:
    ax.axhline(0, color="black", lw=1.5, ls=style.MARKS["base"].line, zorder=1.5)
    for name, means in lines.items():
        line = {0: BASE, **{n: e for n, e in means.items() if n in linked[name]}}
        style.curve(ax, name, line, markers=False, dodge=figure2.DODGE.get(name, 0.0))
        dead = [e.diverged > 0 for e in means.values()]
        style.points(ax, name, list(means), [100 * e.mean for e in means.values()], dead, scale=0.6)
    for artist in ax.lines:
        artist.set_clip_on(True)  # random filters leave the frame
    style.points(ax, "base", [0], [0], [False], scale=0.7)
    ax.set_xlim(-0.3, depth - 0.7)
    ax.set_xticks(range(depth))
    ax.tick_params(labelsize=12)
    ax.set_xlabel(figure2.X_LABEL + _fallen(ax, lines), size=12)


def _frame(*columns: Lines) -> tuple[float, float]:
    """Axis limits around all lines; without random filters, as in the paper, where they would more than double it."""
    each = [(name, 100 * v) for lines in columns for name, m in lines.items() for e in m.values() for v in _ends(e)]
    low, high = style.limits([0.0, *(v for name, v in each if name != "random")], least=1.0)
    bottom, top = style.limits([0.0, *(v for _, v in each)], least=1.0)
    return (bottom, top) if top - bottom <= 2 * (high - low) else (low, high)


def _ends(found: Estimate) -> tuple[float, ...]:
    return found.interval or (found.mean,)


def _fallen(ax: Axes, lines: Lines) -> str:
    """Where random filters went that left the frame."""
    low, high = ax.get_ylim()
    gone = {n: e for n, e in lines.get("random", {}).items() if not low <= 100 * e.mean <= high}
    if not gone:
        return ""
    far = max(gone, key=lambda n: abs(gone[n].mean))
    dead = ", diverged" if gone[far].diverged else ""
    return f"\n(random filters leave the frame: {points(gone[far].mean, 1)} at n = {far}{dead})"


def terms(results: Results, published: Results) -> list[str]:
    """On which terms the two studies stand beside each other."""
    sentences = [
        f"Scores: here {SCORES[results.score]} ({results.score}), there {SCORES[published.score]} ({published.score})."
    ]
    if results.depth != published.depth:
        sentences.append(f"n counts layers of a network of {results.depth} here, of {published.depth} there.")
    sentences += _chance(results, published)
    if any(e.conditional for row in rows(results, published) for e in (*_each(row.ours), *_each(row.theirs))):
        sentences.append("Where only one split counts, units are seeds: conditional on this split.")
    return sentences


def _each(lines: Lines) -> list[Estimate]:
    return [e for means in lines.values() for e in means.values()]


def _chance(results: Results, published: Results) -> list[str]:
    """That the same loss in points is not the same where chance differs."""
    levels = [_level(scopes.main(r)) for r in (results, published)]
    if levels[0] == levels[1]:
        return []
    text = "Chance differs with the number of classes: in Figure 2 {} here, {} there".format(*map(_percent, levels))
    last = rows(results, published)[-1]
    if "random" in last.ours and "random" in last.theirs:
        where = [scopes.random_filters(r)[0] for r in (results, published)]
        rooms = [100 * (figure2.lines_of(s, "base")[0].mean - _level(s)) for s in where]
        text += "; for random filters {} here, {} there".format(*(_percent(_level(s)) for s in where))
        text += ", so at chance they lie {:.1f} points below base here, {:.1f} there".format(*rooms)
    return [f"{text}."]


def _level(scope: Scope) -> float:
    """Chance, the mean over tasks."""
    return float((1 / scope.frame.drop_duplicates("task")["classes"]).mean())


def _percent(level: float) -> str:
    return f"{100 * level:.3g} %" if level == level else "unknown"


def tables(results: Results, published: Results) -> list[Table]:
    """The figures above and Table 1, each as ours, theirs, difference."""
    found = [_table(row) for row in rows(results, published)]
    found[0] = replace(found[0], notes=[*found[0].notes, *terms(results, published)])
    one, two = (table1.tables(scopes.main(r), r.depth)[0] for r in (results, published))
    both = []
    for row in one.rows:
        other = next((r for r in two.rows if r[0] == row[0].split(" ")[0]), None)
        both.append([row[0], row[1], other[1] if other else "-", row[2], other[2] if other else "-"])
    columns = ["layers kept", "over baseB: ours", "authors", "over BnB+: ours", "authors"]
    notes = [f"The authors' runs: {note}" for note in two.notes[2:3]]
    return [*found, Table("comparison", "Table 1, pooled", columns, both, [], notes)]


def _table(row: Row) -> Table:
    gaps = differences(row.ours, row.theirs)
    ns = sorted({n for m in row.ours.values() for n in m} & {n for m in row.theirs.values() for n in m})
    lines = []
    for name, means in row.ours.items():
        for who, found in (("ours", means), ("authors", row.theirs.get(name, {})), ("difference", gaps.get(name, {}))):
            cells = [f"{points(e.mean)}{DAGGER if e.diverged else ''}" if (e := found.get(n)) else "" for n in ns]
            if who != "difference":
                cells = [f"{text} ({found[n].units})" if text else "" for text, n in zip(cells, ns, strict=True)]
            lines.append([f"{row.labels[name]} {who}", *cells])
    columns = ["points, in brackets units", *[f"n = {n}" for n in ns]]
    dead = sum(e.diverged for e in (*_each(row.ours), *_each(row.theirs)))
    notes = [f"Relative to the base of the same task and seed; difference: ours - authors. {UNPAIRED}"]
    notes += [diverged_note(dead)] if dead else []
    return Table("comparison", f"{row.title}, relative to own base", columns, lines, [], notes)
