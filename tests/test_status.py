"""`python -m raygrid.status`: what it says of a study that is half done, from the store alone, without touching it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raygrid import train
from raygrid.cell import Cell
from raygrid.record import failure_path, find_records, lease_path, progress_path, record_path
from raygrid.status import main
from raygrid.store import Leases, Store
from raygrid.train import Bench, Interrupted, train_cohort
from tests.faults.small import SMALL, launch, the_plan

PLAN = the_plan()


def find(name: str) -> Cell:
    return next(cell for cell in PLAN.cells if cell.name == name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of nine networks."""
    folder = tmp_path_factory.mktemp("finished")
    assert launch(folder) == 0
    return folder


@pytest.fixture
def half(finished: Path, tmp_path: Path) -> Path:
    """Two networks in training by one worker, one of them saved at step 60; one held by a silent worker; one failed;
    one untouched."""
    folder = tmp_path / "half"
    shutil.copytree(finished, folder)
    store = Store(str(folder / "out" / "store"))
    for name in ("A3B", "A6B", "A3B+", "A6B+", "B6B"):
        store.delete(record_path(find(name)))
    left = iter(range(59))
    with pytest.raises(Interrupted):
        train_cohort([find("A3B")], Bench(store, PLAN.facts, stop=lambda: next(left, None) is None))
    assert store.exists(progress_path(find("A3B")))
    lease = {"host": "far", "pid": 7, "started": 0.0, "beat": 3}
    for name in ("A3B", "A6B", "B6B"):
        store.put(lease_path(find(name)), json.dumps(lease).encode())
    import os

    os.utime(folder / "out" / "store" / lease_path(find("B6B")), (1e9, 1e9))
    store.put(failure_path(find("A3B+")), json.dumps({"why": "made to fail"}).encode())
    return folder


def status(folder: Path, *arguments: str) -> int:
    return main([str(folder / "study.yaml"), "--store", str(folder / "out" / "store"), *arguments])


def test_a_finished_study(finished: Path, capsys: Any) -> None:
    assert status(finished) == 0
    assert "9/9 networks finished\n" in capsys.readouterr().out


def test_who_trains_what_failed_and_how_long_it_may_take(
    half: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    for name in ("get", "get_head", "_listed", "put", "create", "delete"):
        real = getattr(Store, name)

        def counted(*arguments: Any, real: Any = real, name: str = name, **named: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(Store, name, counted)
    before = {p: p.stat().st_mtime_ns for p in half.rglob("*")}
    assert status(half) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "4/9 networks finished, 2 in training on 1 worker, 1 failed, 2 to train, about " in said and " left " in said
    assert "now: A3B random0/50-a-class s0: step 60 of 125, top-1 0." in said
    assert "now: A6B random0/50-a-class s0: no progress saved yet" in said
    assert "~0." in said and "~0.000" not in said, "the matrix has the accuracy that was saved, and none where none was"
    assert "1 of those to train held by workers that fell silent" in said
    assert "! A3B+ random0/50-a-class s0: failed: made to fail" in said
    assert calls == {"_listed": 1, "get": 4 + 2 + 1, "get_head": 1}, calls
    assert {p: p.stat().st_mtime_ns for p in half.rglob("*")} == before


def test_the_time_left_is_that_of_the_steps_left(half: Path) -> None:
    from raygrid.status import _Progress, _seconds_left

    records = find_records(Store(str(half / "out" / "store")), PLAN.cells)
    transfer, plus = find("A3B"), find("A3B+")
    alike = [r.provenance.duration_s / r.result.steps for r in records.values() if r.cell.phase == "retrain"]
    rate = sum(alike) / len(alike)
    assert _seconds_left(PLAN, [transfer], records.values(), {}) == pytest.approx(rate * 125)
    known = {transfer.address: _Progress(28, 2.8, 0.5)}
    assert _seconds_left(PLAN, [transfer], records.values(), known) == pytest.approx(0.1 * 97)
    assert _seconds_left(PLAN, [plus], (), {}) == 0


def test_who_only_asks_makes_no_store(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(SMALL)
    for arguments in ([], ["--store", "there"], ["--store", f"file://{tmp_path}/there"]):
        assert main([str(tmp_path / "study.yaml"), *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("raygrid: there is no store at ") and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(5, "Input/output error"), 3, "Input/output error")],
)
def test_whatever_ends_it_early_is_one_line(
    error: BaseException, code: int, said: str, finished: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*rest: Any) -> Any:
        raise error

    monkeypatch.setattr(Store, "written", fail)
    assert status(finished) == code
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("raygrid: ") and said in shown and "\n" not in shown


def test_a_failed_network_is_told_from_the_store_until_it_is_tried_again(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train._Loop._member

    def failing(self: Any, cell: Cell) -> Any:
        if cell.name == "scratchB":
            raise ZeroDivisionError("made to fail")
        return real(self, cell)

    monkeypatch.setattr(train._Loop, "_member", failing)
    assert launch(tmp_path) == 1
    capsys.readouterr()
    assert status(tmp_path) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "8/9 networks finished, 1 failed" in said
        and "scratchB random0/50-a-class s0: failed: ZeroDivisionError" in said
    )
    monkeypatch.undo()
    assert launch(tmp_path) == 0
    assert not [path for path in Store(str(tmp_path / "out" / "store")).list() if "failure" in path]
    assert status(tmp_path) == 0


def test_a_lease_that_is_beaten_counts_as_training(half: Path, capsys: Any) -> None:
    leases = Leases(Store(str(half / "out" / "store")))
    assert leases.take(lease_path(find("A6B+")))
    assert status(half) == 1
    assert "3 in training on 2 workers" in " ".join(capsys.readouterr().out.split())
    leases.close()
