"""Kills things at seeded moments, launches again, and compares what is there with a run that nobody disturbed.

    python tests/faults/harness.py                     20 moments, spread over the victims
    python tests/faults/harness.py --write             and brings the table of README.md up to date
    python tests/faults/harness.py --moments 200       more, on demand
    python tests/faults/harness.py drive STUDY OUT     a launch as the harness makes it: no figures

After every moment: the deterministic part of all records and the bytes of all checkpoints are those of the undisturbed
run; every cell has one MLflow run with each step once; no cell with a record was trained again; no process, lease,
progress or temporary object is left. Launches are forked from this process, which has imported everything: a real
process dies each time, without seconds of imports before.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from proxy import BROKEN, WRONG, Proxy
from servers import BUCKET, S3, Mlflow, s3_environment
from small import SMALL, no_figures

from tests.fault_table import README, Row, update

VICTIMS = {
    "driver": "the driver, which trains here (SIGKILL, SIGTERM)",
    "driver-on-ray": "the driver of trials on Ray (SIGKILL)",
    "worker": "the worker of a trial on Ray (SIGKILL)",
    "raylet": "the raylet of a local Ray (SIGKILL)",
    "node": "all processes of a Ray node but the driver (SIGKILL)",
    "mlflow": "the MLflow server (SIGKILL, back after a second)",
    "s3": "the S3 server (SIGKILL, back after a second)",
    "network": "requests to the S3 server (5xx, resets, cut or wrong answers)",
    "all": "driver, MLflow server and S3 server at once (SIGKILL)",
}
SHARES = {
    "driver": 5,
    "driver-on-ray": 1,
    "worker": 3,
    "raylet": 1,
    "node": 1,
    "mlflow": 2,
    "s3": 3,
    "network": 2,
    "all": 2,
}
"""moments of twenty"""
ON_RAY = ("driver-on-ray", "worker", "raylet", "node")
MISSES = 5
"""moments in a row that found nothing to kill: then the harness is broken"""
HANGS_S = 300.0
"""a launch that takes longer hangs (twenty times what it takes, for slow machines)"""


class Broken(Exception):
    """A law did not hold."""


# --- launches --------------------------------------------------------------------------------------------------------


def drive(study: Path, out: Path, *arguments: str) -> int:
    """Launch without figures; tell of every record written, and of finished cells that are trained again."""
    from raygrid import train
    from raygrid.launch import main
    from raygrid.record import find_record

    told = os.environ.get("HARNESS_TOLD")
    if told:
        write, finish = train.write_record, train._Loop._finish

        def tell(text: str) -> None:
            with Path(str(told)).open("a") as file:
                file.write(text + "\n")

        def writing(store: Any, record: Any) -> bool:
            new = write(store, record)
            if new:
                tell(f"written {record.cell.address}")
            return new

        def finishing(self: Any, member: Any, *rest: Any) -> None:
            if find_record(self.bench.store, member.cell) is not None:
                tell(f"again {member.cell.address}")
            finish(self, member, *rest)

        train.write_record, train._Loop._finish = writing, finishing  # type: ignore[method-assign]
    with no_figures():
        return main([str(study), "--out", str(out), *arguments])


def fork(action: Callable[[], int], log: Path, environment: dict[str, str]) -> psutil.Process:
    """Run something in a process of its own."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return psutil.Process(pid)
    code = 70
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environment)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def ended(process: psutil.Process, seconds: float) -> int | None:
    """Exit code; None if it goes on. A negative one is the signal that ended it."""
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.02)


# --- one moment ------------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """One study, its servers, and what happens to them."""

    folder: Path
    draw: random.Random
    mlflow: Mlflow | None
    s3: S3 | None
    proxy: Proxy | None = None
    family: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def store(self) -> str:
        return f"s3://{BUCKET}/{self.folder.name}" if self.s3 else str(self.folder / "out" / "store")

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow.uri if self.mlflow else f"sqlite:///{self.folder / 'out' / 'mlflow.db'}"

    @property
    def environment(self) -> dict[str, str]:
        port = self.proxy.port if self.proxy else self.s3.port if self.s3 else 0
        return {
            "HARNESS_TOLD": str(self.folder / "told"),
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # how long the rest of Ray waits for its killed head; else 60
            **(s3_environment(port) if port else {}),
        }

    def launch(self, backend: str = "in-process") -> psutil.Process:
        arguments = ["--store", self.store, "--set", f"execution.backend={backend}"]
        study = self.folder / "study.yaml"
        name = self.folder.name
        study.write_text(SMALL.replace("name: small\n", f"name: {name}\n"))
        return fork(lambda: drive(study, self.folder / "out", *arguments), self.folder / "log", self.environment)

    def watch(self, process: psutil.Process) -> list[psutil.Process]:
        """The process and all that it started."""
        with contextlib.suppress(psutil.Error):
            for one in [process, *process.children(recursive=True)]:
                self.family[one.pid] = one
        return [one for one in self.family.values() if one.is_running()]

    def training(self) -> list[int]:
        """Processes that hold leases now (in a folder)."""
        found = []
        for lease in Path(self.store).rglob("lease.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(int(json.loads(lease.read_text())["pid"]))
        return found

    def say(self) -> str:
        return (self.folder / "log").read_text()[-3000:] if (self.folder / "log").exists() else ""


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def until(scene: Scene, first: psutil.Process, condition: Callable[[], Any]) -> Any:
    """Wait for something, or for the end of the launch."""
    end = time.monotonic() + HANGS_S
    while time.monotonic() < end and first.is_running() and first.status() != psutil.STATUS_ZOMBIE:
        scene.watch(first)
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    return None


def disturb(victim: str, scene: Scene, usual: float) -> tuple[psutil.Process, int]:
    """Begin a launch and do one thing to it at a random moment. Returns the launch, and how often something was struck
    while it went on: 0 where the moment came too late."""
    draw = scene.draw
    first = scene.launch("ray" if victim in ON_RAY else "in-process")
    if victim in ON_RAY:
        times = 0
        for _ in range(SHARES["worker"] if victim == "worker" else 1):
            pids = until(scene, first, lambda: [pid for pid in scene.training() if pid != first.pid and alive(pid)])
            time.sleep(draw.uniform(0, 0.6))
            targets = [one for one in scene.watch(first) if one.pid != first.pid]
            if victim == "worker":
                targets = [one for one in targets if pids and one.pid in pids]
            elif victim == "driver-on-ray":
                scene.watch(first)
                targets = [first]
            elif victim == "raylet":
                targets = [one for one in targets if named(one) == "raylet"]
            if not pids or not alive(first.pid):
                targets = []  # it is over: what is left of Ray ends by itself
            times += bool(targets)
            for one in targets:
                kill(one)
            for one in targets:
                with contextlib.suppress(psutil.Error):
                    if one.pid != first.pid:
                        one.wait(10)
        return first, times
    if victim == "network":
        return first, 1
    end = time.monotonic() + draw.uniform(0.0, usual)
    while time.monotonic() < end:
        scene.watch(first)
        time.sleep(0.01)
    struck = int(alive(first.pid))
    if victim in ("driver", "all"):
        number = signal.SIGTERM if victim == "driver" and draw.random() < 0.3 else signal.SIGKILL
        kill(first, number)
    for server in (
        scene.mlflow if victim in ("mlflow", "all") else None,
        scene.s3 if victim in ("s3", "all") else None,
    ):
        if server is not None:
            server.kill()
    if victim in ("mlflow", "s3", "all"):
        time.sleep(1.0)
        for server in (scene.s3, scene.mlflow):
            if server is not None and server.process is None:
                server.start()
    return first, struck


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def named(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return Path(process.exe()).name
    return ""


def moment(victim: str, scene: Scene, usual: float, expected: dict[str, Any]) -> tuple[int, float]:
    """Disturb, launch again, look. Returns how many kills there were, and the seconds that the relaunch took."""
    scratch = abandoned()
    if scene.proxy is not None:
        kinds = [*BROKEN, *WRONG]
        scene.proxy.rule = lambda request: scene.draw.choice(kinds) if scene.draw.random() < 0.1 else None
    first, times = disturb(victim, scene, usual)
    begun = time.monotonic()
    code = ended(first, HANGS_S)
    if code is None:
        kill(first)
        raise Broken(f"the launch hangs\n{scene.say()}")
    allowed = {0} if victim in ("worker", "mlflow", "s3", "network") else None
    if allowed and code not in allowed:
        raise Broken(f"the launch ended with {code}\n{scene.say()}")
    if scene.proxy is not None:
        scene.proxy.rule = lambda request: None
    if victim not in ("worker", "network"):
        again = scene.launch("ray" if victim in ON_RAY else "in-process")
        code = ended(again, HANGS_S)
        if code != 0:
            raise Broken(f"the relaunch ended with {code}\n{scene.say()}")
    took = time.monotonic() - begun
    if left := abandoned() - scratch:
        raise Broken(f"folders that were left: {left}")
    look(scene, expected)
    return (scene.proxy.faults() if scene.proxy is not None else times), took


def abandoned() -> set[Path]:
    """Scratch folders of Tune that no living driver holds: those of other launches on this machine are not ours."""
    found = set()
    for held in Path(tempfile.gettempdir()).glob("raygrid-tune-*/held"):
        with contextlib.suppress(OSError), held.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.add(held.parent)
    return found


def gone(family: list[psutil.Process]) -> None:
    """Whatever launches started has ended with them. Two helpers of Ray take a minute: they try to tell the others."""
    end = time.monotonic() + 150
    left: list[psutil.Process] = []
    while time.monotonic() < end:
        left = [one for one in family if alive(one.pid) and one.is_running()]
        if not left:
            return
        time.sleep(0.5)
    told = [f"{one.pid} {named(one)}" for one in left]
    for one in left:
        kill(one)
    raise Broken(f"processes that were left: {told}")


# --- looking ---------------------------------------------------------------------------------------------------------


def inspect(scene: Scene, answer: Path) -> int:
    """What the store holds; in a process of its own, since the storage library does not like to be forked."""
    from small import content, the_plan

    from raygrid import store as stores
    from raygrid.store import Store

    store = Store(scene.store)
    plan = the_plan(SMALL)
    found = {
        address: [json.dumps(result, sort_keys=True), hashlib.sha256(weights).hexdigest()]
        for address, (result, weights) in content(store, plan).items()
    }
    stores.STALE_S = -1.0  # whatever is half written now is nobody's
    store.check()
    names = ("lease.json", "progress.safetensors")
    left = [path for path in store.list() if path.endswith(names) or path.startswith("check/")]
    if store.is_folder:
        left += [str(path) for path in store.folder.rglob("*#*")]
    answer.write_text(json.dumps([found, left]))
    return 0


def look(scene: Scene, expected: dict[str, Any]) -> None:
    """Raise Broken where anything is not as it should be."""
    answer = scene.folder / "answer.json"
    if ended(fork(lambda: inspect(scene, answer), scene.folder / "log", scene.environment), HANGS_S) != 0:
        raise Broken(f"the store cannot be read\n{scene.say()}")
    found, left = json.loads(answer.read_text())
    if expected and found != expected:
        wrong = [address for address in expected if found.get(address) != expected[address]]
        raise Broken(f"records or checkpoints that differ: {wrong}")
    if left:
        raise Broken(f"left in the store: {left}")
    told = (scene.folder / "told").read_text().split("\n") if (scene.folder / "told").exists() else []
    twice = [
        line for line, count in collections.Counter(told).items() if line and (count > 1 or line.startswith("again"))
    ]
    if twice:
        raise Broken(f"trained again: {twice}")
    one_run_a_cell(scene, set(found))


def one_run_a_cell(scene: Scene, cells: set[str]) -> None:
    """Every cell has one MLflow run, and every step of a metric is there once."""
    file = scene.mlflow.folder / "mlflow.db" if scene.mlflow else scene.folder / "out" / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as data:
        runs = data.execute(
            "select t.value, r.run_uuid, r.status from tags t join runs r on r.run_uuid = t.run_uuid "
            "join experiments e on e.experiment_id = r.experiment_id "
            "where t.key = 'raygrid.cell' and r.lifecycle_stage = 'active' and e.name = ?",
            (f"raygrid/{scene.folder.name}",),
        ).fetchall()
        counts = collections.Counter(address for address, _, _ in runs)
        if set(counts) != cells or set(counts.values()) != {1}:
            raise Broken(f"MLflow runs: {len(runs)} of {len(cells)} cells, {counts.most_common(3)}\n{scene.say()}")
        if any(status != "FINISHED" for _, _, status in runs):
            raise Broken(f"MLflow runs that are not finished: {[run for run in runs if run[2] != 'FINISHED']}")
        marks = ",".join("?" * len(runs))
        twice = data.execute(
            f"select run_uuid, key, step, count(*) from metrics where run_uuid in ({marks}) "
            "group by run_uuid, key, step having count(*) > 1",
            [run for _, run, _ in runs],
        ).fetchall()
        steps = data.execute(
            f"select count(*) from metrics where key = 'test/top1' and run_uuid in ({marks})",
            [run for _, run, _ in runs],
        ).fetchone()[0]
    if twice or steps != 3 * len(cells):
        raise Broken(f"MLflow: {steps} tests of {3 * len(cells)}; twice: {twice[:5]}")


# --- the whole -------------------------------------------------------------------------------------------------------


def run(moments: int, seed: int, victims: Iterable[str], folder: Path) -> dict[str, Row]:
    """Kill, look, kill, look. Raises Broken at the first law that does not hold. A moment that came too late, when the
    launch was over, is looked at and not counted: there is another."""
    rows: dict[str, Row] = {}
    chosen = sorted(victims, key=lambda victim: victim not in ON_RAY)  # so that Ray's helpers end meanwhile
    family: list[psutil.Process] = []
    mlflow = Mlflow(folder / "mlflow") if {"mlflow", "all"} & set(chosen) else None
    s3 = S3(folder / "s3") if {"s3", "network", "all"} & set(chosen) else None
    os.environ["RAYGRID_CACHE"] = str(folder / "cache")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    try:
        for server in (s3, mlflow):
            if server is not None:
                server.start()
        preload()
        template, usual, expected = undisturbed(folder)
        print(f"undisturbed: {len(expected)} networks in {usual:.1f} s", flush=True)
        for victim in chosen:
            row = rows[victim] = Row()
            struck = tried = missed = 0
            while struck < max(1, round(moments * SHARES[victim] / sum(SHARES.values()))):
                name = f"{victim}-{seed}-{tried}"
                place = folder / name
                (place / "out").mkdir(parents=True)
                shutil.copy(template, place / "out" / "mlflow.db")
                at_s3 = s3 if victim in ("s3", "network", "all") else None
                at_mlflow = mlflow if victim in ("mlflow", "all") else None
                with Proxy(at_s3.port) if victim == "network" and at_s3 else contextlib.nullcontext() as proxy:
                    scene = Scene(place, random.Random(name), at_mlflow, at_s3, proxy)
                    begun = time.monotonic()
                    try:
                        times, took = moment(victim, scene, usual, expected)
                    except Broken as error:
                        raise Broken(f"{name}: {error}") from None
                family += scene.family.values()
                tried += 1
                missed = 0 if times else missed + 1
                if missed == MISSES:
                    raise Broken(f"{name}: nothing to kill was found {missed} times")
                struck += min(times, 1) if victim == "network" else times
                if times:
                    row.book(times, took)
                text = f"nothing lost; well again after {took:.1f} s" if times else "too late, once more"
                print(f"{name}: {text} ({time.monotonic() - begun:.1f})", flush=True)
                shutil.rmtree(place, ignore_errors=True)
        gone(family)
        return rows
    finally:
        for server in (s3, mlflow):
            if server is not None:
                server.kill()


def preload() -> None:
    """Import what launches need, once."""
    import mlflow.tracking
    import pandas
    import torch

    import raygrid.export
    import raygrid.grid
    import raygrid.launch
    import raygrid.track.tracker
    import raygrid.train

    assert torch and pandas and mlflow and raygrid


def undisturbed(folder: Path) -> tuple[Path, float, dict[str, Any]]:
    """An MLflow file with empty tables, the seconds of a launch, and what the store then holds."""
    empty = folder / "empty.db"

    def make_tables() -> int:
        from raygrid.track.server import Server

        Server(f"sqlite:///{empty}").call("search_experiments")
        return 0

    ended(fork(make_tables, folder / "log", {}), HANGS_S)
    usual = 0.0
    for name in ("warm", "undisturbed"):  # the first fills the cache
        scene = Scene(folder / name, random.Random(0), None, None)
        (folder / name / "out").mkdir(parents=True)
        shutil.copy(empty, folder / name / "out" / "mlflow.db")
        begun = time.monotonic()
        if ended(scene.launch(), HANGS_S) != 0:
            raise Broken(f"undisturbed: {scene.say()}")
        usual = time.monotonic() - begun
    look(scene, {})
    return empty, usual, json.loads((folder / "undisturbed" / "answer.json").read_text())[0]


def write(rows: dict[str, Row], moments: int, seed: int) -> None:
    """Put them into the table of README.md, and how they were made beside it."""
    update({VICTIMS[victim]: row for victim, row in rows.items()}, VICTIMS.values())
    made = re.compile(r"(<!-- kills -->).*?(<!-- end of kills -->)", re.S)
    told = f"{moments} moments of seed {seed}"
    README.write_text(made.sub(lambda found: found[1] + told + found[2], README.read_text()))


def main() -> int:
    """The command."""
    if sys.argv[1:2] == ["drive"]:
        return drive(Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--write", action="store_true", help="bring the table of README.md up to date")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its servers end with it
    folder = Path(tempfile.mkdtemp(prefix="raygrid-harness-"))
    try:
        rows = run(arguments.moments, arguments.seed, arguments.victims, folder)
    except Broken as error:
        print(f"BROKEN {error}", flush=True)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for victim, row in rows.items():
        print(f"{row.times:4} times {VICTIMS[victim]}: nothing lost, well again after {row.longest:.0f} s at most")
    if arguments.write:
        write(rows, arguments.moments, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
