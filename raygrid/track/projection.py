"""What MLflow shows of a cell, a record and a plan: names and numbers, as pure functions of them.

Nothing here speaks to a server. Whoever projects a cell (the driver as it trains, another launch, a replay from the
store years later) computes the same run: same params, tags, metrics and metric times. That is what makes every way of
writing it safe to repeat.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from raygrid.cell import Cell, digest
from raygrid.plan import Plan
from raygrid.record import Record, deterministic
from raygrid.study import COPYING, LAYERED, in_order

CELL = "raygrid.cell"
"""tag: address of the cell; how its run is found again"""
RECORD = "raygrid.record"
"""tag: digest of the cell's record; present once everything of the record has been logged"""
KIND = "raygrid.kind"
"""tag: `trial` for a cell, `figure` for a curve of Figure 2"""
GROUP = "raygrid.group"
"""tag: cells of one group are drawn in one figure"""
LINE = "raygrid.figure"
"""tag of a figure run: which line it is"""
PLAN = "raygrid.plan"
"""tag of a figure run: digest of the cells that it is drawn from"""
STATUS = "raygrid.status"
ATTEMPTS = "raygrid.attempts"

FIGURE = "fig2/top1"
"""metric: the score, once, at step = n"""
MEAN = "fig2/top1_mean"
DELTA = "final/delta_vs_base"
LIVE = ("train/loss", "test/top1", "test/top5", "test/loss")
"""metrics of an evaluation that the record keeps too"""

LABELS = {
    "base": "base",
    "scratch": "scratch",
    "base-long": "base x2",
    "selffer": "BnB",
    "selffer+": "BnB+",
    "transfer": "AnB",
    "transfer+": "AnB+",
    "random": "random",
}
COLOURS = {
    "base": "#222222",
    "scratch": "#8c8c8c",
    "base-long": "#5b5b5b",
    "selffer": "#1f3fbf",
    "selffer+": "#7fa8e8",
    "transfer": "#c8102e",
    "transfer+": "#f2909b",
    "random": "#b8860b",
}
"""the paper's colours: blues for BnB, reds for AnB, the fine-tuned form lighter"""


def label(series: str) -> str:
    """`BnB`, `BnB-preserve1`."""
    treatment, preserve, k = series.partition("-preserve")
    return LABELS[treatment] + preserve + k


def colour(series: str) -> str:
    """A treatment's colour, whatever it preserves."""
    return COLOURS[series.partition("-preserve")[0]]


@dataclass(frozen=True)
class Point:
    """One value of one metric. `at` is milliseconds after the start of the run."""

    key: str
    step: int
    value: float

    @property
    def at(self) -> int:
        """A function of the step, never of a clock: MLflow takes a point with the same key, step, value and time for
        the same point, so writing it twice, by anyone, changes nothing."""
        return self.step


def points_at(step: int, metrics: Mapping[str, float | None]) -> list[Point]:
    """The finite values among metrics, as points."""
    return [Point(k, int(step), float(v)) for k, v in metrics.items() if v is not None and math.isfinite(v)]


def params(cell: Cell) -> dict[str, str]:
    """The cell's identity in a few short words. MLflow's params can never change, so nothing else is one."""
    recipe = cell.recipe
    found: dict[str, object] = {
        "treatment": cell.series,
        "n": cell.n,
        "split": cell.target.split_label,
        "source": cell.source.half if cell.source else "none",
        "target": cell.target.half,
        "seed": cell.seed,
        "fine_tune": str(cell.treatment.endswith("+")).lower() if cell.treatment in COPYING else "none",
        "network": cell.network.name if cell.network.width == 1 else f"{cell.network.name}-w{cell.network.width:g}",
        "dataset": cell.target.dataset,
        "classes": len(cell.target.classes),
        "batch_size": recipe.batch_size,
        "lr": f"{recipe.lr:g}",
        "schedule": recipe.schedule.kind,
        "weight_decay": f"{recipe.weight_decay:g}",
    }
    if recipe.epochs is not None:
        found["epochs"] = f"{recipe.epochs:g}"
    else:
        found["iterations"] = recipe.iterations
    if cell.target.images_per_class is not None:
        found["images_per_class"] = cell.target.images_per_class
    return {key: str(value) for key, value in found.items()}


def birth_tags(cell: Cell, group: str) -> dict[str, str]:
    """Tags that a run has from its first moment."""
    found = {
        CELL: cell.address,
        KIND: "trial",
        GROUP: group,
        STATUS: "training",
        ATTEMPTS: "1",
        "raygrid.phase": cell.phase,
        "mlflow.runColor": COLOURS[cell.treatment],
        "mlflow.source.name": "raygrid",
        "mlflow.source.type": "JOB",
    }
    if cell.base is not None:
        found["raygrid.base"] = cell.base.address
    return found


def final_tags(record: Record, uri_of: Mapping[str, str]) -> dict[str, str]:
    """Tags that a run gets with its record. `uri_of` maps a path in the store to its URL."""
    result, made = record.result, record.provenance
    found: dict[str, object] = {
        STATUS: result.status,
        RECORD: record_digest(record),
        "raygrid.host": made.host,
        "raygrid.device": made.device,
        "raygrid.cohort": made.cohort,
        "raygrid.duration_s": f"{made.duration_s:.1f}",
        "raygrid.version": made.raygrid_version,
        "raygrid.torch": made.torch,
    }
    if made.commit:
        found["mlflow.source.git.commit"] = made.commit
    if result.checkpoint:
        found["raygrid.checkpoint"] = uri_of[result.checkpoint]
        found["raygrid.checkpoint_sha256"] = result.checkpoint_sha256
    if result.frozen_verified is not None:
        found["raygrid.frozen_verified"] = str(result.frozen_verified).lower()
    if result.reason:
        found["raygrid.reason"] = result.reason[:500]
    return {key: str(value) for key, value in found.items() if value is not None}


def record_digest(record: Record) -> str:
    """Short digest of the deterministic part of a record."""
    return digest(deterministic(record), 16)


def run_status(record: Record) -> str:
    """MLflow's word for how a cell ended."""
    return "FINISHED" if record.result.status == "ok" else "FAILED"


def history(record: Record) -> list[Point]:
    """The points that were logged while the cell was trained."""
    found = []
    for e in record.result.history.tests():
        values = (e.train_loss, e.top1, e.top5, e.loss)
        found += points_at(e.step, dict(zip(LIVE, values, strict=True)))
    return found


def score(record: Record, which: str) -> float | None:
    """The study's headline score; `top1_last` where the other is not there."""
    chosen = record.result.top1_mean10 if which == "top1_mean10" else None
    return record.result.top1_last if chosen is None else chosen


def finals(record: Record, which: str) -> list[Point]:
    """The final values: once each. Base, scratch and base-long have no n: they are drawn at every n, as reference."""
    result, cell = record.result, record.cell
    found = points_at(
        0,
        {
            "final/top1": result.top1_last,
            "final/top5": result.top5_last,
            "final/loss": result.loss_last,
            "final/top1_mean10": result.top1_mean10,
        },
    )
    for n in (cell.n,) if cell.treatment in LAYERED else range(cell.network.layers):
        found += points_at(n, {FIGURE: score(record, which)})
    return found


def delta(own: float | None, base: float | None) -> list[Point]:
    """How far the cell is above the base that was trained on the cell's own task."""
    return [] if own is None or base is None else points_at(0, {DELTA: own - base})


def milliseconds(moment: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time."""
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


# --- what belongs in one figure ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One line of Figure 2: the cells of one treatment in one group, by n."""

    group: str
    treatment: str
    cells: Mapping[int, tuple[Cell, ...]]

    @property
    def digest(self) -> str:
        """Changes when the plan gives the curve other cells."""
        return digest({str(n): sorted(cell.address for cell in cells) for n, cells in self.cells.items()}, 16)

    @property
    def key(self) -> str:
        return f"{self.group}: {self.treatment}"

    def points(self, scores: Mapping[str, float | None]) -> list[Point]:
        """Mean over splits (of means over halves, of means over seeds), at each n whose cells all have records (an
        entry in `scores`, by address): such a point never changes again."""
        found = []
        for n, cells in self.cells.items():
            if all(cell.address in scores for cell in cells):
                pairs = [(cell, scores[cell.address]) for cell in cells]
                found += points_at(n, _mean([(cell, value) for cell, value in pairs if value is not None]))
        return found


def _mean(scores: Iterable[tuple[Cell, float]]) -> dict[str, float]:
    """Mean, least and greatest over the units of replication."""
    tasks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, value in scores:
        tasks[cell.target.split_label][cell.target.id].append(value)
    units = [_average([_average(seeds) for seeds in halves.values()]) for halves in tasks.values()]
    if not units:
        return {}
    return {MEAN: _average(units), "fig2/top1_min": min(units), "fig2/top1_max": max(units), "fig2/splits": len(units)}


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


class Figures:
    """Which cells of a plan are drawn together: same kind of split, same data, same recipe, same network."""

    def __init__(self, plan: Plan):
        self.plan = plan
        kinds: dict[str, tuple[str, str]] = {}
        for cell in plan.cells:
            label = cell.target.split
            if cell.target.images_per_class is not None:
                label += f", {cell.target.images_per_class} a class"
            kinds[cell.address] = (label, digest(cell.recipe.model_dump(mode="json"), 8))
        recipes: dict[str, list[str]] = defaultdict(list)
        for label, recipe in kinds.values():
            if recipe not in recipes[label]:
                recipes[label].append(recipe)
        self._group = {
            address: label if len(recipes[label]) == 1 else f"{label}, recipe {recipes[label].index(recipe) + 1}"
            for address, (label, recipe) in kinds.items()
        }

    def group(self, cell: Cell) -> str:
        """`random`, `semantic`, `random, 100 a class`, ..."""
        return self._group[cell.address]

    def addresses(self, group: str) -> list[str]:
        """Cells of a group."""
        return [address for address, name in self._group.items() if name == group]

    @cached_property
    def groups(self) -> dict[str, int]:
        """Number of cells by group, most first."""
        return dict(Counter(self._group[cell.address] for cell in self.plan.cells).most_common())

    @cached_property
    def curves(self) -> list[Curve]:
        """Every line of every group's figure."""
        found: dict[tuple[str, str], dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in self.plan.cells:
            for n in (cell.n,) if cell.treatment in LAYERED else range(cell.network.layers):
                found[self.group(cell), cell.series][n].append(cell)
        order = {name: index for index, name in enumerate(in_order(series for _, series in found))}
        keys = sorted(found, key=lambda key: (list(self.groups).index(key[0]), order[key[1]]))
        return [Curve(*key, {n: tuple(cells) for n, cells in sorted(found[key].items())}) for key in keys]


def target_base(cell: Cell) -> Cell | None:
    """The base trained on the cell's own task; None for a base."""
    if cell.treatment == "base":
        return None
    return Cell(
        network=cell.network,
        target=cell.target,
        source=None,
        treatment="base",
        n=0,
        seed=cell.seed,
        recipe=cell.recipe,
        outputs=cell.outputs,
        image_size=cell.image_size,
    )
