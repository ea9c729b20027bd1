"""Seven networks on one frozen trunk, n = 1 .. 7 of one source and target, in four ways.

naive    plain PyTorch, contiguous, the frozen layers' backward is run too
peer     plain PyTorch, channels_last, backward skipped (`requires_grad=False`)
skip     raygrid, each cell trained alone: backward skipped, trunk forward not shared
cohort   raygrid, side by side: one trunk forward, one batch, one test pass for all seven

One thread, CPU seconds without start-up, variants take turns; the scripts have a process of their own, as they would.
The ideal is the ratio of FLOPs (raygrid.cost, tests included); `eta` is
measured / ideal. Sharing saves more than FLOPs (batches, normalisation), so eta may exceed 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Spent, agreement, agreement_text, interleaved, load, ratios, run, spread, text
from benchmarks.peers import plain
from benchmarks.peers.jobs import job
from benchmarks.workload import Workload, chosen, parser, scratch, workload
from raygrid.cell import Cell
from raygrid.cost import Meter, ideal, seconds
from raygrid.record import deterministic, find_records
from raygrid.store import Store
from raygrid.train import Bench, train_cohort


def sweep(work: Workload) -> list[Cell]:
    """The frozen transfer cells of the first target."""
    frozen = [cell for cell in work.plan.cells if cell.treatment == "transfer"]
    first = frozen[0]
    return [cell for cell in frozen if cell.stream == first.stream and cell.base == first.base]


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, help="turns of every variant (default 5)")
    options = p.parse_args()
    one_split = [] if options.quick else ["grid=[{splits: [{kind: random, seed: 2, exclude: [cat, deer]}]}]"]
    study = chosen(options, ["treatments=[transfer]", "targets=[B]", "layers=all", *one_split])
    work = workload(study)
    with scratch() as folder:
        figures = measure(work, options.repeats or (1 if options.quick else 5), folder)
    print(json.dumps(figures))
    return figures


def measure(work: Workload, repeats: int, folder: Path) -> dict[str, Any]:
    """Train the base once, then the sweep in every way."""
    cells = sweep(work)
    base = cells[0].base
    assert base is not None
    torch.set_num_threads(1)
    trained = work.store(folder / "trained")
    facts = work.plan.facts
    train_cohort([base], Bench(trained, facts))
    plain.train(job(work, base, folder))
    stores: dict[str, list[Store]] = {"skip": [], "cohort": []}
    accuracies: dict[str, list[float]] = {}

    def fresh(kind: str) -> Store:
        stores[kind].append(work.store(folder / f"{kind}{len(stores[kind])}", trained, [base]))
        return stores[kind][-1]

    def alone() -> None:
        store = fresh("skip")
        for cell in cells:
            train_cohort([cell], Bench(store, facts))

    def together() -> None:
        train_cohort(cells, Bench(fresh("cohort"), facts))

    def peer(name: str, naive: bool) -> Spent:
        path = folder / f"{name}.json"
        path.write_text(json.dumps([job(work, cell, folder, naive=naive) for cell in cells]))
        printed, spent = run(["-m", "benchmarks.peers.plain", str(path)])
        found = [json.loads(line) for line in printed.splitlines()]
        accuracies[name] = [one["top1"] for one in found]
        return Spent(sum(one["train_cpu_s"] for one in found), spent.wall)

    spent = interleaved(
        {
            "naive": lambda: peer("naive", True),
            "peer": lambda: peer("peer", False),
            "skip": alone,
            "cohort": together,
        },
        repeats,
    )
    both = [find_records(stores[kind][0], cells) for kind in ("skip", "cohort")]
    equal = all(deterministic(both[0][c.address]) == deterministic(both[1][c.address]) for c in cells)
    accuracies["cohort"] = [both[1][cell.address].result.top1_last or 0.0 for cell in cells]

    best, meter = ideal(cells, facts), Meter(facts)
    ideals = {
        "ideal_over_naive": best.bases_shared.flops / best.trunk_shared.flops,
        "ideal_over_skip": best.backward_skipped.flops / best.trunk_shared.flops,
        "ideal_seconds_over_skip": sum(seconds([c], meter) for c in cells) / seconds(cells, meter),
    }
    figures: dict[str, Any] = {
        "benchmark": "frozen_sweep",
        "network": f"{cells[0].network.name} x {cells[0].network.width:g}",
        "cells": len(cells),
        "steps": cells[0].steps(facts),
        "repeats": repeats,
        **{f"{name}_cpu_s": spread([s.cpu for s in turns]) for name, turns in spent.items()},
        "speedup_over_naive": ratios(spent["naive"], spent["cohort"]),
        "speedup_over_peer": ratios(spent["peer"], spent["cohort"]),
        "speedup_over_skip": ratios(spent["skip"], spent["cohort"]),
        "peer_over_skip": ratios(spent["peer"], spent["skip"]),
        **{name: round(value, 3) for name, value in ideals.items()},
        "same_bytes": equal,
        "top1": {name: agreement(values, accuracies["cohort"]) for name, values in accuracies.items()},
        "load_average": load(),
    }
    figures["eta"] = _over(figures["speedup_over_skip"], ideals["ideal_over_skip"])
    figures["eta_over_peer"] = _over(figures["speedup_over_peer"], ideals["ideal_over_skip"])
    figures["eta_over_naive"] = _over(figures["speedup_over_naive"], ideals["ideal_over_naive"])
    show(figures)
    return figures


def _over(found: dict[str, float], ideal_: float) -> dict[str, float]:
    return {key: round(value / ideal_, 3) for key, value in found.items()}


def show(f: dict[str, Any]) -> None:
    """For people."""
    print(f"{f['cells']} frozen cells of {f['network']}, {f['steps']} steps each; CPU seconds of one thread:")
    rows: Sequence[tuple[str, str, str, float]] = (
        ("naive", "speedup_over_naive", "eta_over_naive", f["ideal_over_naive"]),
        ("peer", "speedup_over_peer", "eta_over_peer", f["ideal_over_skip"]),
        ("skip", "speedup_over_skip", "eta", f["ideal_over_skip"]),
    )
    for name, key, eta, best in rows:
        line = f"  {name:<7} {text(f[f'{name}_cpu_s']):<26} cohort is {text(f[key])} x faster"
        print(f"{line}, ideal {best:.2f} x: eta {text(f[eta])}")
    print(f"  cohort  {text(f['cohort_cpu_s'])}")
    print(f"cohort and single give the same bytes: {f['same_bytes']}")
    for name, found in f["top1"].items():
        print(f"accuracy of {name:<7} {agreement_text(found)}")


if __name__ == "__main__":
    main()
