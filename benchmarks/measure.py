"""Clocks that hold on a busy machine, and facts about where figures were taken."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "ray", "mlflow", "pandas", "pyarrow", "pydantic", "obstore", "raygrid")


@dataclass(frozen=True)
class Spent:
    """What a piece of work took."""

    cpu: float
    """seconds, of all its processes and threads"""
    wall: float
    """seconds"""


def timed(work: Callable[[], Any]) -> tuple[Any, Spent]:
    """Run work in this process; its result and what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, Spent(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(variants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Spent]]:
    """Let variants take turns, so that whatever else the machine does meets all of them alike. A variant that works in
    another process returns itself what it took there."""
    found: dict[str, list[Spent]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            result, spent = timed(work)
            found[name].append(result if isinstance(result, Spent) else spent)
    return found


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def ratios(over: Sequence[Spent], under: Sequence[Spent]) -> dict[str, float]:
    """Spread of the ratio of CPU seconds, turn by turn."""
    return spread([a.cpu / b.cpu for a, b in zip(over, under, strict=True)])


def text(figures: Mapping[str, float]) -> str:
    """`1.57 (1.52 to 1.61)`"""
    return f"{figures['median']:.2f} ({figures['low']:.2f} to {figures['high']:.2f})"


def agreement(found: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Accuracies of one way of training beside raygrid's of the same cells. `same`: the mean difference is within one
    point or two standard errors; a peer that learns less, or more, is no peer."""
    differences = [a - b for a, b in zip(found, ours, strict=True)]
    count, mean = len(differences), sum(differences) / len(differences)
    error = (sum((d - mean) ** 2 for d in differences) / max(1, count - 1) / count) ** 0.5
    return {
        "cells": count,
        "mean": round(sum(found) / count, 4),
        "minus_raygrid": round(mean, 4),
        "standard_error": round(error, 4),
        "same": abs(mean) <= max(0.01, 2 * error),
    }


def agreement_text(found: Mapping[str, Any]) -> str:
    """`0.634 (+0.009 +- 0.004 from raygrid, 7 cells)`"""
    text = f"{found['mean']:.3f} ({found['minus_raygrid']:+.4f} +- {found['standard_error']:.4f} from raygrid, "
    return f"{text}{found['cells']} cells){'' if found['same'] else ': NOT THE SAME'}"


def run(command: Sequence[str], *, quiet: bool = True) -> tuple[str, Spent]:
    """Run a Python command line (without `python`); its stdout, and what all its processes took.

    Ray's workers are nobody's waited-for children, so their CPU seconds are read while they live, every 0.2 s.
    Raises RuntimeError with the end of the output if it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if quiet else None,
        env=environment,
        text=True,
        cwd=ROOT,
    )
    seen: dict[tuple[int, float], float] = {}
    lines: list[str] = []
    import threading

    assert process.stdout is not None
    stdout = process.stdout
    reader = threading.Thread(target=lambda: lines.extend(stdout))
    reader.start()
    root = psutil.Process(process.pid)
    while process.poll() is None:
        _note(root, seen)
        time.sleep(0.2)
    wall = time.perf_counter() - begun
    reader.join(30)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{''.join(lines)[-3000:]}")
    return "".join(lines), Spent(sum(seen.values()), wall)


def _note(root: psutil.Process, seen: dict[tuple[int, float], float]) -> None:
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            times = process.cpu_times()
            seen[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:
            continue


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["instruction_set"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name(0)
            found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    return " ".join(names[0].partition(":")[2].split()) if names else platform.processor()


def versions() -> dict[str, str]:
    """Of Python and of what matters for speed, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load() -> float:
    """Processes that wanted a core in the last minute, on average."""
    return round(os.getloadavg()[0], 1)
