"""What 10,000 networks cost the driver: training is left out, everything around it is real.

python tests/cluster/scale.py agenda [CELLS]          the grid alone, 128 devices, without Ray; prints JSON
python tests/cluster/scale.py ray [CELLS [GPUS [COHORT]]]  as Ray Tune trials of at most COHORT cells (0: as planned) on
                                                      as many made-up GPUs; each GPU is a process, so 128 need 12 GB
                                                      and minutes to start
"""

from __future__ import annotations

import collections
import json
import sys
import tempfile
import time
from typing import Any, ClassVar

import psutil

from raygrid import grid as grids
from raygrid.agenda import Agenda
from raygrid.cell import Cell
from raygrid.data.known import facts
from raygrid.plan import Plan, plan
from raygrid.record import Provenance, Record, Result, find_records, write_record
from raygrid.store import Store
from raygrid.study import Study

STUDY = """\
name: scale
dataset: icons40
network: {{name: small, width: 0.25}}
splits: [{splits}]
treatments: [base, scratch, selffer, selffer+, transfer, transfer+]
images_per_class: 20
recipe: {{epochs: 2, batch_size: 16, lr: 0.03, evaluations: 1}}
execution: {{cohort: {cohort}}}
"""
"""60 networks a split"""


def make_plan(cells: int, cohort: int) -> Plan:
    splits = ", ".join(f"{{kind: random, seed: {seed}}}" for seed in range(-(-cells // 60)))
    study = Study.parse(STUDY.format(splits=splits, cohort=cohort or "null"))
    return plan(study, facts(study.dataset))


def record(cell: Cell) -> Record:
    """What a worker would have written."""
    result = Result(
        status="ok", steps=1, images_seen=16, top1_last=0.5, top1_best=0.5, top1_mean10=None, top5_last=None,
        loss_last=1.0, frozen_verified=True, checkpoint="x", checkpoint_sha256="0" * 64,
    )  # fmt: skip
    provenance = Provenance(
        started="2030-01-01T00:00:00+00:00", ended="2030-01-01T00:00:00+00:00", duration_s=0.0, host="x", device="x",
        instruction_set="x", torch="x", python="x", raygrid_version="x", commit=None,
    )  # fmt: skip
    return Record(cell=cell, result=result, provenance=provenance)


class Counting(Store):
    """Counts the requests of this process."""

    calls: ClassVar[collections.Counter[str]] = collections.Counter()

    def _call(self, path: str, action: Any) -> Any:
        Counting.calls[sys._getframe(1).f_code.co_name] += 1
        return super()._call(path, action)


class Ears:
    """Hears of everything, keeps a count."""

    def __init__(self) -> None:
        self.heard: collections.Counter[str] = collections.Counter()

    def __getattr__(self, name: str) -> Any:
        def hear(*arguments: Any, **named: Any) -> None:
            self.heard[name] += 1

        return hear


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 2**20


def without_ray(cells: int, devices: int = 128) -> dict[str, Any]:
    """Hand out every cell to one of the devices, report its end, and read all records back."""
    begun, before = time.monotonic(), megabytes()
    the_plan = make_plan(cells, 1)
    planned = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store, ears = Counting(folder), Ears()
        agenda = Agenda(the_plan, {}, workers=devices, largest=1)
        grid = grids.Grid(the_plan, agenda, store, ears)  # type: ignore[arg-type]
        ready = time.monotonic()
        running: collections.deque[Any] = collections.deque()
        while not grid.over:
            while len(running) < devices and (cohort := grid.take()) is not None:
                running.append(cohort)
            cohort = running.popleft()
            for cell in cohort.cells:
                grid.event(("log", cell.address, 1, {"test/top1": 0.5}))
                grid.event(("done", record(cell).model_dump_json()))
            grid.finish(cohort, {cell.address: "ok" for cell in cohort.cells})
        ended = time.monotonic()
        in_driver = dict(Counting.calls)
        for cell in the_plan.cells:
            write_record(Store(folder), record(cell))
        Counting.calls.clear()
        reading = time.monotonic()
        found = find_records(store, the_plan.cells)
        read = time.monotonic() - reading
    count = len(the_plan.cells)
    return {
        "cells": count,
        "devices": devices,
        "plan_s": round(planned - begun, 2),
        "agenda_s": round(ready - planned, 2),
        "ms_per_cell": round(1000 * (ended - ready) / count, 3),
        "driver_mb": round(megabytes() - before),
        "store_calls_while_training": in_driver,
        "records": len(found),
        "read_back_s": round(read, 2),
        "store_calls_to_read_back": dict(Counting.calls),
        "heard": dict(ears.heard),
    }


def on_ray(cells: int, gpus: int, cohort: int) -> dict[str, Any]:
    """The same through Ray Tune."""
    import ray

    the_plan = make_plan(cells, cohort)

    def no_op(config: dict[str, Any], plan: Plan, literal: bool, **_: Any) -> None:
        from ray import tune

        mine = grids._cells(config, plan, literal)
        events = [("done", record(cell).model_dump_json()) for cell in mine]
        tune.report({"events": events, "outcomes": {cell.address: "ok" for cell in mine}})

    with tempfile.TemporaryDirectory() as folder:
        store, ears = Counting(folder), Ears()
        ray.init(address="local", num_cpus=gpus + 2, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
        before = megabytes()
        grid = grids.Grid(the_plan, Agenda(the_plan, {}, gpus, cohort or None), store, ears)  # type: ignore[arg-type]
        grids._trial = no_op  # type: ignore[assignment]
        begun = time.monotonic()
        cluster = grids.Cluster(1, gpus + 2, gpus, gpus + 2, gpus, local=True)
        grids.run_on_ray(grid, the_plan.study.execution, cluster)
        seconds = time.monotonic() - begun
        ray.shutdown()
    count = len(the_plan.cells)
    return {
        "cells": count,
        "gpus": gpus,
        "trials": ears.heard["started"],
        "ok": sum(outcome == "ok" for outcome in grid.outcomes.values()),
        "seconds": round(seconds, 1),
        "ms_per_cell": round(1000 * seconds / count, 1),
        "driver_mb": round(megabytes() - before),
        "store_calls": dict(Counting.calls),
        "heard": dict(ears.heard),
    }


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    if sys.argv[1] == "ray":
        print(json.dumps(on_ray(*numbers, *(10_000, 128, 0)[len(numbers) :])))
    else:
        print(json.dumps(without_ray(numbers[0] if numbers else 10_000)))
