"""The command, end to end, with a real Ray: what a user does, interrupts and does again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.worlds import TINY

ON_RAY = TINY.replace("{backend: in-process}", "{backend: ray}").replace("layers: [1, 4, 7]", "layers: [1, 7]")
TIMING = {"duration_s", "ended", "host", "device", "checkpoint_uri", "commit"}
"""columns that may differ between two runs of one study"""


def launch(folder: Path, *arguments: str, study: str = ON_RAY, **kwargs) -> subprocess.CompletedProcess:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(study)
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, check=False, **kwargs)


def command(folder: Path, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "raygrid.launch",
        str(folder / "study.yaml"),
        "--out",
        str(folder / "out"),
        *arguments,
    ]


def results(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "out" / "tiny" / "results.parquet")
    return table.drop(columns=list(TIMING)).sort_values("cell").reset_index(drop=True)


def checkpoints(folder: Path) -> dict[str, bytes]:
    root = folder / "out" / "store" / "cells"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("checkpoint-*")}


def litter(folder: Path) -> list[str]:
    """Leases, progress and temporary objects that were left."""
    root = folder / "out" / "store"
    return [
        str(p) for p in root.rglob("*") if p.is_file() and (p.name.startswith(("lease", "progress")) or "#" in p.name)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """One launch on Ray, to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(folder)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    (folder / "code.txt").write_text(str(done.returncode))
    return folder


def test_a_launch_ends_in_parquet_figures_tables_and_says_where(undisturbed: Path) -> None:
    output = (undisturbed / "output.txt").read_text()
    assert "Traceback" not in output, output
    report = undisturbed / "out" / "tiny" / "report"
    for name in ("figure2.png", "figure2.svg", "table1.md", "table1.tex", "table1.csv", "summary.md"):
        assert (report / name).exists(), name
    assert (
        "results.parquet" in output and "figure2.png" in output and "mlflow ui --backend-store-uri sqlite:///" in output
    )
    table = results(undisturbed)
    assert len(table) == 2 + 1 + 1 + 5 * 2 and not table.cell.duplicated().any()
    assert (undisturbed / "code.txt").read_text() == str(int((table.status != "ok").any()))
    assert not litter(undisturbed)


def test_ray_and_in_process_give_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    launch(tmp_path, "--set", "execution.backend=in-process")
    pd.testing.assert_frame_equal(results(tmp_path), results(undisturbed))
    assert checkpoints(tmp_path) == checkpoints(undisturbed)


def test_one_trial_a_cell_gives_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    launch(tmp_path, "--set", "execution.cohort=1")
    pd.testing.assert_frame_equal(results(tmp_path), results(undisturbed))
    assert checkpoints(tmp_path) == checkpoints(undisturbed)


def test_a_second_launch_trains_nothing_and_says_so(undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "out" / "store").rglob("*") if path.is_file()}
    done = launch(undisturbed)
    assert "nothing to train" in done.stdout and "Starting Ray" not in done.stdout
    after = {path: path.stat().st_mtime_ns for path in (undisturbed / "out" / "store").rglob("*") if path.is_file()}
    assert after == before


def test_each_cell_is_one_mlflow_run(undisturbed: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{undisturbed / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raygrid/tiny")
    runs = [
        r for r in client.search_runs([experiment.experiment_id], max_results=1000) if "raygrid.cell" in r.data.tags
    ]
    table = results(undisturbed)
    assert sorted(run.data.tags["raygrid.cell"] for run in runs) == sorted(table.cell)


def test_kill_9_of_the_driver_then_launch_again(undisturbed: Path, tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "study.yaml").write_text(ON_RAY)
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    store = tmp_path / "out" / "store" / "cells"
    end = time.monotonic() + 120
    while time.monotonic() < end and len(list(store.rglob("record.json"))) < 3:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = launch(tmp_path)
    assert "Traceback" not in done.stdout + done.stderr
    pd.testing.assert_frame_equal(results(tmp_path), results(undisturbed))
    assert checkpoints(tmp_path) == checkpoints(undisturbed)
    assert not litter(tmp_path)


def test_ctrl_c_stops_cleanly_and_the_next_launch_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(ON_RAY)
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    store = tmp_path / "out" / "store" / "cells"
    end = time.monotonic() + 120
    while time.monotonic() < end and len(list(store.rglob("record.json"))) < 2:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=90)
    assert first.returncode == 130, output
    assert "Traceback" not in output and "the same command goes on" in output
    finished = len(list(store.rglob("record.json")))
    launch(tmp_path, "--set", "execution.backend=in-process")
    pd.testing.assert_frame_equal(results(tmp_path), results(undisturbed))
    assert 0 < finished <= len(results(tmp_path))


def test_dry_run_says_what_exists_and_why_a_cell_must_be_trained(undisturbed: Path, tmp_path: Path, capsys) -> None:
    from raygrid.launch import main

    out = ["--out", str(undisturbed / "out")]
    assert main([str(undisturbed / "study.yaml"), *out, "--dry-run"]) == 0
    assert "0 to train" in capsys.readouterr().out
    assert main([str(undisturbed / "out" / "tiny" / "study.yaml"), *out, "--dry-run"]) == 0
    assert "0 to train" in capsys.readouterr().out, "what lies beside the results is the study"
    arguments = [
        str(undisturbed / "study.yaml"),
        *out,
        "--dry-run",
        "--set",
        "recipe.lr=0.01",
        "--explain",
        "A7B random0/50-a-class s0",
    ]
    assert main(arguments) == 0
    assert main([*arguments[:-1], "A9B random0/50-a-class s0"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_status_from_the_store_alone(undisturbed: Path, capsys) -> None:
    from raygrid.status import main

    main([str(undisturbed / "study.yaml"), "--store", str(undisturbed / "out" / "store")])
    assert "14/14 networks finished" in capsys.readouterr().out


def test_a_default_study_without_its_data_says_so_loudly_and_runs_the_icons(tmp_path, monkeypatch, capsys) -> None:
    from raygrid import launch as command_line
    from raygrid.data import cifar10
    from raygrid.errors import DataError

    problem: type[Exception] = cifar10._Unavailable

    def no_network(*_: object) -> None:
        raise problem("no network here")

    for source in ("by_hand", "by_torchvision", "by_npm"):
        monkeypatch.setattr(cifar10, source, no_network)
    monkeypatch.setenv("RAYGRID_CACHE", str(tmp_path / "cache"))
    seen: list = []
    monkeypatch.setattr(command_line, "_train", lambda the_plan, *rest: seen.append(the_plan.study.name))
    out = ["--out", str(tmp_path / "out")]
    command_line.main(out)
    assert seen == ["icons"] and "***" in capsys.readouterr().out
    assert command_line.main(["demo", *out]) == 2, "a study that was named fails"
    assert "could not be fetched" in capsys.readouterr().err
    assert command_line.main(["--set", "recipe.epochs=1", *out]) == 2, "so does one of which a key was named"
    problem = DataError
    assert command_line.main(out) == 2, "data that came damaged are no missing network"
    assert seen == ["icons"]


def test_raygrid_in_a_notebook(undisturbed: Path) -> None:
    import raygrid

    work = raygrid.load(undisturbed / "study.yaml", out=undisturbed / "out")
    assert work.study.name == "tiny" and len(work.plan.cells) == 14
    assert len(work.results()) == len(work.records()) == 14
    assert set(work.history().cell) == set(work.results().cell)


def test_the_module_that_exports_is_no_command_and_says_which_is() -> None:
    done = subprocess.run([sys.executable, "-m", "raygrid.export", "demo"], capture_output=True, text=True)
    assert done.returncode == 2 and "raygrid.launch" in done.stderr and "Traceback" not in done.stderr


ROOT = Path(__file__).resolve().parent.parent


def test_the_example_runs(tmp_path: Path) -> None:
    """docs/notebook.py, as a reader would run it."""
    command = [sys.executable, str(ROOT / "docs" / "notebook.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "transfer" in done.stdout and "Traceback" not in done.stderr
    assert (tmp_path / "notebook" / "report" / "report.html").exists()
