"""Records to Parquet: `results`, one row a cell, and `history`, one row a cell and evaluation.

The schemas below are the interface to `analysis` and to anybody's notebook; they carry a version in their metadata.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygrid.cell import Cell, digest
from raygrid.errors import UserError, ended_by
from raygrid.plan import Plan
from raygrid.record import Record
from raygrid.store import Store

VERSION = b"1"

RESULTS = pa.schema(
    [
        pa.field("study", pa.string(), False),
        pa.field("cell", pa.string(), False, {"what": "address, unique"}),
        pa.field("name", pa.string(), False, {"what": "the paper's notation: baseB, B3B, A3B+, R3B"}),
        pa.field("split", pa.string(), False, {"what": "random, semantic, all, or the explicit list's name"}),
        pa.field("split_seed", pa.int64(), True, {"what": "seed of a random split; null otherwise"}),
        pa.field("split_classes", pa.int64(), False, {"what": "classes in both halves of the split together"}),
        pa.field("source", pa.string(), True, {"what": "half whose base was copied; null where none is"}),
        pa.field("target", pa.string(), False, {"what": "half trained and tested on: A, B or all"}),
        pa.field("task", pa.string(), False, {"what": "content hash of the target's classes and images: pairing key"}),
        pa.field("classes", pa.int64(), False, {"what": "classes of the target task; chance is 1 / classes"}),
        pa.field("images_per_class", pa.int64(), True, {"what": "null: all"}),
        pa.field("treatment", pa.string(), False, {"what": "selffer-preserve1: one copied layer above n learns"}),
        pa.field("n", pa.int64(), False, {"what": "layers copied or kept random; 0 for base, scratch, base-long"}),
        pa.field("frozen", pa.bool_(), False, {"what": "whether layers 1..n did not learn"}),
        pa.field("seed", pa.int64(), False, {"what": "the replicate"}),
        pa.field("network", pa.string(), False),
        pa.field("layers", pa.int64(), False, {"what": "weight layers of the network"}),
        pa.field("dataset", pa.string(), False),
        pa.field("recipe", pa.string(), False, {"what": "content hash of the recipe"}),
        pa.field("status", pa.string(), False, {"what": "ok, diverged, blocked"}),
        pa.field("reason", pa.string(), True, {"what": "why a cell is diverged or blocked"}),
        pa.field("steps", pa.int64(), False),
        pa.field("images_seen", pa.int64(), False),
        pa.field("top1_last", pa.float64(), True, {"what": "fraction right in the last test, on all test images"}),
        pa.field("top1_best", pa.float64(), True, {"what": "best of all tests: selects on the test images"}),
        pa.field("top1_mean10", pa.float64(), True, {"what": "mean of the ten best tests; null below ten"}),
        pa.field("top5_last", pa.float64(), True, {"what": "null for fewer than 10 classes"}),
        pa.field("loss_last", pa.float64(), True, {"what": "mean cross-entropy of the last test, nats"}),
        pa.field("score", pa.string(), False, {"what": "column of the study's headline score"}),
        pa.field("frozen_verified", pa.bool_(), True, {"what": "frozen bytes unchanged; null where nothing is frozen"}),
        pa.field("checkpoint_uri", pa.string(), True),
        pa.field("checkpoint_sha256", pa.string(), True),
        pa.field("data_sha256", pa.string(), False),
        pa.field("duration_s", pa.float64(), False, {"what": "the cell's share of its cohort's seconds"}),
        pa.field("device", pa.string(), False),
        pa.field("host", pa.string(), False),
        pa.field("torch", pa.string(), False),
        pa.field("ended", pa.string(), False, {"what": "UTC, ISO 8601"}),
        pa.field("commit", pa.string(), True),
        pa.field("raygrid_version", pa.string(), False),
    ],
    {b"raygrid_schema": VERSION},
)

HISTORY = pa.schema(
    [
        pa.field("study", pa.string(), False),
        pa.field("cell", pa.string(), False),
        pa.field("step", pa.int64(), False, {"what": "training steps done"}),
        pa.field("epoch", pa.float64(), False, {"what": "passes over the task's training images done"}),
        pa.field("images", pa.int64(), False, {"what": "test images used"}),
        pa.field("train_loss", pa.float64(), True, {"what": "mean since the evaluation before, nats"}),
        pa.field("top1", pa.float64(), False),
        pa.field("top5", pa.float64(), True),
        pa.field("loss", pa.float64(), True, {"what": "mean cross-entropy of the test, nats"}),
        pa.field("lr", pa.float64(), False),
    ],
    {b"raygrid_schema": VERSION},
)


def row(plan: Plan, cell: Cell, record: Record, store: Store, recipes: dict[int, str]) -> dict[str, Any]:
    """A cell's row of `results`. `recipes` keeps the hashes of recipes by id(): thousands of cells share one."""
    task, result, made = cell.target, record.result, record.provenance
    recipe = recipes.get(id(cell.recipe))
    if recipe is None:
        recipe = recipes[id(cell.recipe)] = digest(cell.recipe.model_dump(mode="json"), 12)
    return {
        "study": plan.study.name,
        "cell": cell.address,
        "name": cell.name,
        "split": task.split,
        "split_seed": task.split_seed,
        "split_classes": task.split_classes,
        "source": cell.source.half if cell.source else None,
        "target": task.half,
        "task": task.id,
        "classes": len(task.classes),
        "images_per_class": task.images_per_class,
        "treatment": cell.series,
        "n": cell.n,
        "frozen": cell.frozen > 0,
        "seed": cell.seed,
        "network": cell.network.name,
        "layers": cell.network.layers,
        "dataset": task.dataset,
        "recipe": recipe,
        "status": result.status,
        "reason": result.reason,
        "steps": result.steps,
        "images_seen": result.images_seen,
        "top1_last": result.top1_last,
        "top1_best": result.top1_best,
        "top1_mean10": result.top1_mean10,
        "top5_last": result.top5_last,
        "loss_last": result.loss_last,
        "score": plan.study.score,
        "frozen_verified": result.frozen_verified,
        "checkpoint_uri": store.uri(result.checkpoint) if result.checkpoint else None,
        "checkpoint_sha256": result.checkpoint_sha256,
        "data_sha256": task.data_sha256,
        "duration_s": made.duration_s,
        "device": made.device,
        "host": made.host,
        "torch": made.torch,
        "ended": made.ended,
        "commit": made.commit,
        "raygrid_version": made.raygrid_version,
    }


def _done(plan: Plan, records: Mapping[str, Record]) -> list[tuple[Cell, Record]]:
    return [(cell, records[cell.address]) for cell in plan.cells if cell.address in records]


def results_table(plan: Plan, records: Mapping[str, Record], store: Store) -> pa.Table:
    """`results` of the cells that have records, in the plan's order."""
    return _results(plan, _done(plan, records), store)


def _results(plan: Plan, done: Sequence[tuple[Cell, Record]], store: Store) -> pa.Table:
    recipes: dict[int, str] = {}
    rows = [row(plan, cell, record, store, recipes) for cell, record in done]
    return pa.table(pa.array(rows, pa.struct(list(RESULTS))).flatten(), RESULTS)


def history_table(plan: Plan, records: Mapping[str, Record]) -> pa.Table:
    """`history` of the cells that have records, in the plan's order."""
    return pa.concat_tables([HISTORY.empty_table(), *_history(plan.study.name, _done(plan, records))])


def export(plan: Plan, records: Mapping[str, Record], store: Store, folder: Path) -> tuple[Path, Path]:
    """Write `results.parquet` and `history.parquet`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "results.parquet", folder / "history.parquet"
    done = _done(plan, records)
    tables = [_results(plan, done, store)], _history(plan.study.name, done)
    for path, schema, parts in zip(paths, (RESULTS, HISTORY), tables, strict=True):
        temporary = path.with_name(f".{path.stem}-{uuid4().hex[:8]}.part")  # two launches may write at once
        repeated = [name for name in schema.names if "loss" not in name]  # a dictionary of losses would save nothing
        searched = [name for name in ("study", "cell", "n", "treatment", "step") if name in schema.names]
        try:
            with pq.ParquetWriter(temporary, schema, use_dictionary=repeated, write_statistics=searched) as file:
                for part in parts:
                    file.write_table(part)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return paths


def _history(study: str, done: Sequence[tuple[Cell, Record]]) -> Iterator[pa.Table]:
    """The rows of `history`, a thousand cells at a time: ten million rows as Python values would take gigabytes."""
    for start in range(0, len(done), 1000):
        part = done[start : start + 1000]
        held = [record.result.history for _, record in part]
        cells = pa.array([cell.address for cell, _ in part]).take(np.repeat(np.arange(len(part)), [*map(len, held)]))
        columns = [
            _column(field, [getattr(tests, field.name) for tests in held], len(cells)) for field in list(HISTORY)[2:]
        ]
        yield pa.table([pa.array([study]).take(np.zeros(len(cells), np.int64)), cells, *columns], HISTORY)


def _column(field: pa.Field, values: Sequence[Sequence[Any]], count: int) -> pa.Array:
    """All networks' values of a column, joined."""
    joined = chain.from_iterable(values)
    if field.nullable:
        return pa.array(list(joined), field.type)
    return pa.array(np.fromiter(joined, field.type.to_pandas_dtype(), count))


if __name__ == "__main__":
    sys.exit(
        ended_by(UserError("raygrid.export is no command: raygrid.launch writes Parquet, and trains nothing twice"))
    )
