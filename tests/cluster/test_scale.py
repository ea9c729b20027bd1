"""10,000 networks: what the driver does for each of them stays small, and the store is never listed for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import ROOT


def run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


def test_the_driver_of_10000_cells() -> None:
    found = run("agenda", "10000")
    assert found["cells"] >= 10_000 and found["heard"]["recorded"] == found["cells"]
    assert found["ms_per_cell"] < 20
    assert found["driver_mb"] < 500
    assert not found["store_calls_while_training"], "workers write records; the driver asks the store nothing"
    assert found["records"] == found["cells"]
    calls = dict(found["store_calls_to_read_back"])
    assert calls.pop("get") == found["cells"]
    assert sum(calls.values()) < found["cells"] / 40, f"more than the pages of one listing: {calls}"


@pytest.mark.parametrize("cohort", [1, 0])
def test_trials_through_ray(cohort: int) -> None:
    """A few here; RAYGRID_LONG=1 for all 10,000 on 128 GPUs."""
    few = ("60", "4") if cohort else ("1200", "4")
    found = run("ray", *(("10000", "128") if os.environ.get("RAYGRID_LONG") == "1" else few), str(cohort))
    assert found["ok"] == found["cells"]
    assert not found["store_calls"]
    assert found["driver_mb"] < 1500
    assert found["ms_per_cell"] < (2000 if cohort else 200)


pytestmark = pytest.mark.timeout(3600 if os.environ.get("RAYGRID_LONG") == "1" else 900)
