"""A small study with made-up results, and real MLflow servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raygrid.cell import Cell, DatasetFacts, digest
from raygrid.plan import Plan, plan
from raygrid.record import Evaluation, History, Provenance, Record, Result, write_record
from raygrid.store import Store
from raygrid.study import Study
from raygrid.track import Tracker
from raygrid.track.server import Server

NATURAL = ("bear", "cat", "dog", "frog", "owl", "pine", "rose", "toad")
CLASSES = (*NATURAL, "bus", "cup", "fork", "lamp", "mug", "pen", "ship", "vase")
FACTS = DatasetFacts(
    name="toys",
    sha256=digest("toys"),
    classes=CLASSES,
    groups=("natural",) * 8 + ("man-made",) * 8,
    train=(40,) * 16,
    test=(10,) * 16,
    image_size=8,
)
STUDY = """
name: {name}
question: How far down a network do its layers stay useful for other classes?
dataset: toys
splits:
{splits}
treatments: [base, scratch, selffer, selffer+, transfer, transfer+]
layers: {layers}
recipe: {{iterations: 40, evaluations: 4, batch_size: 8}}
"""


def make_plan(name: str = "toys", splits: int = 1, layers: str = "[1, 3]", extra: str = "") -> Plan:
    """A plan: 12 cells a split and value of n, and 4 more."""
    text = "\n".join(f"  - {{kind: random, seed: {seed}}}" for seed in range(splits))
    return plan(Study.parse(STUDY.format(name=name, splits=text, layers=layers) + extra), FACTS)


def chance(*names: object) -> float:
    """A number in [0, 1) from names."""
    return int(digest([str(name) for name in names], 8), 16) / 16**8


def top1(cell: Cell, part: float = 1.0) -> float:
    """Made-up accuracy with the shape of the paper's Figure 2."""
    fall = {"transfer": 0.006 * cell.n**2, "transfer+": -0.004 * cell.n, "selffer": 0.012 * min(cell.n, 7 - cell.n)}
    value = 0.62 - fall.get(cell.treatment, 0.0) + 0.02 * (chance(cell.target.label) - 0.5)
    return value * (0.6 + 0.4 * part) + 0.01 * (chance(cell.address, part) - 0.5)


def evaluations(cell: Cell) -> list[Evaluation]:
    """Four of them."""
    return [
        Evaluation(
            step=step,
            epoch=step / 20,
            images=40,
            train_loss=2.0 - step / 40,
            top1=top1(cell, step / 40),
            top5=None,
            loss=1.5 - step / 80,
            lr=0.01,
        )
        for step in (10, 20, 30, 40)
    ]


def make_record(cell: Cell, status: str = "ok") -> Record:
    """A finished cell."""
    history = tuple(evaluations(cell)) if status != "blocked" else ()
    last = history[-1] if history else None
    sha = digest([cell.address, "weights"]) if status == "ok" else None
    return Record(
        cell=cell,
        result=Result(
            status=status,  # type: ignore[arg-type]
            steps=40 if history else 0,
            images_seen=320 if history else 0,
            top1_last=last.top1 if last else None,
            top1_best=last.top1 if last else None,
            top1_mean10=None,
            top5_last=None,
            loss_last=last.loss if last else None,
            frozen_verified=True if cell.frozen else None,
            checkpoint=f"cells/{cell.address}/checkpoint.safetensors" if sha else None,
            checkpoint_sha256=sha,
            history=History.of(history),
            reason=None if status == "ok" else "made up",
        ),
        provenance=Provenance(
            started="2026-01-01T00:00:00+00:00",
            ended="2026-01-01T00:01:00+00:00",
            duration_s=60.0,
            host="toy",
            device="cpu",
            instruction_set="AVX2",
            torch="2.14.1",
            python="3.11",
            raygrid_version="0.1.0",
            commit="0" * 40,
        ),
    )


def log_evaluation(tracker: Tracker, cell: Cell, evaluation: Evaluation) -> None:
    """As training does it."""
    metrics = {
        "train/loss": evaluation.train_loss,
        "test/top1": evaluation.top1,
        "test/loss": evaluation.loss,
        "perf/images_per_s": 1000.0 + evaluation.step,
    }
    tracker.log(cell, evaluation.step, {k: v for k, v in metrics.items() if v is not None})


def train(tracker: Tracker, store: Store, cell: Cell, until: int | None = None, status: str = "ok") -> None:
    """Log a cell's evaluations, and its record unless it stops early."""
    for evaluation in evaluations(cell) if status != "blocked" else ():
        if until is None or evaluation.step <= until:
            log_evaluation(tracker, cell, evaluation)
    if until is None:
        record = make_record(cell, status)
        write_record(store, record)
        tracker.finish(cell, record)


def wait(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until a condition holds; returns what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"did not come true in {seconds} s")


def written(tracker: Tracker) -> bool:
    """Whether the writer has nothing left to write."""
    return tracker._connected and not tracker._points and not tracker._todo


# --- what a server holds ----------------------------------------------------------------------------------


def trials(uri: str, plan: Plan) -> dict[str, Any]:
    """Runs of cells by address, each cell once or this fails."""
    server = Server(uri)
    experiment = server.call("get_experiment_by_name", f"raygrid/{plan.study.name}")
    found: dict[str, Any] = {}
    for run in server.runs(experiment.experiment_id, "tags.`raygrid.kind` = 'trial'"):
        address = run.data.tags["raygrid.cell"]
        assert address not in found, f"two runs of {address}"
        found[address] = run
    return found


def points(uri: str, run: Any) -> dict[tuple[str, int], float]:
    """Every point of a run; fails where a step is there twice."""
    found: dict[tuple[str, int], float] = {}
    server = Server(uri)
    for key in run.data.metrics:
        for point in server.call("get_metric_history", run.info.run_id, key):
            assert (key, point.step) not in found, f"{key} has step {point.step} twice"
            found[key, point.step] = point.value
    return found


def content(uri: str, plan: Plan) -> dict[str, Any]:
    """Everything of an experiment's runs but times and speeds."""
    server = Server(uri)
    experiment = server.call("get_experiment_by_name", f"raygrid/{plan.study.name}")
    found = {}
    for run in server.runs(experiment.experiment_id):
        key = run.data.tags.get("raygrid.cell") or run.data.tags["raygrid.figure"]
        assert key not in found, f"two runs of {key}"
        found[key] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "tags": run.data.tags,
            "points": {k: v for k, v in points(uri, run).items() if not k[0].startswith("perf/")},
            "data": sorted((d.dataset.name, d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs),
        }
    return found


def assert_whole(uri: str, plan: Plan, store: Store, statuses: dict[str, str] | None = None) -> None:
    """Each planned cell has one run with each step once, closed right."""
    found = trials(uri, plan)
    assert found.keys() == plan.by_address.keys()
    for address, run in found.items():
        cell, status = plan.by_address[address], (statuses or {}).get(address, "ok")
        assert run.info.status == ("FINISHED" if status == "ok" else "FAILED"), cell.title
        assert run.data.tags["raygrid.status"] == status
        assert run.data.params["treatment"] == cell.treatment
        have = points(uri, run)
        for evaluation in evaluations(cell) if status != "blocked" else ():
            assert have["test/top1", evaluation.step] == evaluation.top1
            assert have["train/loss", evaluation.step] == evaluation.train_loss
        if status != "blocked":
            assert have["fig2/top1", cell.n] == top1(cell)
            base = cell.treatment == "base"
            assert (("final/delta_vs_base", 0) in have) == (not base), cell.title


# --- servers ----------------------------------------------------------------------------------------------


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A real `mlflow server` process."""

    def __init__(self, folder: Path, backend: str | None = None):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.backend = backend or f"sqlite:///{folder}/server.db"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait_s: float = 90.0) -> MlflowServer:
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "90",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.backend, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                if answer.status == 200:
                    return self
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        raise AssertionError("mlflow server did not start")

    def kill(self) -> None:
        """SIGKILL, the whole process group that was started here."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for all tests that do not hurt it; each uses a study name of its own."""
    running = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        yield running.start()
    finally:
        running.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return Store(str(tmp_path / "store"))


@pytest.fixture
def embedded(tmp_path: Path) -> str:
    """URI of an SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/out/mlflow.db"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables: making them takes longer than most tests."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Server(f"sqlite:///{file}").call("search_experiments")
    return file


@pytest.fixture
def tables(empty_database: Path, tmp_path: Path) -> Callable[[str], str]:
    """Makes the URI of an SQLite file with MLflow's tables."""

    def make(name: str) -> str:
        shutil.copy(empty_database, tmp_path / f"{name}.db")
        return f"sqlite:///{tmp_path}/{name}.db"

    return make


@pytest.fixture
def database(tables: Callable[[str], str]) -> str:
    """URI of one."""
    return tables("mlflow")
