"""Figure 2 with like held against like: each network minus the reference of its own task and seed, in points.

Left: minus `scratch`, trained anew in the same phase with the same batches. Right: minus the task's own base, which
is the parent of its selffer networks. Dots are units (splits; seeds with one split), lines their means, whiskers
Student-t intervals from 3 units up. A study without one of the references has one panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis import placing, style
from analysis.contrasts import contrast
from analysis.scope import Scope
from analysis.units import Estimate
from analysis.vocabulary import CURVES, SHORT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHIFTS = {"selffer": -0.15, "selffer+": -0.05, "transfer": 0.05, "transfer+": 0.15}
Curves = dict[str, dict[int, Estimate]]


def differences(scope: Scope, against: str) -> Curves:
    """Paired differences to `against` (scratch or base) by treatment and n, in fractions."""
    found: Curves = {}
    for treatment in CURVES:
        pairs = contrast(scope, {treatment: 1, against: -1})
        if pairs.identified:
            found[treatment] = {n: pairs.at([n]) for n in pairs.layers}
    return found


def reason_against(scope: Scope) -> str:
    """Why there is no paired figure; empty where there is one."""
    if any(differences(scope, against) for against in ("scratch", "base")):
        return ""
    return "figure2_paired: no network shares task and seed with a scratch or base network"


@style.styled
def draw(scope: Scope, depth: int, published: Scope | None = None) -> Figure:
    """One panel for each reference that the study has."""
    panels = {a: found for a in ("scratch", "base") if (found := differences(scope, a))}
    fig = style.figure(15, 9 * len(panels) + 1.2)
    grid = fig.add_gridspec(len(panels), 1, hspace=0.46)
    theirs = differences(published, "base") if published else None
    for i, (against, found) in enumerate(panels.items()):
        _panel(fig.add_subplot(grid[i]), scope, depth, against, found, theirs)
    return fig


def _panel(
    ax: Axes,
    scope: Scope,
    depth: int,
    against: str,
    found: Curves,
    published: Mapping[str, Mapping[int, Estimate]] | None,
) -> None:
    ax.axhline(0, color="black", lw=2, ls=style.MARKS[against].line, zorder=2)
    spread = [0.0]
    for treatment, means in found.items():
        shift = SHIFTS[treatment]
        mark = style.MARKS[treatment]
        for n, estimate in means.items():
            values = [100 * v for v in estimate.values]
            ax.plot(
                [n + shift] * len(values),
                values,
                ls="none",
                marker=mark.marker,
                ms=5,
                mfc=mark.color,
                mec="none",
                alpha=0.45,
                zorder=2,
                rasterized=len(values) > 60,
            )
            spread += values + [100 * v for v in estimate.interval or ()]
        style.curve(ax, treatment, means, shift=shift)
    if published:
        for i, (treatment, theirs) in enumerate(published.items()):
            xs = [n for n in theirs if n < depth]
            label = "published (minus own base)" if i == 0 else None
            ys = [100 * theirs[n].mean for n in xs]
            style.overlay(ax, style.MARKS[treatment].color, xs, ys, label)
            spread += ys
    ax.set_xlim(0.6, depth - 1 + 0.4)
    ax.set_xticks(range(1, depth))
    ax.set_ylim(*style.limits(spread, margin=0.08, least=1.0))
    if published:
        placing.legend(ax, *ax.get_legend_handles_labels(), fontsize=12)
    ax.set_ylabel(f"Difference to {'own ' if against == 'base' else ''}{SHORT[against]}\n(percentage points)")
    ax.set_xlabel("Layer n at which network is chopped and retrained")
    ends = [(float(max(m)), m[max(m)].mean * 100, SHORT[t], "black") for t, m in found.items()]
    style.end_labels(ax, [*ends, (float(depth - 1), 0.0, SHORT[against], "#555555")])
    kind = "seeds" if all(e.conditional for m in found.values() for e in m.values()) else "splits"
    style.count_rows(ax, [(SHORT[t], m) for t, m in found.items()], f"{kind} (pairs)")
    said = [
        f"Each network minus {SHORT[against]} of its own task and seed. {scope.title[0].upper()}{scope.title[1:]}; "
        "small dots: units; whiskers: 95 % Student-t, from 3 units up."
    ]
    if any(e.conditional for m in found.values() for e in m.values()):
        said.append("Where only one split counts, units are seeds: conditional on this split.")
    if any(e.diverged for m in found.values() for e in m.values()):
        said.append("× = pairs with a diverged network, included and marked.")
    style.caption(ax, said, -0.155 - 0.042 * (len(found) + 0.6))
