"""The only file that knows Ray. Cohorts become Tune trials; a search algorithm of ours hands them out.

Tune schedules, reserves devices, retries and restarts; it keeps nothing that matters. State lives in our store, so the
driver can die and be started again anywhere. `run_in_process` trains the same cohorts with no Ray at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import psutil

from raygrid.cell import Cell
from raygrid.cost import DEVICES, Meter, device, kind_of, seconds
from raygrid.errors import EnvironmentError_, RaygridError, StoreError, UserError, first_line
from raygrid.plan import Agenda, Cohort, Plan, addresses
from raygrid.prices import bootstrap, node_types
from raygrid.record import Record, find_record
from raygrid.store import LEASE_DEAD_S, Store
from raygrid.study import FROZEN, Execution

logger = logging.getLogger(__name__)

LEAST = "T4"
"""what a GPU that `cost` does not know is taken for: none is slower there, or has less memory"""
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""there where the driver of an NVIDIA GPU is loaded"""


class Watcher(Protocol):
    """Who is told what happens while the grid runs: the display and the tracker, through the launch."""

    def logged(self, cell: Cell, step: int, metrics: dict[str, float]) -> None:
        """An evaluation of a cell in training."""

    def recorded(self, record: Record) -> None:
        """A cell is finished."""

    def failed(self, cell: Cell, why: str) -> None:
        """A cell could not be trained in this launch."""

    def started(self, cohort: Cohort, where: str) -> None:
        """A cohort begins on a device."""

    def ended(self, cohort: Cohort) -> None:
        """A cohort no longer runs."""

    def traced(self, cell: Cell, text: str) -> None:
        """Where in the code a cell failed, for the log."""

    def note(self, text: str) -> None:
        """Something a person should know."""


@dataclass
class Grid:
    """A plan in execution: what is left, where results go, who is told."""

    plan: Plan
    agenda: Agenda
    store: Store
    watcher: Watcher
    trouble: RaygridError | None = None
    """what ended the grid early"""
    outcomes: dict[str, str] = field(init=False)
    """status of every cell that has come to an end, in this launch or before, by address"""
    told: set[str] = field(default_factory=set)
    """cells whose record the watcher has seen"""
    stop: bool = False
    """somebody asked to stop"""

    def __post_init__(self) -> None:
        self.outcomes = dict(self.agenda.done)

    @property
    def over(self) -> bool:
        return self.agenda.over or self.trouble is not None or self.stop

    def take(self) -> Cohort | None:
        """The next cohort; cells whose base came to nothing are recorded as blocked on the way."""
        with self._surviving():
            self._block()
        return None if self.trouble else self.agenda.take()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """A store that refuses ends the grid with its message; Tune would make a traceback of it."""
        try:
            yield
        except RaygridError as error:
            self.trouble = self.trouble or error

    def event(self, event: Sequence[Any]) -> None:
        """One thing that a trial reported."""
        kind, *rest = event
        if kind == "log":
            address, step, metrics = rest
            self.watcher.logged(self.plan.by_address[address], step, metrics)
        elif kind == "trace":
            self.watcher.traced(self.plan.by_address[rest[0]], rest[1])
        elif kind == "done":
            self._tell(Record.model_validate_json(rest[0]))

    def _tell(self, record: Record) -> None:
        if record.cell.address not in self.told:
            self.told.add(record.cell.address)
            self.watcher.recorded(record)

    def finish(self, cohort: Cohort, outcomes: dict[str, str]) -> None:
        """A cohort has ended; a cell without an outcome is another launch's for now."""
        self.watcher.ended(cohort)
        with self._surviving():
            for cell in cohort.cells:
                outcome = outcomes.get(cell.address)
                if outcome is None:
                    continue
                if outcome.startswith("failed"):
                    self.watcher.failed(cell, outcome.removeprefix("failed: "))
                elif cell.address not in self.told:  # recorded by another launch, or by an attempt whose word was lost
                    record = find_record(self.store, cell)
                    if record is not None:
                        self._tell(record)
        self.outcomes |= outcomes
        self.agenda.finish(cohort, outcomes)
        with self._surviving():
            self._block()

    def _block(self) -> None:
        while self.agenda.blocked:
            from raygrid.train import block  # brings torch, which the driver needs for nothing else

            cell = self.agenda.blocked.pop()
            assert cell.base is not None
            why = f"its base {cell.base.title} has no usable weights"
            record = block(cell, why, self.store, lasting=self.outcomes.get(cell.base.address) == "diverged")
            if record is None:
                self.watcher.failed(cell, why)
            else:
                self._tell(record)


PATIENCE_S = 2 * LEASE_DEAD_S
"""how long a cohort that another launch trains is waited for when nothing else can be done: enough to see it die"""


# --- in this process -------------------------------------------------------------------------------------------------


def in_process_device(execution: Execution) -> str:
    """`cpu` or `cuda`: where `run_in_process` trains."""
    import torch

    return _device(execution, torch.cuda.is_available())


def in_process_kind(execution: Execution) -> tuple[str | None, int | None]:
    """Device kind for predictions of `run_in_process`; None for a GPU that `cost` does not know, and then most of the
    bytes that are free there."""
    if in_process_device(execution) == "cpu":
        return "cpu", None
    import torch

    kind = kind_of(torch.cuda.get_device_name())
    return kind, None if kind else int(0.9 * torch.cuda.mem_get_info()[0])


def usable_gpu() -> bool:
    """Whether PyTorch can use a GPU here. Raises EnvironmentError_ where the machine has one and PyTorch cannot use it:
    hours on the CPU of a machine that is paid for its GPU help nobody."""
    import torch

    usable = torch.cuda.is_available()
    if not usable and NVIDIA_DRIVER.exists():
        raise EnvironmentError_(
            f"{socket.gethostname()} has a GPU that PyTorch {torch.__version__} cannot use (its driver is too old, or "
            "PyTorch was built without CUDA); choose another image, or execution.device: cpu"
        )
    return usable


def _share(kind: str | None, execution: Execution) -> str | None:
    """What one trial has of a GPU of a kind, in the words of `cost.device`."""
    return kind if kind is None or execution.gpu >= 1 else f"{execution.gpu:g} {kind}"


def run_in_process(grid: Grid, execution: Execution) -> None:
    """Train cohort after cohort here, without Ray."""
    import torch

    from raygrid.train import Interrupted

    device = torch.device(in_process_device(execution))
    while not grid.over:
        cohort = grid.take()
        if cohort is None:
            break
        grid.watcher.started(cohort, str(device))
        try:
            outcomes = _train(cohort.cells, grid.plan, grid.store, device, cohort.again, grid.event, lambda: grid.stop)
        except StoreError as error:
            grid.trouble = error
            return
        except Interrupted:
            return
        except torch.AcceleratorError as error:
            grid.trouble = EnvironmentError_(f"{device} failed: {first_line(error)}; what is done is kept")
            return
        grid.finish(cohort, outcomes)


def _device(execution: Execution, gpus: bool) -> str:
    if execution.device == "cuda" and not gpus:
        raise EnvironmentError_("execution.device: cuda was asked for, but no GPU is here (allowed: auto, cpu)")
    return "cuda" if gpus and execution.device != "cpu" else "cpu"


def _train(
    cells: Sequence[Cell],
    plan: Plan,
    store: Store,
    device: Any,
    again: bool,
    event: Callable[[Sequence[Any]], None],
    stop: Callable[[], bool],
) -> dict[str, str]:
    """A cohort's training, the same in every back end."""
    from raygrid.train import Bench, train_cohort

    bench = Bench(
        store=store,
        facts=plan.facts,
        device=device,
        log=lambda cell, step, metrics: event(("log", cell.address, step, metrics)),
        done=lambda record: event(("done", record.model_dump_json())),
        trace=lambda cell, text: event(("trace", cell.address, text)),
        alive=lambda: event(("alive",)),
        stop=stop,
        patience=PATIENCE_S if again else 0.0,
    )
    return train_cohort(cells, bench)


# --- Ray -------------------------------------------------------------------------------------------------------------

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""the driver's, for the workers: Tune would put them on the workers' command lines, where everybody can read them"""
TOKEN = Path.home() / ".ray" / "auth_token"


@dataclass(frozen=True)
class Cluster:
    """What Ray has, now and at most (an autoscaling cluster starts its workers when trials wait for them)."""

    nodes: int
    cpus: float
    gpus: float
    most_cpus: float
    most_gpus: float
    local: bool
    """started by this process"""
    gpu: str | None = None
    """kind of its GPUs, if it is one that `cost` knows"""

    def devices(self, execution: Execution, threads: int) -> int:
        """Trials that can run at a time."""
        if self.most_gpus and execution.device != "cpu":
            share = execution.gpu  # a trial's part of a GPU lies on one GPU
            return max(1, int(self.most_gpus) * int(1 / share) if share < 1 else int(self.most_gpus // share))
        return max(1, int(self.most_cpus // threads))

    def kind(self, execution: Execution) -> str | None:
        """Device kind for predictions (a key of `cost.DEVICES`); None for GPUs that it does not know."""
        if not self.most_gpus or execution.device == "cpu":
            return "cpu"
        return _share(self.gpu, execution)

    def memory(self, execution: Execution) -> int | None:
        """Bytes to plan with on GPUs that `cost` does not know; None where it knows them."""
        least = _share(LEAST, execution)
        return device(least).memory if least and self.kind(execution) is None else None


def _settle() -> str | None:
    """Set Ray's environment for this process, before anything of Ray is imported (it reads the token then); returns
    the address of the cluster to join, or None for a local one, whose token is made here."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    asked = os.environ.get("RAY_ADDRESS")
    address = None if asked == "local" else asked or _started_here()
    if address is None:  # else its servers would listen on every interface of the machine
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if address is None and "RAY_AUTH_TOKEN" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif TOKEN.exists() or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is not None and os.environ.get("RAY_AUTH_MODE") != "token":
        _warn_of(address)
    _read_again()
    return address


@cache
def _warn_of(address: str) -> None:
    """Say once that a cluster lets everybody in, unless this machine alone can reach it."""
    host = (urlsplit(address if "://" in address else f"//{address}").hostname or "").partition("%")[0]
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    logger.warning(
        "warning: Ray at %s is joined without a token: whoever reaches it over the network can run code on its "
        "machines and on this one. Start it with RAY_AUTH_MODE=token (clusters/README.md)",
        address,
    )


def _read_again() -> None:
    """Ray reads mode and token of authentication once a process; if it did before they were set, have it look again."""
    if "ray" in sys.modules and not sys.modules["ray"].is_initialized():
        with contextlib.suppress(ImportError, AttributeError):
            from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

            Config.initialize("")
            AuthenticationTokenLoader.instance().reset_cache()


def _gpus() -> int | None:
    """0 where this machine's GPU is of no use to PyTorch, so that its cores are used; None: Ray counts them."""
    try:
        if NVIDIA_DRIVER.exists():
            usable_gpu()
    except EnvironmentError_ as error:
        logger.warning("%s; going on without it", error)
        return 0
    return None


def connect() -> Cluster:
    """Join the cluster named by RAY_ADDRESS or running on this machine (`ray up`, `ray start`); else start a local one.

    A local Ray is private to this launch: it uses token authentication with a token of its own, which is handed to its
    processes in the environment and written nowhere.
    """
    address = _settle()
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    mask = os.umask(0o077)
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            memory = 128 * 2**20  # data reach trials as memory-mapped files
            ray.init(address="local", include_dashboard=False, object_store_memory=memory, num_gpus=_gpus(), **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        why = first_line(error)
        if address is None:
            raise EnvironmentError_(f"Ray cannot be started on this machine: {why}") from None
        raise EnvironmentError_(
            f"cannot connect to Ray at {address}: {why}. Check RAY_ADDRESS and, for a cluster with token "
            "authentication, RAY_AUTH_MODE=token and the token file; or unset RAY_ADDRESS to use this machine"
        ) from None
    finally:
        os.umask(mask)
    have = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    cpus, gpus = float(have.get("CPU", 0)), float(have.get("GPU", 0))
    most_cpus, most_gpus = _most() if address else (0.0, 0.0)
    kinds = [name.removeprefix("accelerator_type:") for name in have if name.startswith("accelerator_type:")]
    gpu = next((kind for kind in kinds if kind in DEVICES), _coming() if address else None)
    return Cluster(nodes, cpus, gpus, max(cpus, most_cpus), max(gpus, most_gpus), address is None, gpu)


def _started_here() -> str | None:
    """Address of the cluster that `ray start` (or `ray up`) runs on this machine, from the note that it keeps. Not
    `address="auto"`, which also finds, and waits behind, the private Ray of any other launch. Nor another user's: the
    note lies where everybody may write, and what is joined is told the token and the store's credentials."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108
    try:
        with _ours(note) as file:
            address = file.read().strip()
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=2) as joined:
            there = str(joined.getpeername()[0]), str(joined.getsockname()[0])
    except PermissionError as error:
        logger.warning("warning: %s: %s; the Ray that it names is not joined", note, error.strerror)
        return None
    except (OSError, ValueError):
        return None
    if there[0] == there[1] or ipaddress.ip_address(there[0].partition("%")[0]).is_loopback:  # on this machine
        owners = _listeners(int(port))
        if not owners or owners - {0, os.getuid()}:
            logger.warning("warning: what listens at %s is another user's; it is not joined", address)
            return None
    return address


def _ours(path: Path) -> IO[str]:
    """Open a file that lies where everybody may write, if it is one of this user or of root, and theirs alone to
    change. Raises PermissionError if it is not."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(handle)
    if stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.getuid()) and not found.st_mode & stat.S_IWOTH:
        return os.fdopen(handle)
    os.close(handle)
    raise PermissionError(errno.EPERM, "not a file of this user or root alone", str(path))


def _listeners(port: int) -> set[int]:
    """Users whose programs listen on a port of this machine, as far as this one may know."""
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    if tables:  # local address, remote address, state (0A listens), ..., user
        return {int(row[7]) for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = process.net_connections("tcp")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in here):
                found.add(process.uids().real)
    return found


def _most() -> tuple[float, float]:
    """CPUs and GPUs that the autoscaler of a `ray up` cluster may bring, from the file that it reads on the head: the
    most of each, were the machines that it may have in all of the kinds with most of it."""
    import yaml

    path = bootstrap()
    if not path.exists():
        return 0.0, 0.0
    config = yaml.safe_load(path.read_text()) or {}
    limit = config.get("max_workers", 0)
    kinds = config.get("available_node_types") or {}
    workers = [kind for name, kind in kinds.items() if name != config.get("head_node_type")]

    def most(resource: str) -> float:
        each = [kind.get("resources", {}).get(resource, 0) for kind in workers for _ in range(count(kind))]
        return float(sum(sorted(each, reverse=True)[:limit]))

    def count(kind: dict[str, Any]) -> int:
        return min(kind.get("max_workers", limit), limit)

    return most("CPU"), most("GPU")


def _coming() -> str | None:
    """Kind of the GPUs that the autoscaler will bring, if it is one kind and `prices` knows it."""
    path = bootstrap()
    with contextlib.suppress(UserError):
        nodes = node_types(path) if path.exists() else []
        kinds = {node.kind for node in nodes if not node.head and node.kind != "cpu"}
        return kinds.pop() if len(kinds) == 1 else None
    return None


def disconnect() -> None:
    """Leave the cluster; a local one ends.

    No thread may find an object of Ray's in its rubbish meanwhile: to let one go while the core worker shuts down ends
    the process, without a word of Python's (core_worker_process.cc, `GetCoreWorker`).
    """
    import gc

    import ray

    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def check_store(store: Store, cluster: Cluster) -> None:
    """A folder as the store of several machines must be one that all of them see. Raises EnvironmentError_."""
    if not store.is_folder or cluster.nodes < 2:
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = f"check/{os.getpid()}-{time.time_ns()}"
    store.put(marker, b"raygrid")

    @ray.remote(num_cpus=0)
    def sees() -> bool:
        return store.exists(marker)

    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        tasks = [
            sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
            for node in alive
        ]
        blind = [node["NodeManagerHostname"] for node, ok in zip(alive, ray.get(tasks), strict=True) if not ok]
    finally:
        store.delete(marker)
    if blind:
        raise EnvironmentError_(
            f"store {store.url}: a folder that {', '.join(blind)} of the cluster cannot see; "
            "give a store that all nodes reach, as in --store s3://bucket/prefix (or RAYGRID_STORE)"
        )


def trial_config(cell: Cell) -> dict[str, Any]:
    """A trial of one cell in plain words: the literal form of the study's grid."""
    seed = cell.target.split_seed
    return {
        "split": cell.target.split if seed is None else f"{cell.target.split}{seed}",
        "source": cell.source.half if cell.source else None,
        "target": cell.target.half,
        "n": cell.n,
        "treatment": cell.treatment.removesuffix("+"),
        "fine_tune": cell.n > 0 and cell.treatment not in FROZEN,
        "seed": cell.seed,
        **({"preserve": cell.preserved} if cell.preserved else {}),
    }


def run_on_ray(grid: Grid, execution: Execution, cluster: Cluster) -> None:
    """Run the grid as Tune trials, each holding a GPU, a fraction of one, or CPUs where the cluster has no GPU."""
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner, with_parameters, with_resources
    from ray.tune.execution import class_cache

    gpus = bool(cluster.most_gpus)
    device = _device(execution, gpus)
    threads = max(block.recipe.numerics.threads for block in grid.plan.study.blocks)
    resources = {"gpu": execution.gpu, "cpu": 1} if device == "cuda" else {"cpu": threads}
    workers = cluster.devices(execution, threads)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers + 1)
    scratch, held = _scratch()
    search, callback = _tune_parts(grid, cluster.kind(execution) or LEAST)
    class_cache.ENV_VARS_TO_PROPAGATE = class_cache.ENV_VARS_TO_PROPAGATE - set(_CREDENTIALS)
    trainable = with_parameters(
        _trial,
        plan=grid.plan,
        url=grid.store.url,
        literal=execution.cohort == 1,
        credentials={name: os.environ[name] for name in _CREDENTIALS if name in os.environ},
    )
    try:
        tuner = Tuner(
            with_resources(trainable, resources),
            tune_config=TuneConfig(search_alg=search, num_samples=-1, reuse_actors=True, metric=None),
            run_config=RunConfig(
                name="grid",
                storage_path=scratch,
                verbose=0,
                callbacks=[callback],
                failure_config=FailureConfig(max_failures=execution.retries),
                checkpoint_config=CheckpointConfig(checkpoint_frequency=0),
            ),
        )
        tuner.fit()
    except Exception as error:  # of Tune itself: what trials raise does not come here
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentError_(
            f"Ray gave up: {text[-1]}; what was finished is in the store, the same command goes on from there"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        held.close()


def _scratch() -> tuple[str, IO[str]]:
    """A folder for what Tune insists on writing, and the file by which this process holds it. Folders that nobody
    holds any more, since their driver was killed, are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/held"):
        with contextlib.suppress(OSError), _ours(old) as handle:
            if old.parent.lstat().st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old.parent, ignore_errors=True)
    scratch = tempfile.mkdtemp(prefix=SCRATCH)
    held = Path(scratch, "held.new").open("w")  # noqa: SIM115 - held until the grid ends
    fcntl.flock(held, fcntl.LOCK_EX)
    Path(scratch, "held.new").rename(Path(scratch, "held"))
    return scratch, held


def _trial(config: dict[str, Any], plan: Plan, url: str, literal: bool, credentials: dict[str, str]) -> None:
    """What runs on a worker: the cohort named by the config, on the device that Ray reserved."""
    os.environ |= credentials
    import torch
    from ray import tune

    logging.getLogger("raygrid").setLevel(logging.INFO)
    again = bool(config.pop("again", False))
    cells = _cells(config, plan, literal)
    reserved = tune.get_context().get_trial_resources().required_resources.get("GPU", 0)
    events: list[Sequence[Any]] = []
    sent = time.monotonic()

    def event(one: Sequence[Any]) -> None:
        nonlocal sent
        events.append(one)
        if time.monotonic() - sent > 0.5 or one[0] == "alive":
            tune.report({"events": events.copy()})
            events.clear()
            sent = time.monotonic()

    try:
        device = torch.device("cuda" if reserved and usable_gpu() else "cpu")
        outcomes = _train(cells, plan, Store(url), device, again, event, lambda: False)
    except (StoreError, EnvironmentError_) as error:
        tune.report({"events": events, "trouble": str(error)})
        return
    tune.report({"events": events, "outcomes": outcomes})


def _cells(config: dict[str, Any], plan: Plan, literal: bool) -> list[Cell]:
    if not literal:
        return [plan.by_address[address] for address in config["cohort"]]
    asked = {key: value for key, value in config.items() if key != "cell"}
    found = [cell for cell in plan.cells if trial_config(cell) == asked and config.get("cell") in (None, cell.address)]
    assert len(found) == 1, f"{len(found)} cells for {config}"
    return found


SCRATCH = "raygrid-tune-"
HUNG_S = 600.0
HUNG_TIMES = 20.0
"""a trial in training that reports nothing for so long, and for so many times the time predicted for its cohort from
one test to the next, hangs"""
FETCH_S = 6 * 3600.0
"""the same for a trial that has not begun to train: it may be fetching a large data set"""


def _tune_parts(grid: Grid, kind: str) -> tuple[Any, Any]:
    """The search algorithm that hands out cohorts and the callback that hears of trials, made here since Tune is slow
    to import. Both stay in the driver; what Tune pickles of them is empty. `kind` of device is for predictions."""
    import ray
    from ray.tune import Callback
    from ray.tune.search import Searcher

    cohorts: dict[str, Cohort] = {}
    outcomes: dict[str, dict[str, str]] = {}
    fallen: dict[str, Cohort] = {}
    live: dict[str, Any] = {}
    heard: dict[str, float] = {}
    still: set[str] = set()
    patience: dict[str, float] = {}
    meter = Meter(grid.plan.facts)
    literal = grid.plan.study.execution.cohort == 1
    twins: dict[str, int] = {}
    if literal:
        for cell in grid.plan.cells:
            key = repr(trial_config(cell))
            twins[key] = twins.get(key, 0) + 1

    def give_up(cohort: Cohort, why: str) -> None:
        grid.finish(cohort, dict.fromkeys(addresses(cohort.cells), f"failed: its trial was lost ({why})"))

    class CohortSearch(Searcher):  # type: ignore[misc]
        """Hands out a cohort as soon as the bases that it needs have records, and none before."""

        def __init__(self) -> None:
            super().__init__()

        def suggest(self, trial_id: str) -> Any:
            cohort = grid.take()
            if cohort is None:
                return Searcher.FINISHED if grid.over else None
            cohorts[trial_id] = cohort
            tests = min(cell.recipe.evaluations for cell in cohort.cells)
            patience[trial_id] = HUNG_TIMES * seconds(cohort.cells, meter, kind) / tests
            again = {"again": True} if cohort.again else {}
            if not literal:
                return {"cohort": [cell.address for cell in cohort.cells], **again}
            config = trial_config(cohort.cells[0])
            twin = twins[repr(config)] > 1
            return {**config, **({"cell": cohort.cells[0].address} if twin else {}), **again}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            live.pop(trial_id, None)
            if trial_id in cohorts:
                cohort = cohorts.pop(trial_id)
                if trial_id in outcomes:
                    grid.finish(cohort, outcomes.pop(trial_id))
                elif error:
                    fallen[trial_id] = cohort  # on_trial_error, which knows why, is next
                else:
                    give_up(cohort, "it ended without a word")

        def save(self, checkpoint_path: str) -> None: ...

        def restore(self, checkpoint_path: str) -> None: ...

        def __reduce__(self) -> Any:
            return _nothing, ()

    class Ears(Callback):  # type: ignore[misc]
        """Passes on what trials report, and notices those that report nothing."""

        looked = float("inf")

        def __reduce__(self) -> Any:
            return _nothing, ()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            live[trial.trial_id], heard[trial.trial_id] = trial, time.monotonic()
            still.add(trial.trial_id)
            if trial.trial_id in cohorts:
                grid.watcher.started(cohorts[trial.trial_id], trial.trial_id)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            heard[trial.trial_id] = time.monotonic()
            still.discard(trial.trial_id)
            for event in result.get("events", ()):
                grid.event(event)
            if "outcomes" in result:
                outcomes[trial.trial_id] = result["outcomes"]
            if "trouble" in result and grid.trouble is None:
                grid.trouble = StoreError(result["trouble"])

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if trial.trial_id in fallen:
                text = str(trial.get_error() or "").strip().splitlines()
                give_up(fallen.pop(trial.trial_id), text[-1] if text else "its worker died")

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            """End the workers of trials that hang; Tune then tries them again, as those of a lost machine."""
            now = time.monotonic()
            asleep = now - self.looked if now - self.looked > 5 else 0.0  # this driver was stopped: nobody else hung
            self.looked = now
            for name, trial in list(live.items()):
                heard[name] += asleep
                limit = FETCH_S if name in still else max(HUNG_S, patience.get(name, 0.0))
                if name in cohorts and now - heard[name] > limit:
                    minutes = (now - heard[name]) / 60
                    grid.watcher.note(f"{cohorts[name].title}: no word for {minutes:.0f} minutes; its worker is ended")
                    heard[name] = now
                    if trial.temporary_state.ray_actor is not None:
                        ray.kill(trial.temporary_state.ray_actor)

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            live.pop(trial.trial_id, None)
            if trial.trial_id in cohorts:
                grid.watcher.note(f"{cohorts[trial.trial_id].title}: its worker was lost; trying again")

    return CohortSearch(), Ears()


def _nothing() -> None:
    """What Tune gets where it wants to pickle parts that stay in the driver: it never restores them."""


def ray_map(function: Callable[[Any], Any], items: Iterable[Any], at_once: int | None = None) -> Iterator[Any]:
    """Results of a function over items, as they come, from tasks of one CPU each: `at_once` of them, or two for every
    CPU of the cluster, so that an autoscaler sees that some wait. A task whose machine is lost is tried again, three
    times. Raises what the function raised, and EnvironmentError_ where Ray lost a task for good."""
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    most = at_once or max(2, int(2 * ray.cluster_resources().get("CPU", 1)))
    waiting = iter(items)
    running = [remote.remote(item) for item in islice(waiting, most)]
    while running:
        (ready,), running = ray.wait(running)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise EnvironmentError_(
                f"a task on Ray was lost four times ({first_line(error)}); run the same command again to go on"
            ) from None
        running += [remote.remote(item) for item in islice(waiting, 1)]


# --- Ray jobs: a launch that runs on a cluster, asked for from elsewhere ----------------------------------------------

JOB_PATIENCE_S = 15.0
"""how long to wait before a lost connection to a cluster is made again; it is for ever, since laptops sleep"""


@dataclass(frozen=True)
class RemoteJob:
    """What a cluster knows of one of its jobs."""

    id: str
    status: str
    exit_code: int | None
    labels: dict[str, str]

    @property
    def over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class Remote:
    """A cluster that takes jobs: named by its `ray up` file and reached through the tunnel that `ray dashboard` makes,
    or by the address of its dashboard (`http://...`)."""

    def __init__(self, cluster: str):
        self.cluster = cluster
        self.tunnel: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    def __enter__(self) -> Remote:
        try:
            self.connect()
        except BaseException:  # Ctrl-C too: the tunnel is in a session of its own
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Reach the cluster. Raises EnvironmentError_ with what to do."""
        if TOKEN.exists() or os.environ.get("RAY_AUTH_TOKEN"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        self.close()
        if "://" in self.cluster:
            self._client = self._ask(self.cluster)
            return
        if not Path(self.cluster).is_file():
            raise EnvironmentError_(
                f"--cluster {self.cluster}: no such file (give a file of `ray up`, or http://HOST:8265)"
            )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", self.cluster, "--port", str(port)]
        with tempfile.TemporaryFile() as log:
            self.tunnel = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            until = time.monotonic() + 90
            while time.monotonic() < until and self.tunnel.poll() is None:
                time.sleep(0.5)
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
            try:
                self._client = self._ask(f"http://127.0.0.1:{port}")
            except _Unreachable:
                self.close()
                log.seek(0)
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
                raise _Unreachable(
                    f"cluster {self.cluster}: no tunnel to its head ({' '.join(lines[-3:])[-400:] or 'no answer'}). "
                    f"Is it up? ray up {self.cluster}"
                ) from None

    def _ask(self, address: str) -> Any:
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", JobSubmissionClient.__module__):
            logging.getLogger(name).setLevel(logging.WARNING)
        names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # Ray would prefer them to the address given
        hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            return JobSubmissionClient(address)
        except (ConnectionError, OSError) as error:
            raise _Unreachable(f"cluster {self.cluster}: {address} does not answer ({error})") from None
        except RuntimeError as error:
            raise self._refused(error) from None
        finally:
            os.environ |= hidden

    def _refused(self, error: Exception) -> EnvironmentError_:
        text = " ".join(str(error).split())
        if "401" in text or "403" in text or "uthentication" in text:
            return EnvironmentError_(
                f"cluster {self.cluster} refuses this machine: its Ray token is missing here or another one. "
                f"Copy the token that the cluster was started with to {TOKEN} (mode 600), or set RAY_AUTH_TOKEN"
            )
        return EnvironmentError_(f"cluster {self.cluster}: {text[:400]}")

    def close(self) -> None:
        """Let go of the tunnel; the job goes on."""
        if self.tunnel is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.tunnel.pid, signal.SIGTERM)
            self.tunnel.wait()
            self.tunnel = None

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            return getattr(self._client, method)(*arguments, **named)
        except (ConnectionError, OSError) as error:
            raise _Unreachable(f"cluster {self.cluster} does not answer ({error})") from None
        except RuntimeError as error:
            raise self._refused(error) from None

    def jobs(self) -> list[RemoteJob]:
        """All jobs that raygrid submitted, oldest first."""
        found = [job for job in self._call("list_jobs") if (job.metadata or {}).get("raygrid.launch")]
        return [_remote_job(job) for job in sorted(found, key=lambda job: job.start_time or 0)]

    def job(self, id: str) -> RemoteJob:
        return _remote_job(self._call("get_job_info", id))

    def submit(
        self, id: str, command: str, folder: Path, modules: Sequence[Path], env: dict[str, str], labels: dict[str, str]
    ) -> bool:
        """Start a job in a copy of a folder, with the code given; False if there is a job of that id already."""
        runtime = {
            "working_dir": str(folder),
            "py_modules": [str(module) for module in modules],
            "excludes": ["**/__pycache__"],
            "env_vars": env,
        }
        try:
            self._client.submit_job(entrypoint=command, submission_id=id, runtime_env=runtime, metadata=labels)
        except (ConnectionError, OSError) as error:
            raise _Unreachable(f"cluster {self.cluster} does not answer ({error})") from None
        except RuntimeError as error:
            if "already" in str(error):
                return False
            raise self._refused(error) from None
        return True

    def follow(self, id: str, show: Callable[[str], None], note: Callable[[str], None]) -> RemoteJob:
        """Pass on a job's output until it ends. A lost connection is made again, and nothing is shown twice."""
        shown = 0
        lost = False

        def fresh(start: int, text: str) -> None:
            nonlocal shown
            if start + len(text) > shown:
                show(text[max(0, shown - start) :])
                shown = start + len(text)

        while True:
            try:
                if lost:
                    self.connect()
                    note("connected again")
                    lost = False
                asyncio.run(self._tail(id, fresh))
                job = self.job(id)
                if job.over:
                    return job
                time.sleep(1)
            except _Unreachable as error:
                if not lost:
                    note(f"{error}. The job goes on without this machine; trying again")
                lost = True
                time.sleep(JOB_PATIENCE_S)

    async def _tail(self, id: str, found: Callable[[int, str], None]) -> None:
        """A job's output from its beginning, with where each piece starts, as long as there may be more."""
        pieces = self._client.tail_job_logs(id).__aiter__()
        start = 0
        while True:
            piece = asyncio.ensure_future(pieces.__anext__())
            while not (await asyncio.wait({piece}, timeout=JOB_PATIENCE_S))[0]:
                await self._ping(id)
            try:
                text = piece.result()
            except StopAsyncIteration:
                return
            except Exception as error:
                raise _Unreachable(f"cluster {self.cluster}: the connection was lost ({error})") from None
            found(start, text)
            start += len(text)

    async def _ping(self, id: str) -> None:
        """Nothing came for a while: the job is silent, or the connection is dead."""
        try:
            await asyncio.wait_for(asyncio.to_thread(self.job, id), JOB_PATIENCE_S)
        except TimeoutError:
            self.close()
            raise _Unreachable(f"cluster {self.cluster} does not answer") from None


class _Unreachable(EnvironmentError_):
    """Nobody answers, for now."""


def _remote_job(job: Any) -> RemoteJob:
    return RemoteJob(job.submission_id or "", str(job.status.value), job.driver_exit_code, dict(job.metadata or {}))


def live_clusters(files: Iterable[Path], seconds: float = 5.0) -> list[Path]:
    """Those files of `ray up` that this machine has started a cluster from which has a head now.

    Only clusters that Ray remembers here are asked for; for a cloud that is a request to it, hence the time limit.
    """
    from concurrent.futures import ThreadPoolExecutor, wait

    if not any(Path(tempfile.gettempdir()).glob("ray-config-*")):
        return []
    _settle()
    known = [(file, config) for file in files if (config := _remembered(file))]
    if not known:
        return []
    pool = ThreadPoolExecutor(len(known))
    asked = {pool.submit(_has_head, config): file for file, config in known}
    done, _ = wait(asked, timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return [file for future, file in asked.items() if future in done and not future.exception() and future.result()]


def _remembered(file: Path) -> dict[str, Any] | None:
    """What Ray keeps of a file that `ray up` was run with on this machine."""
    import yaml

    try:
        config = yaml.safe_load(file.read_text())
        if not isinstance(config, dict) or not {"cluster_name", "provider"} <= config.keys():
            return None
        from ray.autoscaler._private.util import prepare_config

        text = json.dumps([prepare_config(config)], sort_keys=True)
        kept = Path(tempfile.gettempdir()) / f"ray-config-{hashlib.sha256(text.encode()).hexdigest()}"
        with _ours(kept) as known:  # it can name a class to import
            found = json.loads(known.read())["config"]
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def _has_head(config: dict[str, Any]) -> bool:
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND

    provider = _get_node_provider(config["provider"], config["cluster_name"])
    return bool(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}))
