"""The writer on an embedded SQLite file: each cell one run, each step once, whatever happens."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raygrid.plan import Plan
from raygrid.record import write_record
from raygrid.store import Store
from raygrid.track import Tracker, TrackError, sync
from raygrid.track.server import Server
from tests.track.conftest import (
    assert_whole,
    content,
    evaluations,
    log_evaluation,
    make_plan,
    make_record,
    points,
    train,
    trials,
    wait,
    written,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(layers="[2]")


def test_a_grid_is_projected(plan: Plan, store: Store, embedded: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "data").mkdir(parents=True)
    (report / "figure2.png").write_bytes(b"png")
    (report / "data" / "table1.csv").write_text("a,b\n")
    (report / "huge.bin").write_bytes(b"0")
    tracker = Tracker(plan, store, embedded, report)
    tracker.start()
    for cell in plan.cells:
        train(tracker, store, cell)
    missed = tracker.close(60)
    assert not missed and str(missed) == "MLflow shows every finished cell"
    assert tracker.trouble is None and tracker.link is None
    assert tracker.command.startswith("mlflow ui ") and tracker.command.endswith(embedded)
    assert_whole(embedded, plan, store)
    base = next(c for c in plan.cells if c.treatment == "base")
    assert [n for k, n in points(embedded, trials(embedded, plan)[base.address]) if k == "fig2/top1"] == list(range(8))

    found = content(embedded, plan)
    curve = found["random: transfer+"]
    assert sorted(n for key, n in curve["points"] if key == "fig2/top1_mean") == [2]
    assert curve["tags"]["mlflow.runColor"] == "#f2909b"
    transfer = next(c for c in plan.cells if c.treatment == "transfer")
    run = found[transfer.address]
    assert run["params"] | {"n": "2", "source": transfer.source.half, "fine_tune": "false"} == run["params"]
    assert [context for _, _, context in run["data"]] == ["base", "train"] or len(run["data"]) == 2
    assert "host" not in run["params"] and run["tags"]["raygrid.host"] == "toy"
    files = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file() and "mlflow.db" not in p.name)
    assert files == ["figure2.png", "study.json", "table1.csv"]
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_launch_changes_nothing(plan: Plan, store: Store, database: str) -> None:
    for cell in plan.cells:
        write_record(store, make_record(cell))
    assert sync(plan, store, database) == {
        "cells": len(plan.cells), "created": len(plan.cells), "completed": len(plan.cells), "present": 0
    }  # fmt: skip
    before = content(database, plan)
    tracker = Tracker(plan, store, database)
    tracker.start()
    assert not tracker.close(60)
    assert content(database, plan) == before
    assert sync(plan, store, database) == {
        "cells": len(plan.cells), "created": 0, "completed": 0, "present": len(plan.cells)
    }  # fmt: skip
    assert content(database, plan) == before


def test_sync_equals_live_even_with_failures(plan: Plan, store: Store, tables: Callable[[str], str]) -> None:
    statuses = {
        cell.address: {1: "diverged", 2: "blocked"}.get(index % 7, "ok")
        for index, cell in enumerate(plan.cells)
        if cell.treatment not in ("base", "scratch")
    }
    live, rebuilt = tables("live"), tables("rebuilt")
    tracker = Tracker(plan, store, live)
    tracker.start()
    for cell in reversed(plan.cells):  # bases last: what is measured against them must wait for them
        train(tracker, store, cell, status=statuses.get(cell.address, "ok"))
    assert not tracker.close(60)
    sync(plan, store, rebuilt)
    assert content(rebuilt, plan) == content(live, plan)
    found = trials(live, plan)
    blocked = next(address for address, status in statuses.items() if status == "blocked")
    assert found[blocked].info.status == "FAILED" and found[blocked].data.tags["raygrid.reason"] == "made up"


@pytest.mark.fault("a launch killed while MLflow is written")
def test_killed_launches_go_on_in_the_same_runs(plan: Plan, store: Store, database: str) -> None:
    first, second, third, *rest = plan.cells
    killed = Tracker(plan, store, database)
    killed.start()
    train(killed, store, first, until=20)
    train(killed, store, second, until=40)
    train(killed, store, third, until=10)
    wait(lambda: written(killed))
    write_record(store, make_record(second))  # the record was written, MLflow never heard of it
    killed._closing = 0.0  # as good as dead: the thread ends without a word

    with_ids = {address: run.info.run_id for address, run in trials(database, plan).items()}
    assert {run.info.status for run in trials(database, plan).values()} == {"RUNNING"}
    tracker = Tracker(plan, store, database)
    tracker.start()
    wait(lambda: trials(database, plan)[second.address].info.status == "FINISHED")
    for evaluation in evaluations(first)[1:]:  # resumed from progress at step 10
        log_evaluation(tracker, first, evaluation)
    tracker.finish(first, make_record(first))
    train(tracker, store, third)
    for cell in rest:
        train(tracker, store, cell)
    assert not tracker.close(60)
    assert_whole(database, plan, store)
    after = trials(database, plan)
    assert {address: after[address].info.run_id for address in with_ids} == with_ids
    assert after[first.address].data.tags["raygrid.attempts"] == "2"
    assert after[rest[0].address].data.tags["raygrid.attempts"] == "1"


def test_an_interrupted_grid_leaves_no_run_running(plan: Plan, store: Store, database: str) -> None:
    tracker = Tracker(plan, store, database)
    tracker.start()
    train(tracker, store, plan.cells[0])
    train(tracker, store, plan.cells[1], until=20)
    assert not tracker.close(60)
    found = trials(database, plan)
    assert [found[c.address].info.status for c in plan.cells[:2]] == ["FINISHED", "KILLED"]


@pytest.mark.fault("two MLflow runs of one network")
def test_two_runs_of_a_cell_become_one(plan: Plan, store: Store, database: str) -> None:
    tracker = Tracker(plan, store, database)
    tracker.start()
    train(tracker, store, plan.cells[0], until=20)
    wait(lambda: written(tracker))
    server = Server(database)
    tags = trials(database, plan)[plan.cells[0].address].data.tags
    ours = {key: value for key, value in tags.items() if key.startswith("raygrid.")}
    server.create(tracker._experiment or "", "racer", ours, 1)  # older: it stays
    train(tracker, store, plan.cells[0])
    for cell in plan.cells[1:]:
        train(tracker, store, cell)
    assert not tracker.close(60)
    assert_whole(database, plan, store)
    assert trials(database, plan)[plan.cells[0].address].info.run_name == "racer"


@pytest.mark.fault("two launches that write MLflow at once")
def test_two_launches_at_once(plan: Plan, store: Store, database: str) -> None:
    """Each trains half of the cells; both settle at the same time."""
    both = [Tracker(plan, store, database) for _ in range(2)]
    for tracker in both:
        tracker.start()
    for index, cell in enumerate(plan.cells):
        train(both[index % 2], store, cell)
    for tracker in both:
        tracker._closing = 1e12
    for tracker in both:
        assert tracker._thread is not None
        tracker._thread.join(60)
        assert not tracker.close(1)
    assert_whole(database, plan, store)
    content(database, plan)


@pytest.mark.fault("an MLflow run that a user deletes")
def test_runs_deleted_by_a_user_come_back(plan: Plan, store: Store, database: str) -> None:
    tracker = Tracker(plan, store, database)
    tracker.start()
    train(tracker, store, plan.cells[0], until=20)
    wait(lambda: written(tracker))
    Server(database).delete(trials(database, plan)[plan.cells[0].address].info.run_id)
    for cell in plan.cells:
        train(tracker, store, cell)
    assert not tracker.close(60)
    assert_whole(database, plan, store)


def test_a_grown_plan_draws_its_figure_anew(store: Store, database: str) -> None:
    small, large = make_plan(layers="[1]"), make_plan(layers="[1]", splits=2)
    for cell in small.cells:
        write_record(store, make_record(cell))
    sync(small, store, database)
    for cell in large.cells:
        write_record(store, make_record(cell))
    sync(large, store, database)
    curve = content(database, large)["random: transfer"]["points"]
    assert curve["fig2/splits", 1] == 2


# --- what users and file systems do -----------------------------------------------------------------------


@pytest.mark.fault("an MLflow experiment that a user deletes")
def test_a_deleted_experiment_is_named(plan: Plan, store: Store, database: str) -> None:
    write_record(store, make_record(plan.cells[0]))
    sync(plan, store, database)
    tracker = Tracker(plan, store, database)
    tracker.start()
    wait(lambda: tracker._experiment, 30)
    experiment = tracker._experiment
    Server(database).call("delete_experiment", experiment)
    train(tracker, store, plan.cells[1])
    trouble = wait(lambda: tracker.trouble)
    assert "raygrid/toys was deleted" in trouble and f"--experiment-id {experiment}" in trouble and "\n" not in trouble
    missed = tracker.close(20)
    assert missed and missed.cells == 1 and "raygrid.track sync" in str(missed)
    with pytest.raises(TrackError, match="was deleted there"):
        sync(plan, store, database)
    Server(database).call("restore_experiment", experiment)
    assert sync(plan, store, database)["cells"] == 2


def test_another_experiment_of_that_name_is_left_alone(plan: Plan, store: Store, database: str) -> None:
    Server(database).call("create_experiment", "raygrid/toys")
    with pytest.raises(TrackError, match="was not made by raygrid"):
        sync(plan, store, database)


@pytest.mark.fault("an MLflow file that cannot be written")
def test_places_that_cannot_be_written(plan: Plan, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "garbage.db").write_bytes(b"this is no database" * 500)
    uris = [f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}/garbage.db", str(tmp_path / "mlruns")]
    for uri in uris:
        tracker = Tracker(plan, store, uri)
        tracker.start()
        train(tracker, store, plan.cells[0])
        trouble = wait(lambda tracker=tracker: tracker.trouble)
        assert trouble.startswith("MLflow ") and "\n" not in trouble and len(trouble) < 350, trouble
        assert tracker.close(15).cells == 1, uri


def test_where_mlflow_was_never_reached_every_finished_cell_counts(plan: Plan, store: Store, tmp_path: Path) -> None:
    """Not only those of this launch: two were finished before it."""
    (tmp_path / "garbage.db").write_bytes(b"this is no database" * 500)
    uri = f"sqlite:///{tmp_path}/garbage.db"
    for cell in plan.cells[:2]:
        write_record(store, make_record(cell))
    assert not Tracker(plan, store, uri).close(1), "it was not even asked"
    tracker = Tracker(plan, store, uri)
    tracker.start()
    train(tracker, store, plan.cells[2])
    wait(lambda: tracker.trouble)
    assert str(tracker.close(15)).startswith("MLflow misses 3 finished cells (MLflow sqlite")


CONNECT = """\
import sys
import mlflow.store.tracking.sqlalchemy_store, mlflow.tracking
from raygrid.track.server import Server
print("ready", flush=True)
sys.stdin.readline()
Server(sys.argv[1]).experiment("raygrid/toys", {"raygrid.study": "toys"})
"""


def connecting(uri: str) -> subprocess.Popen[str]:
    """A process that is about to connect."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", CONNECT, uri], text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.fault("two launches that make MLflow's file at once")
def test_two_processes_make_one_file(embedded: str) -> None:
    both = [connecting(embedded) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    Server(embedded).call("search_experiments")


@pytest.mark.fault("a launch killed while it makes MLflow's file")
def test_a_file_whose_maker_was_killed_is_made_again(embedded: str, tmp_path: Path) -> None:
    process = connecting(embedded)
    process.stdin.write("go\n")
    process.stdin.flush()
    wait(lambda: sum(file.stat().st_size for file in (tmp_path / "out").glob("mlflow.db*")) > 400_000)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it was too fast to be killed"
    Server(embedded).call("search_experiments")
    assert not list((tmp_path / "out").glob("*.part*"))


def test_what_training_hands_over_never_raises(plan: Plan, store: Store, database: str) -> None:
    tracker = Tracker(plan, store, database)
    tracker.log(plan.cells[0], 1, {"train/loss": float("nan"), "test/top1": float("inf")})
    tracker.log(plan.cells[0], 1, {"train/loss": "wrong"})  # type: ignore[dict-item]
    assert "TypeError" in str(tracker.trouble)
    assert not tracker._held
