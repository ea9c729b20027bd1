"""The paper's supplementary figure: accuracy against images per class, linear on top, log-log below.

Bases that differ in nothing but the number of images per class: same network, data set, recipe, split, half and seed.
Each is a circle; thin lines join the networks of one half and seed. Where a study has several such series, the one on
all classes is drawn, else the one with most counts. The authors' runs of 5 to 100 images per class never left chance,
and those of 1 and 2 were memorised; they are results, and stand here marked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis import placing, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.results import Results

SAME = ["network", "dataset", "recipe", "split", "split_classes"]
LINE = ["unit", "target", "seed"]
LOOK = "selffer"
"""blue circles, as in the paper"""


def networks(results: Results) -> pd.DataFrame:
    """The bases of the figure in the order of their images per class; empty where no two differ in that only."""
    frame = results.frame
    bases = frame[(frame["treatment"] == "base") & frame["images_per_class"].notna() & frame["score"].notna()]
    best, rank = bases.iloc[:0], (False, 0, 0)
    for _, alike in bases.groupby(SAME, dropna=False, sort=True):
        counts = alike.groupby(LINE)["images_per_class"].transform("nunique")
        own = alike[counts > 1]
        mine = (bool((own["split"] == "all").any()), int(own["images_per_class"].nunique()), len(own))
        if len(own) and mine > rank:
            best, rank = own, mine
    return best.sort_values(["images_per_class", *LINE])


def means(results: Results) -> dict[int, float]:
    """Mean accuracy by images per class, a fraction."""
    found = networks(results).groupby("images_per_class")["score"].mean()
    return {int(images): float(score) for images, score in zip(found.index, found, strict=True)}


def chance(results: Results) -> float | None:
    """1 / classes of the tasks drawn; None where the results do not say."""
    classes = networks(results)["classes"].dropna()
    return None if classes.empty else float((1 / classes).mean())


def reason_against(results: Results) -> str | None:
    """Why there is no such figure; empty where there is one, None where the study does not vary images per class."""
    if results.frame["images_per_class"].nunique() < 2:
        return None
    return "" if len(networks(results)) else "supplement: no two bases differ in images per class only"


@style.styled
def draw(results: Results, published: Results | None = None) -> Figure:
    """Both panels, 12 x 7 inches each."""
    fig = style.figure(12, 14)
    grid = fig.add_gridspec(2, 1, hspace=0.16)
    for row in range(2):
        _panel(fig.add_subplot(grid[row]), results, published, logarithmic=row == 1)
    return fig


def _panel(ax: Axes, results: Results, published: Results | None, logarithmic: bool) -> None:
    drawn = networks(results)
    level = chance(results)
    if logarithmic:
        ax.set_xscale("log")
        ax.set_yscale("log", nonpositive="mask")
    for _, line in drawn.groupby(LINE):
        ax.plot(line["images_per_class"], line["score"], color=style.MARKS[LOOK].color, lw=1, zorder=2)
    xs, ys = list(drawn["images_per_class"]), list(drawn["score"])
    style.points(ax, LOOK, xs, ys, list(drawn["status"] == "diverged"), label="this study")
    seen = [*ys, *([level] if level else [])]
    if published:
        theirs = means(published)
        label = "published (2014; 1,000 classes)"
        style.overlay(ax, "#555555", list(theirs), list(theirs.values()), label)
        seen, xs = [*seen, *theirs.values()], [*xs, *theirs]
    low, high = min(xs), max(xs)
    if logarithmic:
        above = [v for v in seen if v > 0] or [1.0]
        ax.set_ylim(min(above) / 1.5, max(above) * 1.5)
        ax.set_xlim(low / 1.3, high * 1.3)
        ax.set_xlabel("Images per class")
        for axis, (least, most) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}" if most < 20 * least else "")
    else:
        ax.set_ylim(-0.03 * max(seen), 1.08 * max(seen))
        ax.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    ax.set_ylabel("Top-1 accuracy" + (", log scale" if logarithmic else " (higher is better)"))
    if level:
        ax.axhline(level, color="#777777", lw=1.5, ls=style.MARKS["base"].line, zorder=1)
        ax.text(1.01, level, "chance", transform=ax.get_yaxis_transform(), size=14, va="center", color="#444444")
    if published:
        placing.legend(ax, *ax.get_legend_handles_labels(), fontsize=12)
    if logarithmic:
        style.caption(ax, _said(results, drawn), -0.14, width=110)


def _said(results: Results, drawn: pd.DataFrame) -> list[str]:
    first = drawn.iloc[0]
    where = {"all": "all classes"}.get(str(first["split"]), f"the halves of {first['split']} splits")
    said = [f"Bases on {where} that differ in images per class only; {results.score}."]
    if (drawn["status"] == "diverged").any():
        said.append("Hollow with ×: diverged networks (at chance, or loss not finite), kept: they are results.")
    if (drawn["score"] <= 0).any():
        said.append("A network with nothing right has no place on the log scale.")
    return said
