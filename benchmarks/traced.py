"""A launch that tells where its seconds went: `python -m benchmarks.traced STUDY.yaml FOLDER [--nothing]`.

It is `raygrid.launch` itself, with clocks around its parts. `--nothing`: cells are not trained, but everything around
training happens as ever: leases, records, reports, MLflow; nothing is analysed. Last line: one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVALUATIONS = 2
"""that a cell which trains nothing reports"""


class Spans:
    """Seconds of named parts, on the wall."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.born = time.monotonic()
        self.cohorts: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.first_log: float | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add to a part."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begun

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Clock a function."""
        original = getattr(owner, function)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return original(*arguments, **named)

        setattr(owner, function, wrapped)


def train_nothing(self: Any, cells: Sequence[Any]) -> dict[str, str]:
    """In place of `_Loop.train`: a record and its reports, no training."""
    import torch

    from raygrid import provenance
    from raygrid.record import Evaluation, History, Record, Result, lease_path, write_record

    made = provenance.now(0.0, torch.device("cpu"), 0, len(cells))
    for cell in cells:
        history = [
            Evaluation(step=i + 1, epoch=1.0, images=1, train_loss=1.0, top1=0.5, top5=None, loss=1.0, lr=0.1)
            for i in range(EVALUATIONS)
        ]
        for evaluation in history:
            self.bench.log(cell, evaluation.step, {"train/loss": 1.0, "test/top1": 0.5, "test/loss": 1.0})
        result = Result(
            status="ok",
            steps=EVALUATIONS,
            images_seen=1,
            top1_last=0.5,
            top1_best=0.5,
            top1_mean10=None,
            top5_last=None,
            loss_last=1.0,
            frozen_verified=True if cell.frozen else None,
            checkpoint="cells/none",
            checkpoint_sha256="0" * 64,
            history=History.of(history),
        )
        record = Record(cell=cell, result=result, provenance=made)
        write_record(self.bench.store, record)
        self.bench.done(record)
        self.leases.release(lease_path(cell))
        self.outcomes[cell.address] = "ok"
    return dict(self.outcomes)


def clocked_trial(config: dict[str, Any], **named: Any) -> None:
    """In place of `grid._trial`, on a worker: notes its CPU seconds beside the store."""
    from raygrid import grid

    begun = time.process_time()
    grid._trial(config, **named)  # a worker's own module has the original
    with (Path(named["url"].removeprefix("file://")).parent / "cpu.txt").open("a") as file:
        file.write(f"{time.process_time() - begun}\n")


def trial_of_nothing(config: dict[str, Any], **named: Any) -> None:
    """In place of `grid._trial`, on a worker."""
    from raygrid import grid, train

    train._Loop.train = train_nothing  # type: ignore[method-assign, assignment]
    grid._trial(config, **named)  # a worker's own module has the original


def main(study: str, folder: Path, nothing: bool) -> dict[str, Any]:
    """Launch; what took how long."""
    spans = Spans()
    with spans.part("imports"):
        from rich.console import Console  # not Ray: it reads its token when it is imported

        import analysis
        from raygrid import export, grid, launch, preview, remote
        from raygrid.data import arrays, known
        from raygrid.record import find_records
        from raygrid.track import tracker

    for owner, function, name in (
        (known, "prepare", "data"),
        (arrays, "publish", "data"),
        (grid, "connect", "starting Ray"),
        (grid, "run_on_ray", "the grid"),
        (grid, "disconnect", "stopping Ray"),
        (preview, "announce", "predicting"),
        (tracker.Tracker, "close", "waiting for MLflow at the end"),
        (export, "export", "export"),
        (analysis, "write", "analysis"),
        (remote, "publish", "putting results into the store"),
    ):
        spans.watch(owner, function, name)
    both = launch._Watch
    started, recorded = both.started, both.recorded

    def note_start(self: Any, cohort: Any, where: str) -> None:
        spans.cohorts[cohort.cells[0].stream + where] = time.monotonic()
        started(self, cohort, where)

    def note_record(self: Any, record: Any) -> None:
        spans.ended[record.cell.address] = time.monotonic()
        recorded(self, record)

    both.started, both.recorded = note_start, note_record  # type: ignore[method-assign]
    grid._trial = trial_of_nothing if nothing else clocked_trial  # type: ignore[assignment]
    if nothing:
        launch._write = lambda *arguments: None  # type: ignore[assignment]
    asked = launch.job_for(study, (), str(folder / "store"), folder)
    with spans.part("launch"):
        code = launch.launch(asked, Console(soft_wrap=True, file=sys.stderr))
    from raygrid.library import Work

    work = Work(asked)
    records = find_records(work.store, work.plan.cells)
    trained = sum(record.provenance.duration_s for record in records.values())
    clocks = folder / "cpu.txt"
    parts = {name: round(seconds, 3) for name, seconds in spans.spent.items()}
    return {
        "exit_code": code,
        "cells": len(work.plan.cells),
        "records": len(records),
        "cohorts": len(spans.cohorts),
        "parts": parts,
        "elsewhere_in_launch": round(
            parts["launch"] - sum(s for name, s in parts.items() if name not in ("launch", "imports")), 3
        ),
        "training_and_tests_device_s": round(trained, 3),
        "trials_cpu_s": round(sum(map(float, clocks.read_text().split())) if clocks.exists() else 0.0, 3),
        "to_first_cohort_s": round(min(spans.cohorts.values(), default=spans.born) - spans.born, 3),
        "first_cohort_to_last_record_s": round(
            max(spans.ended.values(), default=0.0) - min(spans.cohorts.values(), default=0.0), 3
        ),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), "--nothing" in sys.argv)))
