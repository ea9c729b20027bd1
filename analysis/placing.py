"""Where a legend, a list or a number may stand in a panel so that it hides no data.

Everything is measured in pixels, after the axis limits are set: markers with their size, lines and whiskers point by
point. Shaded areas are no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

CORNERS = ("lower left", "lower right", "upper right", "upper left")
STEP = 3.0
"""pixels between two points of a line"""
Place = tuple[float, float]


def strokes(ax: Axes) -> np.ndarray:
    """Rows of x, y and radius in pixels: every marker, and every line and whisker as a row of points."""
    dots = ax.figure.dpi / 72
    found = [np.empty((0, 3))]
    for line in ax.lines:
        at = line.get_transform().transform(line.get_xydata())
        if line.get_marker() not in ("None", "", None):
            found.append(_sized(at, line.get_markersize() / 2 * dots))
        if line.get_linestyle() != "None":
            found.append(_sized(_walked(at), line.get_linewidth() / 2 * dots))
    for many in ax.collections:
        if hasattr(many, "get_segments"):  # whiskers; shaded areas have none
            found += [_sized(_walked(many.get_transform().transform(part)), dots) for part in many.get_segments()]
    rows = np.concatenate(found)
    return rows[np.isfinite(rows).all(axis=1)]


def _sized(at: np.ndarray, radius: float) -> np.ndarray:
    return np.column_stack([at, np.full(len(at), radius)])


def _walked(at: np.ndarray) -> np.ndarray:
    """A line as points a few pixels apart."""
    parts = [at]
    for start, end in pairwise(at):
        length = np.hypot(*(end - start))
        if np.isfinite(length):
            parts.append(start + np.linspace(0, 1, int(length / STEP) + 2)[:, None] * (end - start))
    return np.concatenate(parts)


def hidden(rows: np.ndarray, box: Any) -> int:
    """How many of these rows a box would touch."""
    x, y, radius = rows.T
    across = (x > box.x0 - radius) & (x < box.x1 + radius)
    return int((across & (y > box.y0 - radius) & (y < box.y1 + radius)).sum())


def legend(
    ax: Axes, handles: Sequence[Any], labels: Sequence[str], taken: Sequence[Any] = (), columns: int = 3, **look: Any
) -> Legend:
    """A legend in the first corner where it hides nothing, else above the frame; `taken` are boxes in pixels."""
    rows = strokes(ax)
    for place in CORNERS:
        made = ax.legend(handles, labels, loc=place, **look)
        box = made.get_window_extent()
        if not hidden(rows, box) and not any(box.overlaps(other) for other in taken):
            return made
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": min(columns, len(labels))}
    return ax.legend(handles, labels, **above, **look)


def text(ax: Axes, lines: Sequence[str], size: float) -> Any:
    """Lines of text in the first corner where they hide nothing; the axis grows downwards where there is none. Gives
    the box in pixels."""
    from matplotlib.offsetbox import AnchoredText

    while True:
        for place in CORNERS:
            made = ax.add_artist(AnchoredText("\n".join(lines), place, frameon=False, prop={"size": size}, pad=0.2))
            box = made.get_window_extent()
            if not hidden(strokes(ax), box):
                return box
            made.remove()
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.05 * (high - low), high)


def badge(ax: Axes, label: str, anchors: Sequence[Place], taken: Sequence[Any], size: float = 14) -> Any:
    """A number in a circle at the first of `anchors` (in data) where it hides nothing; else as near to the first as
    there is room, with a line to it. Gives its box in pixels; `taken` are such boxes."""
    from matplotlib.transforms import Bbox

    rows, frame = strokes(ax), ax.get_window_extent()
    radius = 1.05 * size * ax.figure.dpi / 72

    def box(at: np.ndarray) -> Bbox:
        return Bbox.from_extents(*(at - radius), *(at + radius))

    def open_at(at: np.ndarray) -> bool:
        own = box(at)
        inside = frame.x0 < own.x0 and own.x1 < frame.x1 and frame.y0 < own.y0 and own.y1 < frame.y1
        return inside and not hidden(rows, own) and not any(own.overlaps(other) for other in taken)

    wanted = ax.transData.transform(np.array(anchors))
    place = next((at for at in wanted if open_at(at)), None)
    circle = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": "black", "lw": 1.2}
    arrow = None
    if place is None:
        steps = np.stack(np.meshgrid(np.arange(-60, 61), np.arange(-60, 61)), axis=-1).reshape(-1, 2) * radius / 3
        far = np.hypot(*steps.T)
        near = wanted[0] + steps[np.argsort(far, kind="stable")][(far < 2.4 * radius).sum() :]  # the line shall be seen
        place = next((at for at in near if open_at(at)), wanted[0])
        arrow = {"arrowstyle": "-|>", "lw": 1.0, "color": "black", "shrinkB": 0}
    to_data = ax.transData.inverted().transform  # a file is drawn at another resolution
    ax.annotate(
        label,
        tuple(to_data(wanted[0] if arrow else place)),
        tuple(to_data(place)),
        textcoords="data",
        size=size,
        ha="center",
        va="center",
        bbox=circle,
        arrowprops=arrow,
        zorder=6,
    )
    return box(place)
