"""Learning curves: test accuracy against epochs, one panel a treatment, a sample of cells.

The history may hold millions of rows; only the cells that are drawn are read, by pyarrow, and only three columns.
Cells are sampled evenly over n, splits and seeds in the order of the table, never by their outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis import scope as scopes
from analysis import style
from analysis.errors import AnalysisError
from analysis.vocabulary import LABELS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.results import Results

CURVES_A_PANEL = 14
POINTS_A_CURVE = 40


def sample(results: Results) -> pd.DataFrame:
    """The cells to draw: up to 14 a treatment, evenly spaced in (n, split, seed) order."""
    import numpy as np

    frame = scopes.main(results).frame[["cell", "treatment", "status", "n", "unit", "target", "seed"]]
    frame = frame.sort_values(["n", "unit", "target", "seed"])
    chosen = []
    for treatment in LABELS:
        own = frame[frame["treatment"] == treatment]
        if len(own) > CURVES_A_PANEL:
            own = own.iloc[np.unique(np.linspace(0, len(own) - 1, CURVES_A_PANEL).round().astype(int))]
        chosen.append(own)
    import pandas as pd

    return pd.concat(chosen) if chosen else frame.iloc[:0]


def curves(results: Results, cells: pd.DataFrame) -> pd.DataFrame:
    """cell, epoch and top1 of these cells. Raises AnalysisError where history.parquet cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert results.history is not None
    try:
        wanted = [("cell", "in", list(cells["cell"]))]
        table = pq.read_table(  # addresses as numbers: each stands there once a test
            results.history, columns=["cell", "epoch", "top1"], filters=wanted, read_dictionary=["cell"]
        )
        return table.to_pandas().astype({"cell": "str"})
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise AnalysisError(f"history.parquet: cannot read cell, epoch, top1 ({reason}); export it again") from None


def reason_against(results: Results) -> str:
    """Why there are no learning curves; empty where there are some."""
    return "" if results.history is not None else "learning curves: no history.parquet beside the results"


@style.styled
def draw(results: Results) -> Figure | None:
    """Small panels; colour runs with n, dark to light, and each n is named at its mean end. None without curves."""
    import matplotlib

    cells = sample(results)
    table = curves(results, cells)
    table = table[table["top1"].notna() & table["epoch"].notna()].sort_values("epoch")
    by_cell = {str(cell): rows for cell, rows in table.groupby("cell")}
    shown = cells[cells["cell"].isin(list(by_cell))]
    treatments = [t for t in LABELS if (shown["treatment"] == t).any()]
    if not treatments:
        return None
    colours = matplotlib.colormaps["viridis"]
    width = 3
    rows = -(-len(treatments) // width)
    fig = style.figure(15, 4.4 * rows)
    grid = fig.add_gridspec(rows, width, wspace=0.22, hspace=0.35)
    for i, treatment in enumerate(treatments):
        ax = fig.add_subplot(grid[i // width, i % width])
        finals: dict[int, list[float]] = {}
        for cell in shown[shown["treatment"] == treatment].to_dict("records"):
            line = by_cell[str(cell["cell"])]
            line = line.iloc[:: max(1, -(-len(line) // POINTS_A_CURVE))] if len(line) > POINTS_A_CURVE else line
            n = int(cell["n"])
            dead = cell["status"] == "diverged"
            colour = colours(0.9 * n / max(1, results.depth - 1))
            ax.plot(line["epoch"], line["top1"], color=colour, lw=1.1, ls=":" if dead else "-")
            if len(line):
                finals.setdefault(n, []).append(float(line["top1"].iloc[-1]))
        ax.set_title(LABELS[treatment], size=13)
        ax.tick_params(labelsize=11)
        ends = [
            (0.0, sum(v) / len(v), str(n), colours(0.9 * n / max(1, results.depth - 1))) for n, v in finals.items() if n
        ]
        style.end_labels(ax, ends, size=11, gap=0.06)
        if i % width == 0:
            ax.set_ylabel("Top-1 accuracy", size=12)
        if i + width >= len(treatments):
            ax.set_xlabel("epoch", size=12)
    return fig
