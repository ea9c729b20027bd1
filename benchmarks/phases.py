"""Where the seconds of a training go: batches, trunk, members forward and backward, optimiser, tests, saving, start-up.

One thread, CPU seconds, one stream of bases and one stream of second-phase cells of the study, each cohort in this
process without Ray. Every phase counts its own time only, not that of phases inside it. `ideal` is what raygrid.cost
predicts for the training on its reference core; `arithmetic` is the share of the time that is inside torch's layers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import load
from benchmarks.workload import Workload, chosen, parser, scratch, workload
from raygrid import checkpoint, member, networks, optimize, train
from raygrid.cell import Cell
from raygrid.cost import Meter, seconds
from raygrid.data import stream
from raygrid.store import Store

ARITHMETIC = ("trunk forward", "members forward", "backward", "optimiser", "tests")


class Stopwatch:
    """CPU seconds of nested phases, each without what is nested in it."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[str] = []
        self._since = 0.0

    def _pass(self) -> None:
        now = time.process_time()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str, inside: Sequence[str] = ()) -> Iterator[None]:
        """Count what runs here as a phase; inside the phases named, as theirs."""
        if any(name_ in self._open for name_ in inside):
            yield
            return
        self._pass()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._pass()
            self._open.pop()

    def watch(self, owner: Any, function: str, name: str, inside: Sequence[str] = ()) -> Callable[[], None]:
        """Wrap a function or method; returns what undoes it."""
        original = getattr(owner, function)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            with self.phase(name, inside):
                return original(*arguments, **named)

        setattr(owner, function, wrapped)
        return lambda: setattr(owner, function, original)


@contextmanager
def watched(clock: Stopwatch) -> Iterator[None]:
    """Watch the functions of a training."""
    undo = [
        clock.watch(train._Loop, "_test", "tests"),
        clock.watch(stream.TestSet, "_batch", "batches of tests"),
        clock.watch(stream.Stream, "batch", "batches"),
        clock.watch(stream.Noise, "uniform", "dropout numbers"),
        clock.watch(networks.Normalization, "forward", "normalisation", ("tests",)),
        clock.watch(member.Trunk, "taps", "trunk forward", ("tests",)),
        clock.watch(networks.StagedNetwork, "run", "members forward", ("tests",)),
        clock.watch(train.functional, "cross_entropy", "members forward", ("tests",)),
        clock.watch(torch.Tensor, "backward", "backward"),
        clock.watch(optimize.Optimizer, "step", "optimiser"),
        clock.watch(optimize.Optimizer, "zero_grad", "optimiser"),
        clock.watch(train._Loop, "_finish", "saving"),
        clock.watch(train._Loop, "_save", "saving"),
        clock.watch(train._Loop, "_member", "making networks"),
        clock.watch(checkpoint, "fetch", "reading bases"),
        clock.watch(train._Loop, "_look", "looking at losses"),
    ]
    try:
        yield
    finally:
        for each in undo:
            each()


def profile(cells: Sequence[Cell], work: Workload, store: Store) -> dict[str, Any]:
    """Train a cohort under the stopwatch."""
    clock = Stopwatch()
    with watched(clock), clock.phase("the loop"):
        train.train_cohort(cells, train.Bench(store, work.plan.facts))
    whole = sum(clock.spent.values())
    steps = sum(cell.steps(work.plan.facts) for cell in cells)
    predicted = seconds(cells, Meter(work.plan.facts))
    return {
        "cells": len(cells),
        "cell_steps": steps,
        "cpu_s": round(whole, 3),
        "predicted_s": round(predicted, 3),
        "arithmetic": round(sum(clock.spent[name] for name in ARITHMETIC) / whole, 4),
        "phases": {
            name: {"cpu_s": round(spent, 4), "share": round(spent / whole, 4), "calls": clock.calls[name]}
            for name, spent in sorted(clock.spent.items(), key=lambda item: -item[1])
        },
    }


def start_up() -> dict[str, float]:
    """CPU seconds until a process can train, without and with Ray."""
    found = {}
    for name, code in {
        "python": "pass",
        "torch": "import torch",
        "raygrid": "import raygrid.train",
        "raygrid and ray": "import raygrid.train, ray.tune",
    }.items():
        code += "\nimport time; print(time.process_time())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[name] = round(float(done.stdout), 2)
    return found


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    options = parser(__doc__).parse_args()
    work = workload(chosen(options))
    torch.set_num_threads(1)
    longest = max(work.retrain_streams(), key=len)
    needed = {cell.base.address: cell.base for cell in longest if cell.base}
    figures: dict[str, Any] = {"benchmark": "phases", "study": work.plan.study.name}
    with scratch() as folder:
        store = work.store(Path(folder) / "store")
        bases = list(needed.values())
        first = [cell for cell in bases if cell.stream == bases[0].stream]
        figures["bases"] = profile(first, work, store)
        for cell in bases:
            train.train_cohort([cell], train.Bench(store, work.plan.facts))
        figures["retrain"] = profile(longest, work, store)
    figures["start_up_cpu_s"] = start_up()
    figures["load_average"] = load()
    for key in ("bases", "retrain"):
        show(key, figures[key])
    print("start-up, CPU seconds: " + ", ".join(f"{name} {s:.1f}" for name, s in figures["start_up_cpu_s"].items()))
    print(json.dumps(figures))
    return figures


def show(name: str, found: dict[str, Any]) -> None:
    """For people."""
    print(
        f"{name}: {found['cells']} cells, {found['cell_steps']} steps in all, {found['cpu_s']:.1f} CPU s "
        f"({found['predicted_s']:.1f} predicted), {found['arithmetic']:.1%} of it arithmetic"
    )
    for phase, figures in found["phases"].items():
        print(f"  {phase:<18} {figures['cpu_s']:8.2f} s {figures['share']:6.1%} {figures['calls']:8,} calls")


if __name__ == "__main__":
    main()
