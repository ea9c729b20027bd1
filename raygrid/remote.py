"""`--cluster`: the same launch, as a Ray job on a cluster. The job lives there; this machine asks, watches and fetches.

The study and this machine's code travel with the job, results come back through the store. A job is known by what was
asked: the same command again follows the job that runs, wherever it was started from, and never starts a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raygrid.errors import RaygridError, StoreError
from raygrid.grid import Remote, RemoteJob, live_clusters
from raygrid.store import Store, safe_path, sha256_of
from raygrid.study import study_file

if TYPE_CHECKING:
    from rich.console import Console

MARK = "raygrid-results:"
"""begins the line by which a job says where its results are; it is not shown"""
JOB = "RAYGRID_JOB"
"""environment variable that is set in a job"""
FILES = "files.json"


@dataclass(frozen=True)
class Request:
    """What a launch on a cluster is asked for."""

    cluster: str
    study: str
    """name of the study"""
    text: str
    """the study file"""
    overrides: tuple[str, ...]
    store: str | None
    """None: the cluster's own RAYGRID_STORE"""
    out: Path

    @property
    def digest(self) -> str:
        """The same for the same request."""
        asked = json.dumps([self.text, self.overrides, self.store])
        return hashlib.sha256(asked.encode()).hexdigest()[:12]


def chosen(argument: str | None) -> str | None:
    """The cluster to run on: --cluster, else RAY_ADDRESS where that is a dashboard's (any other address is joined
    directly), else RAYGRID_CLUSTER."""
    address = os.environ.get("RAY_ADDRESS", "")
    if argument:
        return argument
    if address:
        return address if address.startswith(("http://", "https://")) else None
    return os.environ.get("RAYGRID_CLUSTER") or None


def request(
    cluster: str, study: str, named: str | None, overrides: Sequence[str], store: str | None, out: Path
) -> Request:
    """A request in plain values; `named` as `study_file` has it. A store named by RAYGRID_STORE here counts if the
    cluster can know it too."""
    here = os.environ.get("RAYGRID_STORE", "")
    url = store or (here if "://" in here and not here.startswith("file:") else None)
    return Request(cluster, study, study_file(named).read_text(encoding="utf-8"), tuple(overrides), url, out)


def hint(console: Console) -> None:
    """Say so if a cluster of this machine's is up and none was chosen."""
    if os.environ.get("RAY_ADDRESS") or os.environ.get(JOB):
        return
    for file in live_clusters([*sorted(Path().glob("*.yaml")), *sorted(Path("clusters").glob("*.yaml"))]):
        console.print(f"The cluster of {file} is up, but none was chosen: this runs on this machine. To run there:")
        words = [word for word in sys.argv[1:] if word]
        again = shlex.join(["python", "-m", "raygrid.launch", "--cluster", str(file), *words])
        console.print(f"  {again}\n", style="bold", highlight=False, markup=False)


def run(asked: Request, console: Console) -> int:
    """Submit or find the job, follow it to its end, fetch the results; returns the job's exit code."""
    with Remote(asked.cluster) as remote:
        job = _start(remote, asked, console)
        where: list[str] = []

        def show(text: str) -> None:
            for line in text.splitlines(keepends=True):
                if line.startswith(MARK):
                    where.append(line.removeprefix(MARK).strip())
                else:
                    console.file.write(line)
            console.file.flush()

        try:
            job = remote.follow(job.id, show, lambda text: console.print(f"[{text}]", style="yellow", markup=False))
        except KeyboardInterrupt:
            text = f"\nThe job {job.id} goes on. The same command follows it again; to stop it:"
            console.print(text, _stop(asked.cluster, job.id), highlight=False, markup=False)
            raise
    if where:
        _bring(where[-1], asked, console)
    if job.exit_code is not None:
        return job.exit_code
    if job.status == "STOPPED":
        console.print(f"The job {job.id} was stopped.", highlight=False)
        return 130
    return 0 if job.status == "SUCCEEDED" else 1


def _start(remote: Remote, asked: Request, console: Console) -> RemoteJob:
    """The job that does what is asked: the one that runs, or a new one."""
    while True:
        same = [job for job in remote.jobs() if job.labels.get("raygrid.launch") == asked.digest]
        alive = [job for job in same if not job.over]
        if alive:
            console.print(f"Following the job {alive[-1].id}, which runs already.", highlight=False, markup=False)
            return alive[-1]
        id = f"raygrid-{asked.study}-{asked.digest}-{len(same) + 1}"
        command = ["python", "-m", "raygrid.launch", f"{asked.study}.yaml"]
        for override in asked.overrides:
            command += ["--set", override]
        command += ["--store", asked.store] if asked.store else []
        package = Path(__file__).resolve().parent
        with tempfile.TemporaryDirectory(prefix="raygrid-job-") as folder:
            Path(folder, f"{asked.study}.yaml").write_text(asked.text, encoding="utf-8")
            new = remote.submit(
                id,
                f'{shlex.join(command)} --out "$HOME/results"',
                Path(folder),
                [package, *_beside(package, "analysis")],
                {JOB: id, **_commit(package)},
                {"raygrid.launch": asked.digest, "raygrid.study": asked.study},
            )
        if new:
            console.print(f"Submitted the job {id} to {asked.cluster}.", highlight=False, markup=False)
            return remote.job(id)
        # somebody was faster with the same request: follow that


def _beside(package: Path, name: str) -> list[Path]:
    import importlib.util

    found = importlib.util.find_spec(name)
    return [Path(found.origin).parent] if found is not None and found.origin else []


def _commit(package: Path) -> dict[str, str]:
    """The commit of this machine's checkout, which the nodes cannot see."""
    if os.environ.get("RAYGRID_COMMIT"):
        return {"RAYGRID_COMMIT": os.environ["RAYGRID_COMMIT"]}
    if not (package.parent / ".git").exists():
        return {}
    found = subprocess.run(
        ["git", "-C", str(package.parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {"RAYGRID_COMMIT": found.stdout.strip()} if found.returncode == 0 else {}


def _stop(cluster: str, id: str) -> str:
    if "://" in cluster:
        return f"ray job stop --address {cluster} {id}"
    return f"ray exec {cluster} 'ray job stop {id}'"


# --- results by way of the store -------------------------------------------------------------------------------------


def place(study: str) -> str:
    """Where a study's results are in the store."""
    return f"studies/{study}"


def publish(store: Store, folder: Path, study: str) -> None:
    """Put Parquet, report and plan into the store, where others than this machine can have them. A job says where."""
    if store.is_folder and JOB not in os.environ:
        return
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(folder).as_posix()
            sums[name] = sha256_of(path.read_bytes())
            store.put_file(f"{place(study)}/{name}", path)
    store.put(f"{place(study)}/{FILES}", json.dumps(sums, indent=1).encode())
    if JOB in os.environ:
        print(f"{MARK} {store.url}", flush=True)


def fetch(store: Store, study: str, folder: Path) -> list[Path]:
    """Bring a study's results from the store into a folder, verified. Raises StoreError."""
    try:
        listed = json.loads(store.get(f"{place(study)}/{FILES}"))
        sums = {safe_path(str(name)): str(sha256) for name, sha256 in dict(listed).items()}
    except FileNotFoundError:
        raise StoreError(f"store {store.url}: it holds no results of study {study}") from None
    except (ValueError, TypeError) as error:
        raise StoreError(f"store: {store.uri(place(study))}/{FILES} is not a list of files ({error})") from None
    for name, sha256 in sums.items():
        store.get_file(f"{place(study)}/{name}", folder / name, sha256)
    return [folder / name for name in sums]


def _bring(url: str, asked: Request, console: Console) -> None:
    folder = asked.out / asked.study
    there = Path(url.removeprefix("file://"), place(asked.study), FILES)
    try:
        if url.startswith("file://") and not there.is_file():  # to open such a store would make it here
            raise StoreError("the store is a folder of the cluster's machines, which this one does not share")
        files = fetch(Store(url), asked.study, folder)
    except (RaygridError, OSError) as error:
        console.print(
            f"The results are in {url}/{place(asked.study)}, but this machine cannot fetch them: {error}",
            style="yellow",
            markup=False,
        )
        if "://" not in asked.cluster:
            again = f"ray rsync-down {asked.cluster} results/{asked.study}/ {folder}/"
            console.print(f"By way of the head: {again}", highlight=False, markup=False)
        return
    console.print(f"fetched  {len(files)} files into {folder}", highlight=False, markup=False)
