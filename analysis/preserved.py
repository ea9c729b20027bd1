"""The authors' unpublished runs: one or two layers above the frozen ones copied too, and left to learn.

If copied neighbours cured the loss by fragile co-adaptation, BnB with preserved layers would come back to its base.
Each is held against its plain treatment on the tasks, seeds and n that have a network of both; none of them is pooled
with another. A study without such treatments (`selffer-preserve1`, `transfer-preserve2`, ...) has no such figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis import placing, reference, style, tables
from analysis import scope as scopes
from analysis.contrasts import contrast
from analysis.figure2 import X_LABEL, lines_of
from analysis.scope import Scope
from analysis.tables import Table
from analysis.vocabulary import SHORT, preserved, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.results import Results

PLAIN = ("selffer", "transfer")


def found(scope: Scope) -> dict[str, list[str]]:
    """The treatments with preserved layers that have a score here, by their plain one, fewest layers first."""
    names = [t for t in scope.frame.loc[scope.frame["score"].notna(), "treatment"].unique() if preserved(t)]
    names.sort(key=preserved)
    kinds = {plain: [t for t in names if t.partition("-preserve")[0] == plain] for plain in PLAIN}
    return {plain: kept for plain, kept in kinds.items() if kept}


def beside(scope: Scope) -> Scope:
    """The tasks and seeds that have preserved layers somewhere: what the plain treatments are shown on."""
    frame = scope.frame
    own = set(map(tuple, frame.loc[frame["treatment"].map(preserved) > 0, ["task", "seed"]].to_numpy()))
    here = [pair in own for pair in zip(frame["task"], frame["seed"], strict=True)]
    return Scope(frame[here], scope.population)


def reason_against(results: Results) -> str | None:
    """None where the study preserves no layers."""
    return "" if found(scopes.main(results)) else None


@style.styled
def draw(results: Results, published: Results | None = None) -> Figure:
    """One panel for BnB, one for AnB: means by n, the plain treatment and those with preserved layers; over them, if
    `published` is given, the values of the authors' notebook."""
    scope = beside(scopes.main(results))
    kinds = found(scope)
    fig = style.figure(7.5 * len(kinds), 6.5)
    grid = fig.add_gridspec(1, len(kinds), wspace=0.32)
    said = [
        f"Means over {scope.title}, on the tasks and seeds that have preserved layers. 95 % Student-t from 3 units up."
    ]
    moved = []
    for i, (plain, kept) in enumerate(kinds.items()):
        move = _move(scope, plain, published) if published else None
        _panel(fig.add_subplot(grid[i]), scope, results.depth, [plain, *kept], move)
        moved += [] if move is None else [f"{SHORT[plain]} {tables.points(move, 1)}"]
    if moved:
        said.append(
            "Dotted: the authors' unpublished single runs, from their notebook (half and statistic not stated), "
            f"moved so that the base of the half that they resemble lies on this study's ({', '.join(moved)} points)."
        )
    style.caption(fig.axes[0], said, -0.16, width=66 * len(kinds))
    return fig


def _move(scope: Scope, plain: str, published: Results) -> float:
    """How far the authors' values have to be moved so that the base of their half lies on this study's mean base."""
    ours = lines_of(scope, "base").get(0)
    frame = published.frame
    theirs = frame.loc[frame["source_run"] == reference.PRESERVED_TARGET[plain], "score"]
    return ours.mean - float(theirs.iloc[0]) if ours else 0.0


def _panel(ax: Axes, scope: Scope, depth: int, treatments: list[str], move: float | None) -> None:
    base = lines_of(scope, "base").get(0)
    spread = [base.mean] if base else []
    handles, labels = [], []
    for i, treatment in enumerate(treatments):
        means, shift = lines_of(scope, treatment), 0.12 * (i - 1)
        style.curve(ax, treatment, means, shift=shift, scale=1.0)
        spread += [v for e in means.values() for v in (e.interval or (e.mean,))]
        handles.append(style.line_handle(treatment))
        labels.append(short(treatment))
        theirs = reference.PRESERVED.get(treatment, ())[: depth - 1] if move is not None else ()
        if theirs:
            ys, mark = [v + (move or 0.0) for v in theirs], style.look(treatment)
            style.overlay(ax, mark.color, [n + shift for n in range(1, len(ys) + 1)], ys, marker=mark.marker)
            spread += ys
    if base:
        ax.axhline(base.mean, color="black", lw=1.5, ls=style.MARKS["base"].line, zorder=1)
        ax.text(1.01, base.mean, SHORT["base"], transform=ax.get_yaxis_transform(), size=13, va="center")
    if move is not None:
        handles.append(style.overlay_handle())
        labels.append("published, moved")
    ax.set_xlim(0.6, depth - 1 + 0.4)
    ax.set_xticks(range(1, depth))
    ax.set_ylim(*style.limits(spread))
    ax.set_ylabel("Top-1 accuracy")
    ax.set_xlabel(X_LABEL, size=12)
    placing.legend(ax, handles, labels, columns=2, fontsize=12)


def table(results: Results) -> Table:
    """One row a plain treatment and n: its mean, and with each number of preserved layers mean and difference."""
    scope = beside(scopes.main(results))
    kinds = found(scope)
    layers = sorted({preserved(t) for kept in kinds.values() for t in kept})
    rows, records, dagger = [], [], 0
    for plain in kinds:
        treatments = [plain, *(f"{plain}-preserve{k}" for k in layers)]
        means = {t: lines_of(scope, t) for t in treatments}
        for n in sorted({n for own in means.values() for n in own}):
            row = [SHORT[plain], str(n)]
            for treatment in treatments:
                mean = means[treatment].get(n)
                row.append(f"{100 * mean.mean:.2f} ({mean.units})" if mean else "-")
                entry: dict[str, object] = {"treatment": treatment, "n": n}
                entry["percent"] = f"{100 * mean.mean:.4f}" if mean else ""
                if treatment != plain:
                    difference = contrast(scope, {treatment: 1, plain: -1}).at([n])
                    reason = "" if difference.units else f"no task has both at n = {n}"
                    dagger += difference.diverged
                    row.append(tables.with_units(difference, reason) if mean else "-")
                    entry |= tables.record(difference, reason)
                if mean:
                    records.append(entry)
            rows.append(row)
    notes = [
        f"Per cent (units) over {scope.title}, on the tasks and seeds that have preserved layers; differences on the "
        "same task, seed and n, in points, with 95 % Student-t from 3 units up."
    ]
    if dagger:
        notes.append(tables.diverged_note(dagger))
    columns = ["plain treatment", "n", "plain"]
    for k in layers:
        columns += [f"preserve {k}", f"preserve {k} - plain"]
    return Table("preserved", "Preserved layers above the frozen ones", columns, rows, records, notes)


def spoken(table: Table) -> str:
    """The table's means in words, for those who cannot see the figure."""
    shown = [(i, c) for i, c in enumerate(table.columns[2:], 2) if "-" not in c]
    return "; ".join(f"{r[0]}, n = {r[1]}: " + ", ".join(f"{c} {r[i]}" for i, c in shown) for r in table.rows)
