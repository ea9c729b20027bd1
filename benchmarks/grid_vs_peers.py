"""The demo's grid, and the same cells as one would train them without raygrid, on all cores of this machine.

processes   plain PyTorch, one Python process a cell, one after another or as many at a time as there are cores
tune        idiomatic Ray Tune: one trial a cell, a report an evaluation, actors reused
raygrid     `python -m raygrid.launch`, with MLflow, Parquet, figures and report; fp32 and bf16

The peers share bases and skip the frozen backward, and use channels_last and as many threads as raygrid. Where they
take too long they train a sample of the cells (every k-th, ordered by treatment and n) and their seconds are scaled by
the FLOPs of all cells over those of the sample; start-up by the number of cells. The figures say so.

Ratios are of CPU seconds of all processes: on a machine that does nothing else with its cores, that is time. A ratio's
ceiling is what remains if raygrid cost nothing but the peer's own training seconds, times FLOPs with trunks shared over
FLOPs without (raygrid.cost), and for bf16 divided by what bf16 gains on the peer itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import Spent
from benchmarks.overhead import launch
from benchmarks.peers.jobs import job
from benchmarks.workload import Workload, as_yaml, chosen, parser, scratch, workload
from raygrid.cell import Cell
from raygrid.cost import Meter, ideal
from raygrid.plan import addresses
from raygrid.record import find_records
from raygrid.store import Store
from raygrid.study import Study, in_order

BF16 = "recipe.numerics.autocast=bfloat16"
QUICK = ("treatments=[base, transfer]", "layers=[2]", "execution.backend=in-process")
"""toy size: Tune starts a Ray, and one is enough; `overhead --quick` launches on Ray"""


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    p = parser(__doc__)
    p.add_argument("--sample", type=int, default=0, help="cells that a peer trains besides bases (default: all)")
    p.add_argument("--skip-bf16", action="store_true", help="fp32 only")
    options = p.parse_args()
    study = chosen(options, QUICK if options.quick else ())
    half = None if options.skip_bf16 or options.quick else chosen(options, [BF16])
    with scratch() as folder:
        figures = compare(study, half, options.sample or (1 if options.quick else 0), folder, quick=options.quick)
    print(json.dumps(figures))
    return figures


# --- the ways of training --------------------------------------------------------------------------------------------


def sampled(work: Workload, count: int) -> list[Cell]:
    """Second-phase cells, all or every k-th."""
    places = {series: place for place, series in enumerate(in_order({cell.series for cell in work.plan.cells}))}
    cells = sorted((c for c in work.plan.cells if c.treatment != "base"), key=lambda c: (places[c.series], c.n))
    return cells if not count else [cells[(2 * i + 1) * len(cells) // (2 * count)] for i in range(count)]


def waves(work: Workload, cells: Sequence[Cell], folder: Path, naive: bool = False) -> list[list[dict[str, Any]]]:
    """Jobs of the bases that the cells need, then of the cells."""
    bases = {cell.base.address: cell.base for cell in cells if cell.base}
    groups = [list(bases.values()), list(cells)]
    return [[job(work, cell, folder, naive=naive) for cell in group] for group in groups]


def as_processes(jobs: list[list[dict[str, Any]]], folder: Path, at_once: int) -> tuple[list[dict[str, Any]], Spent]:
    """One process a cell."""
    begun = time.perf_counter()

    def one(item: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], float]:
        path = folder / f"job-{os.getpid()}-{time.time_ns()}-{item[0]}.json"
        path.write_text(json.dumps(item[1]))
        printed, spent = measure.run(["-m", "benchmarks.peers.plain", str(path)])
        return json.loads(printed.splitlines()[-1]), spent.cpu

    found = []
    for wave in jobs:
        with ThreadPoolExecutor(at_once) as pool:
            found += list(pool.map(one, enumerate(wave)))
    results = [{**result, "cpu_s": max(cpu, result["train_cpu_s"] + result["start_cpu_s"])} for result, cpu in found]
    return results, Spent(sum(result["cpu_s"] for result in results), time.perf_counter() - begun)


def as_trials(jobs: list[list[dict[str, Any]]], folder: Path) -> tuple[list[dict[str, Any]], Spent]:
    """Ray Tune."""
    path = folder / f"jobs-{time.time_ns()}.json"
    path.write_text(json.dumps(jobs))
    printed, spent = measure.run(["-m", "benchmarks.peers.tune", str(path)])
    return json.loads(printed.splitlines()[-1]), spent


def as_raygrid(study: Study, folder: Path) -> tuple[dict[str, Any], Spent]:
    """The launch."""
    folder.mkdir()
    return launch(as_yaml(study, folder / "study.yaml"), folder / "out")


# --- the comparison --------------------------------------------------------------------------------------------------


def compare(study: Study, half: Study | None, sample: int, folder: Path, quick: bool) -> dict[str, Any]:
    """Train the grid in every way, or `quick`: with processes in one way only; ratios beside their ceilings."""
    cores = len(os.sched_getaffinity(0))
    work = workload(study)
    cells = sampled(work, sample)
    everything = [cell for cell in work.plan.cells if cell.treatment != "base"]
    bases = [cell for cell in work.plan.cells if cell.treatment == "base"]
    jobs = waves(work, cells, folder)
    trained = [*[c for c in bases if c.address in {j["name"] for j in jobs[0]}], *cells]
    meter = Meter(work.plan.facts)
    factor = _flops(work.plan.cells, meter) / _flops(trained, meter)
    count = len(work.plan.cells) / len(trained)

    whole: dict[str, dict[str, Any]] = {}
    top1: dict[str, dict[str, float]] = {}

    def note(name: str, results: list[dict[str, Any]], spent: Spent) -> None:
        train = sum(r["train_cpu_s"] for r in results)
        whole[name] = {
            "train_cpu_s": round(train * factor, 2),
            "start_and_control_cpu_s": round((spent.cpu - train) * (count if "start_cpu_s" in results[0] else 1.0), 2),
            "wall_s_measured": round(spent.wall, 2),
            "cells_measured": len(results),
        }
        whole[name]["cpu_s"] = round(whole[name]["train_cpu_s"] + whole[name]["start_and_control_cpu_s"], 2)
        top1[name] = {r["name"]: r["top1"] for r in results}
        print(f"{name}: {json.dumps(whole[name])}", file=sys.stderr)

    if not quick:
        note("processes, naive", *as_processes(waves(work, cells, folder, naive=True), folder, cores))
    note("processes, one at a time", *as_processes(jobs, folder, 1))
    if cores > 1 and not quick:
        note(f"processes, {cores} at a time", *as_processes(jobs, folder, cores))
    note("tune", *as_trials(jobs, folder))
    grids: dict[str, dict[str, Any]] = {}
    for name, one in (("fp32", study), ("bf16", half)):
        if one is None:
            continue
        found, spent = as_raygrid(one, folder / name)
        grids[name] = {"cpu_s": round(spent.cpu, 2), "wall_s": round(spent.wall, 2), **found}
        print(f"raygrid {name}: {json.dumps(grids[name])}", file=sys.stderr)
        ours = workload(one)
        records = find_records(Store(str(folder / name / "out" / "store")), ours.plan.cells)
        theirs = dict(zip(addresses(ours.plan.cells), addresses(work.plan.cells), strict=True))
        top1[f"raygrid {name}"] = {theirs[a]: r.result.top1_last or 0.0 for a, r in records.items()}
    gain = 1.0
    if half is not None:
        few = workload(half)
        keep = [cell for cell in few.plan.cells if theirs[cell.address] in addresses(cells)]
        note("processes, bf16", *as_processes(waves(few, keep, folder), folder, cores))
        gain = whole["processes, one at a time"]["train_cpu_s"] / whole["processes, bf16"]["train_cpu_s"]
    best = ideal(work.plan.cells, work.plan.facts)
    sharing = best.backward_skipped.flops / best.trunk_shared.flops
    figures: dict[str, Any] = {
        "benchmark": "grid_vs_peers",
        "study": study.name,
        "cells": len(work.plan.cells),
        "cells_of_peers": len(trained),
        "cores": cores,
        "sharing_ideal": round(sharing, 3),
        "bf16_gain_of_peer": round(gain, 3),
        "peers": whole,
        "raygrid": grids,
        "comparisons": comparisons(whole, grids, sharing, gain),
        "rungs": rungs(whole, grids),
        "top1": accuracies(top1, addresses(everything)),
        "load_average": measure.load(),
    }
    show(figures)
    return figures


def _flops(cells: Sequence[Cell], meter: Meter) -> float:
    return sum(meter(cell).skipped.flops for cell in cells)


def comparisons(
    whole: dict[str, dict[str, Any]], grids: dict[str, dict[str, Any]], sharing: float, gain: float
) -> list[dict[str, Any]]:
    """Ratios of CPU seconds beside their ceilings."""
    found = []
    for name, peer in whole.items():
        for precision, ours in grids.items():
            faster = gain if precision == "bf16" and "bf16" not in name else 1.0
            if "bf16" in name and precision != "bf16":
                continue
            ceiling = peer["cpu_s"] / (peer["train_cpu_s"] / sharing / faster)
            ratio = peer["cpu_s"] / ours["cpu_s"]
            found.append(
                {
                    "what": f"{precision} against {name}",
                    "ratio": round(ratio, 3),
                    "ceiling": round(ceiling, 3),
                    "of_ceiling": round(ratio / ceiling, 3),
                    "headline": "naive" not in name,
                }
            )
    return found


def rungs(whole: dict[str, dict[str, Any]], grids: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """From the plainest script to raygrid, one change at a time, in CPU seconds of the whole grid."""
    naive, plain = whole.get("processes, naive"), whole["processes, one at a time"]
    steps = [("a process a cell, contiguous, frozen layers backward too", naive["cpu_s"])] if naive else []
    steps += [
        ("channels_last, frozen backward skipped: the peer", plain["cpu_s"]),
        ("no start-up a cell (its training seconds alone)", plain["train_cpu_s"]),
    ]
    for name, ours in grids.items():
        steps.append((f"cohorts share batches and trunks, {name} (inside the trials)", ours["trials_cpu_s"]))
        steps.append((f"the launch with Ray, MLflow, Parquet and report, {name}", ours["cpu_s"]))
    return [{"what": what, "cpu_s": round(seconds, 2)} for what, seconds in steps]


def accuracies(top1: dict[str, dict[str, float]], which: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Accuracies of the second-phase cells that all ways trained, held against raygrid's."""
    common = set(which).intersection(*(set(found) for name, found in top1.items() if "bf16" not in name))
    ours = top1["raygrid fp32"]
    table = {}
    for name, found in top1.items():
        shared = sorted(common & set(found))
        if not shared:
            continue
        table[name] = measure.agreement([found[a] for a in shared], [ours[a] for a in shared])
    return table


def show(f: dict[str, Any]) -> None:
    """For people."""
    print(
        f"{f['cells']} networks of {f['study']} on {f['cores']} cores; peers trained {f['cells_of_peers']} of them"
        + (", scaled to all by FLOPs" if f["cells_of_peers"] < f["cells"] else "")
    )
    for name, peer in f["peers"].items():
        print(
            f"  {name:<28} {peer['cpu_s']:8.1f} CPU s, of which {peer['start_and_control_cpu_s']:.1f} not training; "
            f"{peer['cells_measured']} cells took {peer['wall_s_measured']:.1f} s on the wall"
        )
    for name, ours in f["raygrid"].items():
        print(f"  {'raygrid ' + name:<28} {ours['cpu_s']:8.1f} CPU s; {ours['wall_s']:.1f} s on the wall")
    print("rung by rung, CPU seconds of the whole grid:")
    for rung in f["rungs"]:
        print(f"  {rung['cpu_s']:8.1f}  {rung['what']}")
    for row in f["comparisons"]:
        mark = "" if row["headline"] else " (for show)"
        print(
            f"raygrid {row['what']}: {row['ratio']:.2f} x, ceiling {row['ceiling']:.2f} x: "
            f"{row['of_ceiling']:.2f} of it{mark}"
        )
    for name, found in f["top1"].items():
        print(f"accuracy of {name:<28} {measure.agreement_text(found)}")


if __name__ == "__main__":
    main()
