"""Two launches of one study that write into one results folder at once: real processes, let go at the same moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small import launch, the_plan

from raygrid.export import HISTORY, RESULTS

ROOT = Path(__file__).resolve().parents[2]
EXPORT = """\
import sys
from pathlib import Path
from raygrid.export import export
from raygrid.store import Store
from tests.track.conftest import make_plan, make_record
plan = make_plan()
records = {cell.address: make_record(cell) for cell in plan.cells}
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    export(plan, records, Store("memory:///"), Path(sys.argv[1]))
print(len(plan.cells))
"""
LAUNCH = """\
import contextlib, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import analysis, small

class Written:
    summary, paths = "no figures here", ()

def write(source, out):
    (source / "busy").touch(exist_ok=False)
    time.sleep(2)
    (source / "busy").unlink()
    return Written()

analysis.write = write
small.no_figures = contextlib.nullcontext
print("ready", flush=True)
sys.stdin.readline()
sys.exit(small.launch(Path(sys.argv[1])))
"""


def both(code: str, *arguments: str) -> list[tuple[int, str, str]]:
    """Run a program twice at once, from its line `ready` on: exit code, standard output and error of each."""
    command = [sys.executable, "-c", code, *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


@pytest.mark.fault("two launches that write Parquet at once")
def test_two_exports_into_one_folder(tmp_path: Path) -> None:
    ended = both(EXPORT, str(tmp_path / "out"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["history.parquet", "results.parquet"]
    for name, schema in (("results", RESULTS), ("history", HISTORY)):
        assert pq.read_schema(tmp_path / "out" / f"{name}.parquet").equals(schema)
    assert pq.read_table(tmp_path / "out" / "results.parquet").num_rows == int(ended[0][1])


@pytest.mark.fault("two launches that write their reports at once")
def test_two_launches_write_their_reports_one_after_the_other(tmp_path: Path) -> None:
    """Figures of one were removed while the other put them into its report."""
    assert launch(tmp_path) == 0
    ended = both(LAUNCH, str(tmp_path), str(Path(__file__).parent))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert json.loads((tmp_path / "out" / "small" / "plan.json").read_text())["networks"] == len(the_plan().cells)
