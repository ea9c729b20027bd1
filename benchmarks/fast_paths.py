"""What every fast path of the training loop is worth: the same cohort without it, in turns.

One thread, CPU seconds of a process of its own, bases and start-up left out; two threads are judged by the clock too.
A path that changes bytes is a key of `recipe.numerics` (law 1); the others are simply how raygrid trains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.before import ONE_SPLIT
from benchmarks.measure import ROOT, load, spread, text
from benchmarks.workload import chosen, parser, scratch, workload
from raygrid import train
from raygrid.optimize import Optimizer
from raygrid.record import deterministic, find_records
from raygrid.study import Recipe


class TorchSGD(Optimizer):
    """What a script would use: torch.optim.SGD and clip_grad_norm_, with PyTorch's own choice of foreach."""

    foreach: bool | None = None

    def __init__(self, parameters: Any, recipe: Recipe):
        super().__init__(parameters, recipe)
        self._torch = torch.optim.SGD(
            self.parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, foreach=self.foreach
        )

    def step(self, lr: float) -> None:
        """As `Optimizer.step`."""
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip, foreach=self.foreach)
        for group in self._torch.param_groups:
            group["lr"] = lr
        self._torch.step()


class ForeachSGD(TorchSGD):
    """The same with foreach=True, which PyTorch chooses on GPUs only."""

    foreach = True


def _optimizer(kind: type[Optimizer]) -> Callable[[], None]:
    return lambda: setattr(train, "Optimizer", kind)


@dataclass(frozen=True)
class Way:
    """A way to train: keys of the study, or something in the process."""

    what: str
    overrides: tuple[str, ...] = ()
    change: Callable[[], None] = lambda: None


CHOSEN = "as raygrid trains"
WAYS = {
    "chosen": Way(CHOSEN),
    "contiguous": Way("without channels_last", ("recipe.numerics.memory_format=contiguous",)),
    "sgd": Way("with torch.optim.SGD as it comes", change=_optimizer(TorchSGD)),
    "foreach": Way("with torch.optim.SGD(foreach=True)", change=_optimizer(ForeachSGD)),
    "bfloat16": Way("with bfloat16 autocast", ("recipe.numerics.autocast=bfloat16",)),
    "threads": Way("with two threads", ("recipe.numerics.threads=2",)),
}


def main() -> dict[str, Any] | None:
    """Run the benchmark; its figures."""
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, help="turns of every way (default 3)")
    p.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.one:
        print(json.dumps(once(options)))
        return None
    repeats = options.repeats or (1 if options.quick else 3)
    passed = [*(["--quick"] if options.quick else []), *(f"--set={key}" for key in options.set)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name in WAYS:
            found[name].append(apart(name, passed))
    figures = {
        "benchmark": "fast_paths",
        "repeats": repeats,
        "cells": found["chosen"][0]["cells"],
        "paths": [row(name, found) for name in WAYS],
        "load_average": load(),
    }
    show(figures)
    print(json.dumps(figures))
    return figures


def apart(name: str, passed: list[str]) -> dict[str, Any]:
    """One way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fast_paths", "--one", name, *passed]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def once(options: argparse.Namespace) -> dict[str, Any]:
    """Train the cohort in one way."""
    path = WAYS[options.one]
    path.change()
    work = workload(chosen(options, [*([] if options.quick else ONE_SPLIT), *path.overrides]))
    facts = work.plan.facts
    cells = max(work.retrain_streams(), key=len)
    with scratch() as folder:
        store = work.store(Path(folder) / "store")
        for base in {cell.base.address: cell.base for cell in cells if cell.base}.values():
            train.train_cohort([base], train.Bench(store, facts))
        wall, cpu = time.perf_counter(), time.process_time()
        train.train_cohort(cells, train.Bench(store, facts))
        spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        records = find_records(store, cells)
        kept = [deterministic(records[cell.address])["result"] for cell in cells]
        top1 = [records[cell.address].result.top1_last or 0.0 for cell in cells]
    for result in kept:
        del result["checkpoint"]  # its path holds the cell's hash, and so the recipe
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return {**spent, "cells": len(cells), "bytes": digest, "top1": sum(top1) / len(top1)}


def row(name: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A way beside the chosen one; `cost`: its CPU seconds over the chosen way's, turn by turn."""
    ours, theirs = found["chosen"], found[name]
    return {
        "name": name,
        "what": WAYS[name].what,
        "cpu_s": spread([one["cpu_s"] for one in theirs]),
        "cost": spread([a["cpu_s"] / b["cpu_s"] for a, b in zip(theirs, ours, strict=True)]),
        "wall": spread([a["wall_s"] / b["wall_s"] for a, b in zip(theirs, ours, strict=True)]),
        "same_bytes": len({one["bytes"] for one in [*ours, *theirs]}) == 1,
        "top1": round(theirs[0]["top1"], 4),
    }


def show(f: dict[str, Any]) -> None:
    """For people."""
    print(f"{f['cells']} cells of one stream, {f['repeats']} turns; against {CHOSEN}:")
    for one in f["paths"]:
        print(
            f"  {one['what']:<36} {text(one['cpu_s']):<24} CPU s, {text(one['cost'])} x; on the clock "
            f"{text(one['wall'])} x; {'the same' if one['same_bytes'] else 'other'} bytes, accuracy {one['top1']:.3f}"
        )


if __name__ == "__main__":
    main()
