"""Trials reserve a GPU, a fraction of one, or CPUs where there is none. Ray is told of GPUs; training is on the CPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raygrid import grid
from raygrid.cost import DEVICES
from raygrid.errors import EnvironmentError_
from raygrid.study import Execution
from tests.cluster.lab import ROOT


@pytest.mark.parametrize(
    ("gpus", "gpu", "devices", "reserved"),
    [
        (0, 1, 2, {"CPU": 1.0}),
        (1, 1, 1, {"CPU": 1.0, "GPU": 1.0}),
        (1, 0.25, 4, {"CPU": 1.0, "GPU": 0.25}),
        (4, 2, 2, {"CPU": 1.0, "GPU": 2.0}),
    ],
)
def test_trials_reserve_what_was_asked(
    gpus: int, gpu: float, devices: int, reserved: dict[str, float], tmp_path: Path
) -> None:
    command = [sys.executable, str(Path(__file__).with_name("reservations.py")), str(gpus), str(gpu), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["asked"] == [reserved]
    assert found["devices"] == devices
    assert found["cells"] == 4 and not any(outcome.startswith("failed") for outcome in found["outcomes"]), found


@pytest.mark.parametrize(("gpus", "gpu", "devices"), [(8, 0.7, 8), (8, 0.4, 16), (8, 0.25, 32), (8, 1, 8), (7, 2, 3)])
def test_a_share_of_a_gpu_lies_on_one_gpu(gpus: float, gpu: float, devices: int) -> None:
    cluster = grid.Cluster(nodes=1, cpus=64, gpus=gpus, most_cpus=64, most_gpus=gpus, local=False)
    assert cluster.devices(Execution(gpu=gpu), threads=1) == devices


def test_an_unknown_gpu_is_taken_for_the_least() -> None:
    gpus = [each for kind, each in DEVICES.items() if kind != "cpu"]
    least = DEVICES[grid.LEAST]
    assert least.memory == min(each.memory for each in gpus)
    assert least.fp32_flops_per_s == min(each.fp32_flops_per_s for each in gpus)
    unknown = grid.Cluster(nodes=1, cpus=8, gpus=1, most_cpus=8, most_gpus=1, local=False)
    assert unknown.memory(Execution()) == least.memory
    assert unknown.memory(Execution(gpu=0.5)) == least.memory // 2
    assert dataclasses.replace(unknown, gpu="L4").memory(Execution()) is None
    assert dataclasses.replace(unknown, most_gpus=0).memory(Execution()) is None


def test_a_gpu_that_pytorch_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a cluster the trial says so instead of training on the CPU; a Ray of this machine's own goes on without it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(grid, "NVIDIA_DRIVER", tmp_path / "version")
    assert not grid.usable_gpu()
    assert grid._gpus() is None
    (tmp_path / "version").write_text("NVRM version: ...")
    with pytest.raises(EnvironmentError_, match="cannot use"):
        grid.usable_gpu()
    assert grid._gpus() == 0
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert grid.usable_gpu()
    assert grid._gpus() is None


def test_a_device_that_breaks_in_process_ends_the_launch_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from raygrid.plan import Agenda
    from tests.worlds import make_plan

    def broken(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors ...")

    monkeypatch.setattr(grid, "_train", broken)
    plan = make_plan()
    watcher = type("Deaf", (), {"__getattr__": lambda self, name: lambda *_: None})()
    running = grid.Grid(plan, Agenda(plan, {}), None, watcher)  # type: ignore[arg-type]
    grid.run_in_process(running, plan.study.execution)
    assert "illegal memory access" in str(running.trouble)
    assert "\n" not in str(running.trouble)
