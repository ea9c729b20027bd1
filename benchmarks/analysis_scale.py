"""Export and analysis of 100,000 networks with 100 tests each: Parquet out, then tables, figures and report from it.

Records are made in memory (their histories repeat 200 different ones, since ten million different tests would not fit).
Reading records from a store is measured apart, on a sample, and scaled: it is parsing, and takes far longer.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.plan_scale import facts, grid, peak_mb, timed
from benchmarks.workload import scratch
from raygrid.cell import Cell
from raygrid.export import export
from raygrid.plan import Plan, plan
from raygrid.record import Evaluation, History, Provenance, Record, Result, find_records, write_record
from raygrid.store import Store

HISTORIES = 200
SAMPLE = 2000
CODE = """
import analysis, sys
analysis.write(sys.argv[1])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
"""peak memory of this process alone: `ru_maxrss` would be its parent's"""


def history(draw: random.Random, evaluations: int) -> History:
    """A plausible learning curve."""
    height = draw.uniform(0.4, 0.7)
    return History.of(
        Evaluation(
            step=4500 * (i + 1),
            epoch=1.8 * (i + 1),
            images=25_000,
            train_loss=4 * math.exp(-i / 20) + draw.random(),
            top1=height * (1 - math.exp(-i / 20)) + draw.uniform(0, 0.02),
            top5=min(1.0, height * 1.3 * (1 - math.exp(-i / 20))),
            loss=4 * math.exp(-i / 20) + 1,
            lr=0.01 * 0.1 ** (i // 25),
        )
        for i in range(evaluations)
    )


def record(cell: Cell, tests: History, draw: random.Random, made: Provenance) -> Record:
    """A cell's record; frozen layers cost accuracy, so that there is something to find."""
    last = tests.top1[-1] - (0.01 * cell.n if cell.frozen else 0.0) + draw.gauss(0, 0.005)
    result = Result(
        status="ok",
        steps=450_000,
        images_seen=450_000 * 256,
        top1_last=last,
        top1_best=last,
        top1_mean10=last,
        top5_last=min(1.0, last * 1.3),
        loss_last=tests.loss[-1],
        frozen_verified=True if cell.frozen else None,
        checkpoint="cells/none",
        checkpoint_sha256="0" * 64,
        history=tests,
    )
    return Record.model_construct(cell=cell, result=result, provenance=made)


def made() -> Provenance:
    """Some provenance."""
    return Provenance(
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T01:00:00+00:00",
        duration_s=3600.0,
        host="host",
        device="device",
        instruction_set="AVX512",
        torch="2",
        python="3.11",
        raygrid_version="0",
        commit=None,
    )


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="toy size: shows only that the benchmark works")
    p.add_argument("--cells", type=int, help="default 100000")
    p.add_argument("--evaluations", type=int, help="default 100")
    options = p.parse_args()
    wanted = options.cells or (200 if options.quick else 100_000)
    evaluations = options.evaluations or (5 if options.quick else 100)
    splits, seeds = (4, -(-wanted // (4 * 58))) if wanted < 10_000 else (-(-wanted // (58 * 8)), 8)
    the_plan = plan(grid(splits, seeds), facts(100))
    draw, provenance = random.Random(0), made()
    curves = [history(draw, evaluations) for _ in range(HISTORIES)]
    records = {cell.address: record(cell, draw.choice(curves), draw, provenance) for cell in the_plan.cells}
    with scratch() as folder:
        figures = measured(the_plan, records, evaluations, folder)
    print(json.dumps(figures))
    return figures


def measured(the_plan: Plan, records: dict[str, Record], evaluations: int, folder: Path) -> dict[str, Any]:
    """Time export, analysis, and the reading of a sample of records."""
    store = Store(str(folder / "store"))
    before = peak_mb()
    (results, histories), export_cpu, export_wall = timed(lambda: export(the_plan, records, store, folder / "out"))
    exported = peak_mb()
    size = (results.stat().st_size + histories.stat().st_size) / 1e6
    printed, spent = measure.run(["-c", CODE, str(folder / "out")])
    analysis_gb = float(printed.splitlines()[-1]) / 1e6

    sample = the_plan.cells[:SAMPLE]
    for cell in sample:
        write_record(store, records[cell.address])
    read, read_cpu, _ = timed(lambda: find_records(store, sample))
    assert len(read) == len(sample)
    count = len(the_plan.cells)
    figures = {
        "benchmark": "analysis_scale",
        "cells": count,
        "evaluations": evaluations,
        "cpu_s": round(export_cpu + spent.cpu, 2),
        "wall_s": round(export_wall + spent.wall, 2),
        "export_cpu_s": round(export_cpu, 2),
        "analysis_cpu_s": round(spent.cpu, 2),
        "peak_gb": round(max(exported / 1e3, analysis_gb), 3),
        "export_peak_gb": round(exported / 1e3, 3),
        "records_gb": round(before / 1e3, 3),
        "analysis_peak_gb": round(analysis_gb, 3),
        "parquet_mb": round(size, 1),
        "reading_records_sample": len(sample),
        "reading_records_cpu_s_of_all": round(read_cpu / len(sample) * count, 1),
        "load_average": measure.load(),
    }
    print(
        f"{count:,} networks x {evaluations} tests: export {export_cpu:.1f} CPU s (peak {exported / 1e3:.2f} GB, "
        f"{before / 1e3:.2f} of it before), {size:.0f} MB of Parquet; analysis {spent.cpu:.1f} CPU s, start-up "
        f"included (peak {analysis_gb:.2f} GB)"
    )
    scaled = figures["reading_records_cpu_s_of_all"]
    print(f"reading the records from a store, apart: {scaled} CPU s for all, from {len(sample)} of them")
    return figures


if __name__ == "__main__":
    sys.exit(not main())
