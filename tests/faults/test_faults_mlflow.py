"""MLflow on a disk that is full or may not be written, for real: the study is trained, one note says what MLflow lacks,
and a sync brings all of it. Servers that are away, slow or choked: tests/track/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """\
import json, os, shutil, subprocess, sys
from pathlib import Path
folder, what = Path(sys.argv[1]), sys.argv[2]
sys.path[:0] = sys.argv[3:]
from small import content, launch, the_plan
from raygrid.store import Store
from raygrid.track.__main__ import main
from raygrid.track.server import Server
from tests.track.conftest import content as shown
fresh = f"sqlite:///{folder}/fresh.db"
Server(fresh).call("search_experiments")
small = folder / "small-disk"
small.mkdir()
room = (folder / "fresh.db").stat().st_size // 1024 + 150  # of which SQLite takes 32 for itself
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "none", str(small)], check=True)
shutil.copy(folder / "fresh.db", small / "mlflow.db")
if what == "may not be written":
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
uri = os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{small}/mlflow.db"
codes = [launch(folder, tracked=True)]
print("END OF LAUNCH", flush=True)
store = folder / "out" / "store"
kept = len(content(Store(str(store)), the_plan()))
sync = ["sync", str(folder / "study.yaml"), "--store", str(store), "--uri"]
codes.append(main([*sync, uri]))
subprocess.run(["mount", "-o", "remount,rw,size=100m", str(small)], check=True)
later = [sys.executable, "-m", "raygrid.track", *sync]  # new processes, as a user's would be
codes += [subprocess.run([*later, each]).returncode for each in (uri, fresh)]
plan = the_plan()
same = shown(uri, plan) == shown(fresh, plan)
(folder / "answer.json").write_text(json.dumps([codes, kept, same, len(shown(uri, plan))]))
"""


@pytest.mark.fault("a disk of MLflow's that {what}")
@pytest.mark.parametrize(
    ("what", "said"),
    [("is full", "database or disk is full"), ("may not be written", "readonly database|unable to open database")],
)
def test_mlflow_on_a_bad_disk(what: str, said: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces, to make a small disk")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", PROGRAM, str(tmp_path), what, str(Path(__file__).parent), str(ROOT)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert (tmp_path / "answer.json").exists(), told
    codes, kept, same, runs = json.loads((tmp_path / "answer.json").read_text())
    assert "Traceback" not in told, told
    launched = done.stdout.split("END OF LAUNCH")[0]
    notes = [line for line in launched.splitlines() if "MLflow misses" in line]
    assert len(notes) == 1 and re.search(said, notes[0]) and "python -m raygrid.track sync" in notes[0], launched
    assert len(re.findall(said, launched)) == 1, launched
    assert kept == 9 and codes == [0, 1, 0, 0], (codes, told)
    assert re.search(f"raygrid: MLflow .*({said})", done.stderr), done.stderr
    assert "9 of 9 cells are finished" in done.stdout and same and runs > 9
