"""What lies where every user of the machine may write is believed only if it is this user's or root's."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raygrid import grid
from raygrid.errors import StoreError
from raygrid.record import Record, find_record, folder, write_record
from raygrid.store import Store
from raygrid.train import Bench, train_cohort
from tests.worlds import World

OTHER = 12345
Fault = Callable[[Path, pytest.MonkeyPatch], None]


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file another user's: root can; who is not root becomes another."""
    if os.geteuid() == 0:
        os.chown(path, OTHER, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: OTHER)


def linked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def open_to_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o666)


def pipe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    os.mkfifo(path)


FAULTS = [give_away, linked, open_to_all, pipe]


# --- the Ray that is joined ------------------------------------------------------------------------------------------


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What `ray start` leaves, with something of this user's that listens there."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    path = tmp_path / "ray" / "ray_current_cluster"
    with socket.create_server(("127.0.0.1", 0)) as server:
        path.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        yield path


def test_a_ray_of_this_user_is_joined(note: Path) -> None:
    assert grid._started_here() == note.read_text()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_note_that_another_user_can_have_written_is_not_believed(
    note: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "raygrid"):
        fault(note, monkeypatch)
        assert grid._started_here() is None
    assert len(caplog.messages) == (0 if fault is linked else 1), caplog.messages


LISTEN = """\
import socket, time
server = socket.create_server(("", 0))
print(server.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port on which a program of another user listens."""
    if os.geteuid() == 0:
        other: dict[str, Any] = {"user": OTHER}
    else:
        other = {}
        monkeypatch.setattr(os, "getuid", lambda: OTHER)
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable  # one that all may run
    with subprocess.Popen([python, "-c", LISTEN], stdout=subprocess.PIPE, text=True, cwd="/", **other) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def test_what_another_user_listens_on_is_not_joined(
    note: Path, stranger: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An old note of this user's, whose port somebody else took since."""
    with monkeypatch.context() as own:
        note.write_text(f"127.0.0.1:{stranger}")
        if os.geteuid() != 0:  # the note is this user's all the same
            own.setattr(grid, "_ours", lambda path: path.open())
        with caplog.at_level(logging.WARNING, "raygrid"):
            assert grid._started_here() is None
    assert "another user's" in caplog.text


def test_listeners_are_found_without_linux_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere(type(Path())):  # type: ignore[misc]
        def exists(self, **named: Any) -> bool:
            return False

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert grid._listeners(port) == {os.getuid()}
        monkeypatch.setattr(grid, "Path", Nowhere)
        assert grid._listeners(port) == {os.getuid()}
    assert grid._listeners(port) == set()


def test_a_cluster_of_another_machine_is_joined_by_the_note_alone(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a worker node, whose note names the head."""

    class Far:
        def getpeername(self) -> tuple[str, int]:
            return "10.1.1.1", 6379

        def getsockname(self) -> tuple[str, int]:
            return "10.1.1.2", 40000

    monkeypatch.setattr(socket, "create_connection", lambda *rest, **named: contextlib.nullcontext(Far()))
    note.write_text("10.1.1.1:6379")
    assert grid._started_here() == "10.1.1.1:6379"


@pytest.fixture
def without_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(grid, "TOKEN", tmp_path / "none")
    monkeypatch.setattr(grid, "_started_here", lambda: None)
    before = dict(os.environ)
    grid._warn_of.cache_clear()
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.mark.parametrize(
    ("address", "token", "warned"),
    [
        ("10.0.0.7:6379", False, True),
        ("head.example.org:6379", False, True),
        ("ray://10.0.0.7:10001", False, True),
        ("[fd00::7]:6379", False, True),
        ("auto", False, True),
        ("10.0.0.7:6379", True, False),
        ("127.0.0.1:6379", False, False),
        ("localhost:6379", False, False),
        ("ray://127.0.0.1:10001", False, False),
        ("[::1]:6379", False, False),
    ],
)
def test_a_cluster_without_a_token_is_said(
    address: str,
    token: bool,
    warned: bool,
    without_token: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with caplog.at_level(logging.WARNING, "raygrid"):
        assert grid._settle() == grid._settle() == address
    assert [address in text and "without a token" in text for text in caplog.messages] == [True] * warned


def test_a_local_ray_that_is_asked_for_by_name_has_a_token_too(
    without_token: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(grid, "_started_here", lambda: "127.0.0.1:6379")
    assert grid._settle() is None, "a Ray of its own, whatever runs here"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


# --- what else lies in /tmp ------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder for temporary files."""
    place = tmp_path / "shared"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_what_ray_up_remembers(fault: Fault | None, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names a class that is imported, so another user's is not looked at."""
    import hashlib

    import yaml
    from ray.autoscaler._private.util import prepare_config

    file = Path(__file__).resolve().parents[2] / "clusters" / "local.yaml"
    text = json.dumps([prepare_config(yaml.safe_load(file.read_text()))], sort_keys=True)
    kept = shared / f"ray-config-{hashlib.sha256(text.encode()).hexdigest()}"
    kept.write_text(json.dumps({"config": {"cluster_name": "raygrid", "provider": {"type": "local"}}}))
    assert grid._remembered(file) is not None
    if fault:
        fault(kept, monkeypatch)
        assert grid._remembered(file) is None


def test_folders_that_killed_drivers_left_are_removed(shared: Path) -> None:
    for name in ("dead", "alive"):
        (shared / f"{grid.SCRATCH}{name}").mkdir()
        (shared / f"{grid.SCRATCH}{name}" / "held").touch()
    with (shared / f"{grid.SCRATCH}alive" / "held").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        scratch, mine = grid._scratch()
        mine.close()
        assert {path.name for path in shared.iterdir()} == {f"{grid.SCRATCH}alive", Path(scratch).name}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("fault", FAULTS)
def test_folders_of_other_users_are_left_alone(fault: Fault, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe in the place of the lock would stop every launch of this machine for ever."""
    other = shared / f"{grid.SCRATCH}other"
    other.mkdir()
    (other / "held").touch()
    fault(other / "held", monkeypatch)
    scratch, mine = grid._scratch()
    mine.close()
    assert other.exists() and Path(scratch).exists()


# --- how much a cluster may grow -------------------------------------------------------------------------------------


def test_a_cluster_grows_to_its_own_bound_whatever_its_kinds_of_workers_add_up_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert grid._most() == (0.0, 0.0)
    config = {
        "max_workers": 4,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 64}},
            "one": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 4},
            "four": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 2},
            "none": {"resources": {"CPU": 16}},
        },
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    assert grid._most() == (48 + 48 + 16 + 16, 4 + 4 + 1 + 1)
    config["max_workers"] = 0
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    assert grid._most() == (0.0, 0.0)


# --- what a worker's role forbids ------------------------------------------------------------------------------------


def test_a_worker_that_may_remove_no_checkpoint_still_ends_with_the_record_that_stands(
    world: World, tmp_path: Path
) -> None:
    """Another worker was faster, with other bytes; this one's checkpoint stays, a file too many."""
    cell = next(cell for cell in world.plan.cells if cell.treatment == "base")  # type: ignore[attr-defined]
    standing = world.records[cell.address]
    moved = standing.result.model_copy(update={"checkpoint": f"{folder(cell)}/checkpoint-000000000000.safetensors"})
    standing = standing.model_copy(update={"result": moved})

    class Strict(Store):
        """Like the bucket of clusters/aws-iam."""

        def put(self, path: str, data: bytes) -> None:
            super().put(path, data)
            if "checkpoint-" in path:
                assert write_record(Store(self.url), standing)

        def delete(self, path: str) -> None:
            if not path.endswith(("lease.json", "progress.safetensors")):
                raise StoreError(f"{path}: AccessDenied")
            super().delete(path)

    store = Strict(world.fresh(tmp_path / "store", bases=False).url)
    told: list[Record] = []
    outcomes = train_cohort([cell], Bench(store, world.plan.facts, done=told.append))  # type: ignore[attr-defined]
    assert outcomes == {cell.address: "ok"}
    assert told == [standing] == [find_record(store, cell)]
    left = sorted(path.rpartition("/")[2] for path in store.list(folder(cell)))
    assert len(left) == 2 and left[1] == "record.json", left
