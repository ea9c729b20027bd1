"""Training that fails: a base, an image, a worker that hangs; and files that are not what they claim to be."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from small import SMALL, content, launch, litter, the_plan

from raygrid import checkpoint, train
from raygrid.cell import Cell, canonical, digest
from raygrid.data.arrays import Images
from raygrid.errors import IntegrityError
from raygrid.record import Record, find_record, find_records, progress_path, read_record, record_path
from raygrid.store import Leases, Store, sha256_of
from raygrid.train import Bench, Interrupted, train_cohort
from raygrid.transplant import check

PLAN = the_plan()


def find(name: str) -> Cell:
    return next(cell for cell in PLAN.cells if cell.name == name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which nothing went wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert launch(folder) == 0
    return Store(str(folder / "out" / "store"))


@pytest.fixture
def store(undisturbed: Store, tmp_path: Path) -> Store:
    """A copy with data and bases alone."""
    copy = Store(str(tmp_path / "out" / "store"))
    bases = tuple(f"cells/{cell.address}/" for cell in PLAN.cells if cell.treatment == "base")
    for path in undisturbed.list():
        if path.startswith(("data/", *bases)):
            copy.put(path, undisturbed.get(path))
    return copy


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("a base that cannot be trained")
def test_a_failed_base_blocks_its_dependants_and_nothing_else(
    undisturbed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """No hang, exit code 1; nothing is written of what may yet be trained, and the next launch trains it."""
    real = train._Loop._member

    def failing(self: Any, cell: Cell) -> Any:
        if cell.name == "baseA":
            raise ZeroDivisionError("made to fail")
        return real(self, cell)

    monkeypatch.setattr(train._Loop, "_member", failing)
    assert launch(tmp_path) == 1
    said, complained = capsys.readouterr()
    assert "baseA random0/50-a-class s0: failed: ZeroDivisionError: made to fail" in said
    assert "Traceback" not in said + complained
    log = next(tmp_path.rglob("failures.log"))
    assert f"more in {log}" in said and "made to fail" in log.read_text() and "Traceback" in log.read_text()
    store = Store(str(tmp_path / "out" / "store"))
    assert {r.cell.name for r in find_records(store, PLAN.cells).values()} == {"baseB", "scratchB", "B3B", "B6B"}
    assert "A3B random0/50-a-class s0: failed: its base baseA random0/50-a-class s0 has no usable weights" in said
    monkeypatch.undo()
    assert launch(tmp_path) == 0
    assert content(store, PLAN) == content(undisturbed, PLAN)
    assert not litter(tmp_path / "out" / "store")


@pytest.mark.fault("a base that diverges")
def test_a_diverged_base_blocks_its_dependants_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train.verdict
    monkeypatch.setattr(
        train, "verdict", lambda member: ("diverged", "made to") if member.cell.name == "baseA" else real(member)
    )
    real_finish = train._Loop._finish

    def without_weights(self: Any, member: Any, cohort: int) -> None:
        if member.cell.name == "baseA":
            member.stopped = "made to"
        real_finish(self, member, cohort)

    monkeypatch.setattr(train._Loop, "_finish", without_weights)
    assert launch(tmp_path) == 1
    records = find_records(Store(str(tmp_path / "out" / "store")), PLAN.cells).values()
    statuses = {record.cell.name: record.result.status for record in records}
    assert len(statuses) == len(PLAN.cells)
    assert {name for name, status in statuses.items() if status == "blocked"} == {"A3B", "A6B", "A3B+", "A6B+"}
    assert statuses["baseA"] == "diverged" and statuses["scratchB"] == "ok"


@pytest.mark.fault("an image that cannot be read in training")
def test_an_image_that_cannot_be_read_fails_the_cells_that_need_it(
    undisturbed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The launch goes on, says which batch, exit code 1; mended, it goes on from there."""
    real = Images.gather
    bad = next(cell for cell in PLAN.cells if cell.name == "baseA").target

    def broken(self: Images, rows: Any) -> Any:
        if not set(bad_rows).isdisjoint(rows):
            raise OSError("cannot read image 7")
        return real(self, rows)

    bad_rows: list[int] = []
    arrays = train.open_arrays

    def opening(*arguments: Any) -> Any:
        found = arrays(*arguments)
        bad_rows[:] = [int(found.train.rows(bad.classes, 50)[7])]
        return found

    monkeypatch.setattr(train, "open_arrays", opening)
    monkeypatch.setattr(Images, "gather", broken)
    monkeypatch.setattr(train, "statistics", kept_statistics(undisturbed))
    assert launch(tmp_path) == 1
    said = capsys.readouterr().out
    assert "the batch of step" in said and "cannot read image 7" in said and "Traceback" not in said
    records = find_records(Store(str(tmp_path / "out" / "store")), PLAN.cells).values()
    assert {record.cell.name for record in records} == {"baseB", "scratchB", "B3B", "B6B"}
    monkeypatch.undo()
    assert launch(tmp_path) == 0
    assert content(Store(str(tmp_path / "out" / "store")), PLAN) == content(undisturbed, PLAN)


def kept_statistics(store: Store) -> Callable[..., Any]:
    """Means of a task are taken over all its images: here they come from the undisturbed networks."""
    import numpy as np

    def found(images: Any, rows: Any, kind: str, **rest: Any) -> dict[str, Any]:
        for cell in PLAN.cells:
            if cell.treatment == "base" and (images.rows(cell.target.classes, 50) == rows).all():
                result = find_record(store, cell).result  # type: ignore[union-attr]
                tensors = checkpoint.decode(store.get(str(result.checkpoint)), "")[0]
                return {"mean": np.asarray(tensors["input.mean"]), "std": np.asarray(tensors["input.std"])}
        raise AssertionError

    return found


# --- a worker that hangs ---------------------------------------------------------------------------------------------


class Told:
    """A watcher."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.begun = threading.Event()

    def logged(self, *rest: Any) -> None: ...
    def recorded(self, *rest: Any) -> None: ...
    def failed(self, cell: Cell, why: str) -> None:
        self.failures.append(why)

    def started(self, *rest: Any) -> None:
        self.begun.set()

    def ended(self, *rest: Any) -> None:
        return

    def traced(self, *rest: Any) -> None:
        return

    def note(self, text: str) -> None:
        self.notes.append(text)


def hang(store: Store, retries: int, ray_here: Any, monkeypatch: pytest.MonkeyPatch, times: int) -> Told:
    """Run the second phase on Ray; the worker that trains is stopped (SIGSTOP) so many times."""
    from raygrid import grid
    from raygrid.agenda import Agenda

    monkeypatch.setattr(grid, "HUNG_S", 100.0)
    monkeypatch.setattr(grid, "FETCH_S", 100.0)
    monkeypatch.setattr(grid, "HUNG_TIMES", 1.0)
    plan = the_plan(SMALL, "execution.backend=ray", f"execution.retries={retries}", "recipe.epochs=8")
    done = {address: record.result.status for address, record in find_records(store, plan.cells).items()}
    told = Told()
    running = grid.Grid(plan, Agenda(plan, done, workers=1), store, told)
    leases = Path(store.url.removeprefix("file://"))
    stopped: set[int] = set()

    def stop_workers() -> None:
        end = time.monotonic() + 120
        while len(stopped) < times and time.monotonic() < end:
            time.sleep(0.01)
            for lease in leases.rglob("lease.json"):
                try:
                    pid = json.loads(lease.read_text())["pid"]
                    if pid not in stopped and pid != os.getpid():
                        hung = psutil.Process(pid)
                        hung.suspend()
                        stopped.add(pid)
                        grid.HUNG_S = grid.FETCH_S = 1.0
                        hung.wait(60)
                        grid.HUNG_S = grid.FETCH_S = 100.0
                        break
                except (OSError, ValueError, psutil.Error):
                    continue

    thread = threading.Thread(target=stop_workers)
    thread.start()
    try:
        grid.run_on_ray(running, plan.study.execution, ray_here)
    finally:
        thread.join()
        assert len(stopped) == times
        for pid in stopped:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
    return told


@pytest.mark.fault("a worker that hangs")
def test_a_worker_that_hangs_is_ended_and_its_cohort_is_tried_again(
    store: Store, undisturbed: Store, ray_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = hang(store, 3, ray_here, monkeypatch, 1)
    assert any("its worker is ended" in note for note in told.notes) and any(
        "trying again" in note for note in told.notes
    )
    assert not told.failures
    assert content(store, PLAN) == content(undisturbed, PLAN)


@pytest.mark.fault("a worker that hangs again and again")
def test_a_worker_that_always_hangs_is_given_up_with_the_reason(
    store: Store, ray_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = hang(store, 0, ray_here, monkeypatch, 1)
    assert told.failures and all("its trial was lost" in why for why in told.failures)
    assert not any("no reason" in why or "without a word" in why for why in told.failures), told.failures


# --- wrong files -----------------------------------------------------------------------------------------------------


def base_of(store: Store, name: str = "baseA") -> tuple[Cell, Record, dict[str, torch.Tensor]]:
    cell = find(name)
    record = find_record(store, cell)
    assert record is not None
    return cell, record, checkpoint.decode(store.get(str(record.result.checkpoint)), "")[0]


FORGED = "cells/{}/checkpoint-forged.safetensors"


def forge(store: Store, cell: Cell, record: Record, data: bytes, sha256: str | None = None) -> None:
    """Put other bytes in the place of a base's checkpoint, with a record that names them, rightly sealed."""
    sha256 = sha256 or sha256_of(data)
    where = FORGED.format(cell.address)
    store.put(where, data)
    result = record.result.model_copy(update={"checkpoint": where, "checkpoint_sha256": sha256})
    whole = record.model_copy(update={"result": result}).model_dump(mode="json")
    store.put(record_path(cell), canonical({**whole, "sha256": digest(whole)}).encode())


class Bomb:
    """What a hostile pickle does when it is read."""

    path = ""

    def __reduce__(self) -> Any:
        return os.mkdir, (Bomb.path,)


def spoil(kind: str, cell: Cell, tensors: dict[str, torch.Tensor], tmp_path: Path) -> bytes:
    """The bytes of a checkpoint that is wrong in one way."""
    facts = {"cell": cell.hash, "step": 128}
    changed = dict(tensors)
    name = "stages.3.layer.weight"
    if kind == "another network":
        changed = {n: torch.cat([t, t]) for n, t in tensors.items()}
    elif kind == "another study":
        facts["cell"] = find("baseB").hash
    elif kind == "missing tensor":
        del changed[name]
    elif kind == "extra tensor":
        changed["stages.9.layer.weight"] = torch.zeros(3)
    elif kind == "wrong dtype":
        changed[name] = changed[name].double()
    elif kind == "wrong shape":
        changed[name] = changed[name][:-1]
    elif kind == "not finite":
        changed[name] = torch.full_like(changed[name], float("nan"))
    elif kind == "pickle":
        Bomb.path = str(tmp_path / "went-off")
        return pickle.dumps(Bomb())
    elif kind == "torch pickle":
        Bomb.path = str(tmp_path / "went-off")
        torch.save({"x": Bomb()}, tmp_path / "bomb")
        return (tmp_path / "bomb").read_bytes()
    elif kind == "truncated":
        return checkpoint.encode(changed, facts)[0][:-100]
    elif kind == "empty":
        return b""
    elif kind == "header that lies":
        data = checkpoint.encode(changed, facts)[0]
        return (2**62).to_bytes(8, "little") + data[8:]
    return checkpoint.encode(changed, facts)[0]


@pytest.mark.fault("a base's checkpoint that is not what it says, or a pickle")
@pytest.mark.parametrize(
    "kind",
    ["another network", "another study", "missing tensor", "extra tensor", "wrong dtype", "wrong shape", "not finite",
     "pickle", "torch pickle", "truncated", "empty", "header that lies", "bad sha256", "gone"],
)  # fmt: skip
def test_a_wrong_checkpoint_fails_its_dependants_and_nothing_else(
    kind: str, store: Store, undisturbed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYGRID_CACHE", str(tmp_path / "cache"))
    cell, record, tensors = base_of(store)
    forge(store, cell, record, spoil(kind, cell, tensors, tmp_path), sha256_of(b"x") if kind == "bad sha256" else None)
    if kind == "gone":
        store.delete(FORGED.format(cell.address))
    cells = [find("A3B"), find("B3B")]
    monkeypatch.setattr(train, "_tidy", lambda cell, store: None)
    outcomes = train_cohort(cells, Bench(store, PLAN.facts))
    assert outcomes[cells[1].address] == "ok"
    why = outcomes[cells[0].address]
    assert why.startswith("failed: ") and cell.address in why and len(why) < 600, why
    assert find_record(store, cells[0]) is None
    assert not (tmp_path / "went-off").exists()
    store.put(FORGED.format(cell.address), b"")
    assert content(store, PLAN)[cells[1].address] == content(undisturbed, PLAN)[cells[1].address]


def test_the_check_takes_what_is_right(undisturbed: Store) -> None:
    cell, _, tensors = base_of(undisturbed)
    check(cell, tensors)


@pytest.mark.fault("a record that is damaged, forged, or a pickle")
@pytest.mark.parametrize(
    "kind", ["digit", "another cell", "no seal", "pickle", "empty", "list", "path", "extra", "test", "old"]
)
def test_a_damaged_record_is_named_and_never_believed(
    kind: str, undisturbed: Store, store: Store, tmp_path: Path, capsys: Any
) -> None:
    cell = find("baseA")
    text = store.get(record_path(cell))
    whole = json.loads(text)
    if kind == "digit":
        place = text.index(b'"top1_last":0.') + len(b'"top1_last":0.')
        text = text[:place] + (b"9" if text[place : place + 1] != b"9" else b"8") + text[place + 1 :]
    elif kind == "another cell":
        text = store.get(record_path(find("baseB")))
    elif kind == "no seal":
        del whole["sha256"]
        text = json.dumps(whole).encode()
    elif kind == "pickle":
        Bomb.path = str(tmp_path / "went-off")
        text = pickle.dumps(Bomb())
    elif kind == "empty":
        text = b""
    elif kind == "list":
        text = b"[1, 2]"
    else:  # well sealed, and wrong
        del whole["sha256"]
        if kind == "path":
            whole["result"]["checkpoint_sha256"] = "../../../../tmp/x"
        elif kind == "extra":
            whole["surprise"] = 1
        elif kind == "test":
            whole["result"]["history"]["top1"].pop()
        else:
            whole["format"] = 1
        text = canonical({**whole, "sha256": digest(whole)}).encode()
    store.put(record_path(cell), text)
    with pytest.raises(IntegrityError):
        read_record(text, "here", cell)
    assert launch(tmp_path) == 3
    said = capsys.readouterr().err
    assert record_path(cell) in said and "move it away" in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "went-off").exists()
    store.delete(record_path(cell))
    assert launch(tmp_path) == 0
    assert content(store, PLAN) == content(undisturbed, PLAN)


@pytest.mark.fault("progress that is damaged, or a pickle")
@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "pickle", "another cell", "nothing"])
def test_damaged_progress_starts_again(kind: str, undisturbed: Store, store: Store, tmp_path: Path) -> None:
    mine, other = find("A3B"), find("A6B")
    for cell in (mine, other):
        steps = iter(range(40))
        with pytest.raises(Interrupted):
            train_cohort([cell], Bench(store, PLAN.facts, stop=lambda steps=steps: next(steps, None) is None))  # type: ignore[misc]
    data = store.get(progress_path(mine))
    if kind == "flipped bit":
        data = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]
    elif kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "pickle":
        Bomb.path = str(tmp_path / "went-off")
        data = pickle.dumps(Bomb())
    elif kind == "another cell":
        data = store.get(progress_path(other))
    store.put(progress_path(mine), data if kind != "nothing" else b"")
    assert set(train_cohort([mine, other], Bench(store, PLAN.facts)).values()) == {"ok"}
    assert not (tmp_path / "went-off").exists()
    for cell in (mine, other):
        assert content(store, PLAN)[cell.address] == content(undisturbed, PLAN)[cell.address]
    record = find_record(store, other)
    assert record is not None and record.provenance.resumed_at_step > 30
    assert Leases(store).take(f"cells/{mine.address}/lease.json")


RUBBISH = """
import gc, threading
import ray
from ray._private.worker import global_worker as worker
from raygrid import grid

class Ring: pass

def ring(**has):
    one = Ring()
    one.__dict__.update(has, itself=one)

def collect():
    while worker.connected:
        pass
    gc.set_threshold(20, 1, 1)
    while True:
        ring()

ray.init(address="local", include_dashboard=False, num_cpus=1)
gc.collect(), gc.freeze(), gc.set_threshold(10**9)
for i in range(12_000):
    ring(ref=ray.put(i))
threading.Thread(target=collect, daemon=True).start()
grid.disconnect()
print("survived")
"""


@pytest.mark.fault("a thread that collects rubbish while Ray shuts down")
def test_leaving_ray_outlives_a_thread_that_collects_rubbish() -> None:
    done = subprocess.run([sys.executable, "-c", RUBBISH], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]
