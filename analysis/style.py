"""How figures look: the paper's colours and markers, matplotlib of 2014, readable without colour.

Each treatment has a colour, a marker and a line style of its own, and lines are labelled at their end, so that
figures survive grey printing and colour blindness. Figures are built without pyplot: no global state, no window.
SVG files are the same bytes for the same data (fixed hash salt, no date).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from analysis.units import Estimate
from analysis.vocabulary import preserved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 16,
    "axes.linewidth": 1.0,
    "axes.titlesize": 16,
    "axes.axisbelow": True,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.major.size": 5,
    "ytick.major.size": 5,
    "legend.fancybox": False,
    "legend.edgecolor": "black",
    "legend.framealpha": 1.0,
    "legend.numpoints": 1,
    "legend.fontsize": 15,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.hashsalt": "raygrid",
    "svg.fonttype": "path",
    "path.simplify": True,
}
RASTERIZE = 250
"""points of one treatment above which an SVG holds them as a picture"""


@dataclass(frozen=True)
class Mark:
    """Colour, marker and line of one treatment."""

    color: str
    marker: str
    size: float
    line: Any = "-"
    plus: bool = False
    """a black plus on the marker: fine-tuned"""


MARKS: Mapping[str, Mark] = {
    "base": Mark("black", "o", 14, (0, (6, 4))),
    "scratch": Mark("#777777", "s", 11, (0, (2, 2))),
    "base-long": Mark("#444444", "^", 12, (0, (1, 1))),
    "selffer": Mark("#0000ff", "o", 14, "-"),
    "selffer+": Mark("#aaaaff", "o", 14, (0, (7, 2)), plus=True),
    "transfer": Mark("#ff0000", "D", 12, "-"),
    "transfer+": Mark("#ffaaaa", "D", 12, (0, (7, 2)), plus=True),
    "random": Mark("#bfbf00", "v", 12, (0, (3, 1, 1, 1))),
    "semantic": Mark("#ff8800", "h", 14, (0, (8, 2, 2, 2))),
}

PRESERVED = (("s", (0, (5, 2))), ("^", (0, (6, 2, 1, 2))), ("P", (0, (3, 1, 1, 1, 1, 1))))
"""marker and line of treatments that preserve 1, 2, 3 and more layers, in a darker shade of their plain treatment"""

Drawn = TypeVar("Drawn")


def styled(draw: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """Run a drawing function under this style, whatever the caller's settings are."""

    def inner(*args: Any, **kwargs: Any) -> Drawn:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            return draw(*args, **kwargs)

    inner.__doc__ = draw.__doc__
    inner.__name__ = draw.__name__
    return inner


def look(treatment: str) -> Mark:
    """The mark of a treatment, also with preserved layers."""
    k = preserved(treatment)
    if not k:
        return MARKS[treatment]
    plain = MARKS[treatment.partition("-preserve")[0]]
    red, green, blue = (int(plain.color[i : i + 2], 16) * 3 // (3 + min(k, 3)) for i in (1, 3, 5))
    marker, line = PRESERVED[min(k, len(PRESERVED)) - 1]
    return Mark(f"#{red:02x}{green:02x}{blue:02x}", marker, 12, line)


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(made)
    return made


@styled
def save(fig: Figure, out: Path, name: str, kinds: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write NAME.svg and NAME.png; the same figure gives the same bytes."""
    fixed: dict[str, dict[str, str | None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    box = fig.get_tightbbox().padded(0.15)  # measured once for both
    paths = []
    for kind in kinds:
        path = out / f"{name}.{kind}"
        fig.savefig(path, format=kind, dpi=90, metadata=fixed[kind], bbox_inches=box)
        if kind == "svg":  # a hundredth of a point is enough, but scales below 1 stay exact
            path.write_text(re.sub(r"([1-9]\d*\.\d\d)\d+", r"\1", path.read_text(encoding="utf-8")), encoding="utf-8")
        paths.append(path)
    return paths


def points(
    ax: Axes,
    treatment: str,
    xs: ArrayLike,
    ys: ArrayLike,
    dead: ArrayLike,
    scale: float = 1.0,
    label: str | None = None,
) -> None:
    """One marker a network; diverged ones hollow with a cross."""
    mark = look(treatment)
    at, crossed = np.array([xs, ys], dtype=float), np.array(dead, dtype=bool)
    picture = at.shape[1] > RASTERIZE
    live, gone = at[:, ~crossed], at[:, crossed]
    face = "white" if treatment == "base" else mark.color
    grown = scale * (1.25 if scale < 1 else 1.0)  # a cross needs room
    edge = 2.0 * scale if treatment == "base" else 0.8 * scale
    common: dict[str, Any] = {"linestyle": "none", "zorder": 3, "rasterized": picture, "clip_on": False}
    ax.plot(
        *live,
        marker=mark.marker,
        ms=mark.size * scale,
        mfc=face,
        mec="black",
        mew=edge,
        label=label,
        **common,
    )
    if mark.plus:
        ax.plot(*live, marker="+", ms=8 * scale, mew=2 * scale, mec="black", **common)
    if gone.size:
        ax.plot(
            *gone,
            marker=mark.marker,
            ms=mark.size * grown,
            mfc="white",
            mec="black",
            mew=1.2 * grown,
            **common,
        )
        ax.plot(*gone, marker="x", ms=7 * grown, mew=2 * grown, mec="#cc0000", **common)


def joined(found: Mapping[Any, Estimate]) -> dict[Any, Estimate]:
    """The means that a line may join: where some n have 3 units or more, n on fewer units stand alone, since they
    average other splits and would bend the line for that reason only. With fewer units everywhere, all are joined."""
    full = {n: e for n, e in found.items() if e.interval or e.names == ("start",)}
    return full if any(e.interval for e in full.values()) else dict(found)


def legend_handle(treatment: str, scale: float = 1.0) -> Any:
    """A marker with its plus, for legends."""
    from matplotlib.lines import Line2D

    mark = MARKS[treatment]
    face = "white" if treatment == "base" else mark.color
    body = Line2D(
        [],
        [],
        ls="none",
        marker=mark.marker,
        ms=mark.size * scale,
        mfc=face,
        mec="black",
        mew=2 if treatment == "base" else 0.8,
    )
    if not mark.plus:
        return body
    return (body, Line2D([], [], ls="none", marker="+", ms=8 * scale, mew=2 * scale, mec="black"))


def line_handle(treatment: str) -> Any:
    """A line with its marker, for legends."""
    from matplotlib.lines import Line2D

    mark = look(treatment)
    return Line2D([], [], color=mark.color, ls=mark.line, lw=2, marker=mark.marker, ms=9, mec="black", mew=0.6)


def overlay(
    ax: Axes, color: str, xs: Sequence[float], ys: Sequence[float], label: str | None = None, marker: str = "."
) -> None:
    """A published line: thin, dotted, behind this study's own."""
    size = 5 if marker == "." else 4
    ax.plot(xs, ys, color=color, lw=1.2, ls=":", marker=marker, ms=size, zorder=2.2, label=label)


def overlay_handle() -> Any:
    """A published line of any colour, for legends."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color="#555555", ls=":", lw=1.2, marker=".", ms=5)


def curve(
    ax: Axes,
    treatment: str,
    found: Mapping[Any, Estimate],
    shift: float = 0.0,
    scale: float = 100.0,
    markers: bool = True,
    dodge: float = 0.0,
) -> None:
    """A line through means, with t intervals where there are 3 units, and a cross on means with diverged networks."""
    mark = look(treatment)
    xs = [x + shift for x in found]
    ys = [e.mean * scale for e in found.values()]
    on = joined(found)
    ax.plot(
        [x + shift for x in on], [e.mean * scale for e in on.values()], color=mark.color, lw=2, ls=mark.line, zorder=3
    )
    for x, y, estimate in zip(xs, ys, found.values(), strict=True):
        if estimate.interval:
            low, high = (v * scale for v in estimate.interval)
            ax.errorbar(
                [x + dodge], [y], [[y - low], [high - y]], color=mark.color, lw=1.3, capsize=4, capthick=1.3, zorder=2.5
            )
    if markers:
        points(ax, treatment, xs, ys, [e.diverged > 0 for e in found.values()], scale=0.65)


def end_labels(ax: Axes, ends: Sequence[tuple[float, float, str, Any]], size: float = 14, gap: float = 0.042) -> None:
    """Names at the right end of lines (x, y, text, colour), moved apart where they would overlap."""
    low, high = ax.get_ylim()
    step = (high - low) * gap
    inside = sorted((e for e in ends if low <= e[1] <= high), key=lambda e: e[1])
    placed = [y for _, y, _, _ in inside]
    for _ in range(60):
        for i in range(len(placed) - 1):
            short = step - (placed[i + 1] - placed[i])
            if short > 0:
                placed[i] -= short / 2
                placed[i + 1] += short / 2
    right = ax.get_xlim()[1]
    for (x, y, text, color), at in zip(inside, placed, strict=True):
        ax.annotate(
            text,
            (x, y),
            (right + 0.06, at),
            va="center",
            ha="left",
            size=size,
            color=color,
            annotation_clip=False,
            zorder=5,
        )


def count_rows(
    ax: Axes, rows: Sequence[tuple[str, Mapping[Any, Estimate]]], head: str, top: float = -0.13, step: float = 0.042
) -> None:
    """Under the axis: how many units (and networks) each mean stands on, n by n."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(ax.transData, ax.transAxes)
    size = 11 if ax.get_window_extent().width > 8 * ax.figure.dpi else 9  # n stand closer in a narrow panel
    label: dict[str, Any] = {"transform": ax.transAxes, "size": size, "ha": "right", "va": "center"}
    ax.text(-0.03, top, head, color="#444444", style="italic", **label)
    for i, (name, found) in enumerate(rows):
        y = top - step * (i + 1)
        ax.text(-0.03, y, name, color="#222222", **label)
        for x, estimate in found.items():
            dead = "" if not estimate.diverged else f" ×{estimate.diverged}"
            text = f"{estimate.units} ({estimate.cells}){dead}"
            ax.text(x, y, text, transform=place, size=size, ha="center", va="center", color="#222222")


def caption(ax: Axes, said: Sequence[str], y: float, width: int = 138) -> None:
    """Sentences under a panel, no wider than it."""
    text = textwrap.fill(" ".join(said), width)
    ax.text(0, y, text, transform=ax.transAxes, size=12, va="top", color="#222222")


def limits(values: Sequence[float], margin: float = 0.08, least: float = 0.02) -> tuple[float, float]:
    """Axis limits around values, never narrower than `least`."""
    finite = [v for v in values if v == v]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = max((high - low) * margin, least / 2)
    return low - room, high + room
