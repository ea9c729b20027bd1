"""Trials reserve a GPU, a fraction of one, or CPUs where there is none. Ray is told of GPUs; training is on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
