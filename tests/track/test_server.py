"""The writer on a real MLflow server that is absent, killed, slow, choked or refusing: training never notices, and
in the end each cell has one run with each step once."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raygrid.record import write_record
from raygrid.store import Store
from raygrid.track import Tracker, sync
from raygrid.track import tracker as module
from raygrid.track.__main__ import load, main
from raygrid.track.server import Server, plain_uri
from tests.track.conftest import (
    STUDY,
    MlflowServer,
    assert_whole,
    content,
    evaluations,
    free_port,
    log_evaluation,
    make_plan,
    make_record,
    train,
    trials,
    wait,
    written,
)


class Front:
    """A small HTTP server before the real one. `answer(path, count)` may give a delay, or a status and a text."""

    def __init__(self, target: str, answer: Callable[[str, int], float | tuple[int, str]]):
        front = self
        self.calls: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                front.calls.append(self.path)
                reply = answer(self.path, len(front.calls))
                if isinstance(reply, tuple):
                    return self.send(reply[0], reply[1].encode(), "application/json")
                time.sleep(reply)
                headers = {k: v for k, v in self.headers.items() if k.lower() in ("content-type", "accept")}
                request = urllib.request.Request(target + self.path, body, headers, method=self.command)
                try:
                    with urllib.request.urlopen(request, timeout=60) as got:
                        return self.send(got.status, got.read(), got.headers.get("Content-Type", ""))
                except urllib.error.HTTPError as error:
                    return self.send(error.code, error.read(), error.headers.get("Content-Type", ""))

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = relay

            def send(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def front() -> Iterator[Callable[..., Front]]:
    """Makes fronts, and closes them."""
    made: list[Front] = []

    def make(target: str, answer: Callable[[str, int], float | tuple[int, str]]) -> Front:
        made.append(Front(target, answer))
        return made[-1]

    yield make
    for each in made:
        each.http.shutdown()
        each.http.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits between tries; what is tried stays the same."""
    monkeypatch.setattr(module, "BACKOFF_S", (0.2, 0.5, 1.0))


def test_a_grid_on_a_server(server: MlflowServer, store: Store, tmp_path: Path, database: str) -> None:
    plan = make_plan("served", layers="[1]")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "figure2.svg").write_text("<svg/>")
    tracker = Tracker(plan, store, server.uri, tmp_path / "report")
    tracker.start()
    wait(lambda: tracker._experiment, 60)
    assert re.fullmatch(
        rf"{server.uri}/#/experiments/\d+/runs\?viewStateShareKey=raygrid-figure2&compareRunsMode=CHART",
        tracker.link or "",
    )
    assert tracker.command == server.uri
    for cell in plan.cells:
        train(tracker, store, cell)
    assert not tracker.close(60)
    assert_whole(server.uri, plan, store)
    sync(plan, store, database)
    assert content(database, plan) == content(server.uri, plan)


@pytest.mark.fault("an MLflow server absent at first, then killed, then back")
def test_a_server_that_is_killed_and_comes_back(store: Store, tmp_path: Path) -> None:
    """And on the way: absent from the start, then there, then killed with SIGKILL, then back."""
    plan = make_plan("killed")
    server = MlflowServer(tmp_path)
    tracker = Tracker(plan, store, server.uri)
    tracker.start()
    try:
        cells = iter(plan.cells)
        for _ in range(3):  # absent from the start
            train(tracker, store, next(cells))
        trouble = wait(lambda: tracker.trouble)
        assert "is away" in trouble and "refused" in trouble and len(trouble) < 200 and "\n" not in trouble
        server.start()
        wait(lambda: written(tracker), 60)
        assert len(trials(server.uri, plan)) == 3 and tracker.trouble is None
        cut = next(cells)
        train(tracker, store, cut, until=20)
        wait(lambda: written(tracker))
        train(tracker, store, next(cells))
        server.kill()  # in the middle of writing
        for evaluation in evaluations(cut)[2:]:
            log_evaluation(tracker, cut, evaluation)
        write_record(store, make_record(cut))
        tracker.finish(cut, make_record(cut))
        for _ in range(4):
            train(tracker, store, next(cells))
        wait(lambda: tracker.trouble)
        server.start()
        for cell in cells:
            train(tracker, store, cell)
        assert not tracker.close(60)
        assert_whole(server.uri, plan, store)
        assert trials(server.uri, plan)[cut.address].data.tags["raygrid.attempts"] == "1"
    finally:
        server.kill()


@pytest.mark.fault("an MLflow server that never comes")
def test_a_server_that_never_comes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """`log` only counts and drops; memory is bounded; `close` gives up in bounded time and says how to go on."""
    monkeypatch.setattr(module, "GRACE_S", 2.0)
    monkeypatch.setattr(module, "HELD_POINTS", 30)
    monkeypatch.setattr(module, "HELD_RECORDS", 3)
    plan = make_plan("never")
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    tracker = Tracker(plan, store, uri)
    called = threading.Event()
    monkeypatch.setattr(
        tracker.server, "call", lambda *_: called.set() or time.sleep(30)
    )  # hangs, as a dead route does
    tracker.start()
    assert called.wait(10)
    for cell in plan.cells:  # returns while the writer hangs: nothing here waits for it
        train(tracker, store, cell)
    assert tracker._held <= 30 and sum(map(len, tracker._points.values())) <= 30
    assert sum(record is not None for record in tracker._todo.values()) == 3
    started = time.monotonic()
    missed = tracker.close(1.0)
    assert time.monotonic() - started < 10
    assert missed.cells == len(plan.cells) and "was too slow" in str(missed)
    assert f"raygrid.track sync STUDY --store {store.url} --uri http://127.0.0.1" in str(missed)
    assert "secret" not in str(missed)


@pytest.mark.fault("an MLflow server away for longer than memory lasts")
def test_what_did_not_fit_in_memory_comes_from_the_store(
    server: MlflowServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HELD_POINTS", 30)
    monkeypatch.setattr(module, "HELD_RECORDS", 3)
    plan = make_plan("dropped", layers="[1]")
    tracker = Tracker(plan, store, server.uri)
    for cell in plan.cells:
        train(tracker, store, cell)
    tracker.start()
    assert not tracker.close(60)
    assert_whole(server.uri, plan, store)


@pytest.mark.fault("an MLflow server that takes 5 s a call")
def test_a_slow_server(server: MlflowServer, store: Store, front: Callable[..., Front]) -> None:
    """5 s a call, once the experiment is known: training hands over everything at once, and what the server did not
    take in time is brought by a sync."""
    plan = make_plan("slow", layers="[1]", extra="targets: [B]\n")
    slow = threading.Event()
    proxy = front(server.uri, lambda path, count: 5.0 if slow.is_set() else 0.0)
    tracker = Tracker(plan, store, proxy.uri)
    tracker.start()
    wait(lambda: tracker._experiment, 60)
    slow.set()
    before = len(proxy.calls)
    for cell in plan.cells:
        train(tracker, store, cell)
    handed_over = len(proxy.calls) - before
    assert handed_over <= 2  # all of the grid's metrics were handed over before the server had answered one call
    begun = time.monotonic()
    missed = tracker.close(7.0)
    assert time.monotonic() - begun < 10
    assert 0 < missed.cells <= len(plan.cells)
    slow.clear()
    tracker._thread.join(30)
    assert not tracker._thread.is_alive()
    sync(plan, store, server.uri)
    assert_whole(server.uri, plan, store)


class Timed:
    """A tracker that notes how long whoever trains is kept by it."""

    kept = 0.0

    def __init__(self, *arguments: Any):
        self._tracker = Tracker(*arguments)

    def __getattr__(self, name: str) -> Any:
        found = self._note(lambda: getattr(self._tracker, name))
        if not callable(found) or name == "close":  # it is closed when all is trained
            return found
        return lambda *rest: self._note(lambda: found(*rest))

    @staticmethod
    def _note(action: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        try:
            return action()
        finally:
            Timed.kept += time.perf_counter() - begun


@pytest.mark.fault("an MLflow server that takes 5 s a call, while a study trains")
@pytest.mark.parametrize("absent", [False, True])
def test_training_is_kept_for_less_than_2_percent_of_its_time(
    absent: bool, server: MlflowServer, front: Callable[..., Front], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A whole launch; in the end a sync brings all of it."""
    import mlflow.tracking  # noqa: F401 - else its import, once a process, is measured too

    from raygrid import grid, launch, track
    from tests.faults.small import SMALL, the_plan
    from tests.faults.small import launch as launched

    name = f"kept-{absent}".lower()
    text = SMALL.replace("name: small\n", f"name: {name}\n").replace("epochs: 8", "epochs: 32")
    proxy = front(server.uri, lambda path, count: 5.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}" if absent else proxy.uri)
    monkeypatch.setattr(launch, "MLFLOW_GRACE_S", 1.0)
    monkeypatch.setattr(track, "Tracker", Timed)
    monkeypatch.setattr(Timed, "kept", 0.0)
    real, trained = grid.run_in_process, []

    def run(*rest: Any) -> None:
        begun = time.perf_counter()
        real(*rest)
        trained.append(time.perf_counter() - begun)

    monkeypatch.setattr(grid, "run_in_process", run)
    assert launched(tmp_path, text=text, tracked=True) == 0
    assert "MLflow misses" in capsys.readouterr().out
    assert trained[0] > 1 and Timed.kept < 0.02 * trained[0], (Timed.kept, trained)
    assert absent or proxy.calls
    assert sync(the_plan(text), Store(str(tmp_path / "out" / "store")), server.uri)["cells"] == 9
    assert len(trials(server.uri, the_plan(text))) == 9


def test_a_network_takes_few_calls(server: MlflowServer, store: Store, front: Callable[..., Front]) -> None:
    """A run made, its curve and its end written: calls for a network beyond those for the experiment and its views."""
    counts = []
    for name, layers in (("few", "[1]"), ("more", "[1, 2, 3]")):
        plan = make_plan(name, layers=layers, extra="targets: [B]\n")
        proxy = front(server.uri, lambda path, count: 0.0)
        tracker = Tracker(plan, store, proxy.uri)
        tracker.start()
        wait(lambda tracker=tracker: tracker._experiment, 60)
        for cell in plan.cells:
            train(tracker, store, cell)
        assert not tracker.close(60)
        counts.append((len(plan.cells), len(proxy.calls)))
    (few, little), (more, much) = counts
    print(
        f"MLflow calls: {little} for {few} networks, {much} for {more}: {(much - little) / (more - few):.1f} for each"
    )
    assert (much - little) / (more - few) <= 8


@pytest.mark.fault("every third answer of an MLflow server is lost")
def test_lost_answers_make_no_second_run(server: MlflowServer, store: Store, front: Callable[..., Front]) -> None:
    """The server made the run and logged the batch, but its answer never came: every third call answers 502."""
    from mlflow.entities import ViewType

    plan = make_plan("lost", layers="[1]", extra="targets: [B]\n")
    proxy = front(server.uri, lambda path, count: 0.0)
    tracker = Tracker(plan, store, proxy.uri)
    handler = proxy.http.RequestHandlerClass
    send = handler.send  # type: ignore[attr-defined]
    handler.send = lambda self, status, body, kind: (  # type: ignore[attr-defined]
        send(self, 502, b"gone", "text/plain") if len(proxy.calls) % 3 == 0 else send(self, status, body, kind)
    )
    tracker.start()
    for cell in plan.cells:
        train(tracker, store, cell)
    assert not tracker.close(60)
    assert_whole(server.uri, plan, store)
    assert {run.data.tags["raygrid.attempts"] for run in trials(server.uri, plan).values()} == {"1"}
    deleted = Server(server.uri).call("search_runs", [tracker._experiment], run_view_type=ViewType.DELETED_ONLY)
    assert not list(deleted), "runs that were made twice, and deleted later"


@pytest.mark.fault("an MLflow server whose connection pool is choked (QueuePool)")
def test_a_choked_connection_pool_is_waited_out(
    server: MlflowServer, store: Store, front: Callable[..., Front]
) -> None:
    text = (
        '{"error_code": "BAD_REQUEST", "message": "(sqlalchemy.exc.TimeoutError) QueuePool limit of size 5 overflow 10 '
        'reached, connection timed out, timeout 30.00"}'
    )
    plan = make_plan("choked", layers="[1]", extra="targets: [B]\n")
    proxy = front(server.uri, lambda path, count: (400, text) if count <= 3 or 12 < count <= 15 else 0.0)
    tracker = Tracker(plan, store, proxy.uri)
    tracker.start()
    for cell in plan.cells:
        train(tracker, store, cell)
    assert "QueuePool" in wait(lambda: tracker.trouble)
    assert not tracker.close(60)
    assert_whole(server.uri, plan, store)


@pytest.mark.fault("an MLflow server that refuses: {said}")
@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "You are not authenticated.", "refuses"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}', "Permission denied"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "Invalid Host header"),
    ],
    ids=["no login", "no permission", "another host"],
)
def test_a_server_that_refuses(store: Store, front: Callable[..., Front], status: int, text: str, said: str) -> None:
    plan = make_plan("refused", layers="[1]")
    proxy = front("http://127.0.0.1:9", lambda path, count: (status, text))
    tracker = Tracker(plan, store, proxy.uri)
    tracker.start()
    train(tracker, store, plan.cells[0])
    trouble = wait(lambda: tracker.trouble)
    assert "refuses" in trouble and said in trouble and "\n" not in trouble
    assert tracker.close(20).cells == 1


@pytest.mark.fault("a server that is no MLflow")
def test_a_page_that_is_no_mlflow(store: Store, front: Callable[..., Front]) -> None:
    proxy = front("http://127.0.0.1:9", lambda path, count: (404, "<html>nginx</html>"))
    tracker = Tracker(make_plan("nowhere", layers="[1]"), store, proxy.uri)
    tracker.start()
    trouble = wait(lambda: tracker.trouble)
    assert "404" in trouble and "is this an MLflow server?" in trouble
    assert tracker.close(20)


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://me:password@host:5000/base/", "http://host:5000/base/"),
        ("http://me:p@ssword@host", "http://host"),
        ("http://me:pass/word@host", "http://host"),
        ("http://me:pass?word=1@host", "http://host"),
        ("http://host/?password=word", "http://host/"),
        ("http://host/?user=me@home&password=word", "http://home"),
        ("postgresql://host/db?sslmode=require&password=word", "postgresql://host/db"),
        ("me:password@host:5000", "host:5000"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("Failed to parse: http://me:pass/word@host/api", "Failed to parse: http://host/api"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(uri: str, plain: str) -> None:
    assert plain_uri(uri) == plain


def test_no_error_shows_a_password(store: Store, tmp_path: Path) -> None:
    for uri in (
        f"http://me:p@ssw0rd@127.0.0.1:{free_port()}",
        f"http://me:pw/ssw0rd@127.0.0.1:{free_port()}",
        f"http://127.0.0.1:{free_port()}/?password=ssw0rd",
        "me:ssw0rd@127.0.0.1:5000",
        "postgresql://me:ssw0rd@127.0.0.1:1/db",
    ):
        tracker = Tracker(make_plan("secret", layers="[1]"), store, uri)
        tracker.start()
        trouble = wait(lambda tracker=tracker: tracker.trouble)
        missed = tracker.close(0.5)
        assert missed
        shown = f"{trouble} {missed} {tracker.command} {tracker.link}"
        assert "ssw0rd" not in shown and "me:p" not in shown, shown


# --- the command line -------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_no_mlflow() -> None:
    code = "import sys; from raygrid.track.__main__ import parser; parser(); print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    shown = subprocess.run([sys.executable, "-m", "raygrid.track", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "sync" in shown.stdout and "views" in shown.stdout


def test_commands(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a data set that raygrid knows, so without any pixels."""
    file = tmp_path / "study.yaml"
    file.write_text(
        STUDY.format(name="cli", splits="  - {kind: random, seed: 0}", layers="[1]").replace("toys", "icons40")
    )
    chosen = [str(file), "--set", "treatments=[base, transfer]"]
    plan = load(chosen[0], chosen[2:])
    for cell in plan.cells[:3]:
        write_record(store, make_record(cell))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("RAYGRID_STORE", store.url)
    assert main(["sync", *chosen]) == 0
    assert "3 of 4 cells are finished; 0 runs were whole, 3 completed now (3 of them new)" in capsys.readouterr().out
    assert main(["views", *chosen]) == 0
    assert "viewStateShareKey=raygrid-figure2" in capsys.readouterr().out
    assert main(["sync", *chosen, "--uri", str(tmp_path)]) == 1
    assert "no runs in plain folders" in capsys.readouterr().err
    assert main(["sync", str(file), "--set", "layrs=[1]"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("raygrid: ") and "did you mean 'layers'" in said
    assert main(["sync", *chosen, "--store", str(tmp_path / "nowhere")]) == 2
    assert "there is no store at" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()


def test_the_views_command_shows_no_password(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        STUDY.format(name="told", splits="  - {kind: random, seed: 0}", layers="[1]").replace("toys", "icons40")
    )
    uri = server.uri.replace("http://", "http://me:ssw0rd@")
    assert main(["views", str(file), "--uri", uri]) == 0
    said = "".join(capsys.readouterr())
    assert f"{server.uri}/#/experiments" in said and "ssw0rd" not in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(28, "No space left on device"), 3, "No space left on device")],
)
def test_whatever_ends_it_early_is_one_line(
    error: BaseException, code: int, said: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*rest: object) -> None:
        raise error

    monkeypatch.setattr(module, "sync", fail)
    file = tmp_path / "study.yaml"
    file.write_text(
        STUDY.format(name="cli", splits="  - {kind: random, seed: 0}", layers="[1]").replace("toys", "icons40")
    )
    assert main(["sync", str(file), "--store", store.url]) == code
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("raygrid: ") and said in shown and "\n" not in shown


# --- PostgreSQL -------------------------------------------------------------------------------------------


def test_a_server_with_postgresql(store: Store, tmp_path: Path, database: str) -> None:
    pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("Debian's postgresql is not installed")
    drop = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    prefix = drop if os.geteuid() == 0 else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = Path(f"/tmp/raygrid-postgres-{os.getpid()}")
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    data = str(home / "data")
    log = (tmp_path / "postgres.log").open("wb")
    initdb = [*prefix, str(programs[-1] / "initdb"), "-D", data, "-U", "raygrid", "--auth", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, stdout=log, stderr=log)
    options = ["-p", str(port), "-k", str(home), "-h", "127.0.0.1", "-F"]
    postgres = subprocess.Popen([*prefix, str(programs[-1] / "postgres"), "-D", data, *options], stdout=log, stderr=log)
    server = MlflowServer(tmp_path, f"postgresql+psycopg2://raygrid@127.0.0.1:{port}/postgres")
    try:
        ready = [str(programs[-1] / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        wait(lambda: subprocess.run(ready, stdout=log, stderr=log).returncode == 0)
        server.start()
        plan = make_plan("postgres", layers="[1]", extra="targets: [B]\n")
        tracker = Tracker(plan, store, server.uri)
        tracker.start()
        for cell in plan.cells:
            train(tracker, store, cell)
        assert not tracker.close(60)
        assert_whole(server.uri, plan, store)
        sync(plan, store, database)
        assert content(database, plan) == content(server.uri, plan)
    finally:
        server.kill()
        postgres.terminate()
        postgres.wait(30)
        subprocess.run(["rm", "-rf", str(home)], check=False)
        log.close()
