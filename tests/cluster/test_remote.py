"""A launch on a cluster, without one: what is submitted, followed, found again and fetched."""

from __future__ import annotations

import asyncio
import contextlib
import io
import subprocess
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raygrid import grid, launch, remote
from raygrid.errors import EnvironmentError_, StoreError
from raygrid.store import Store
from tests.cluster.conftest import STUDY


class Head:
    """The part of Ray's job server that is used; every second connection breaks after some lines."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.lines = [f"line {number}\n" for number in range(7)]
        self.breaks = 0
        self.tails = 0

    def list_jobs(self) -> list[Any]:
        return list(self.jobs.values())

    def get_job_info(self, id: str) -> Any:
        return self.jobs[id]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: Any) -> str:
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        text = {path.name: path.read_text() for path in Path(runtime_env["working_dir"]).iterdir()}
        self.jobs[submission_id] = types.SimpleNamespace(
            submission_id=submission_id, status=types.SimpleNamespace(value="RUNNING"), driver_exit_code=None,
            metadata=metadata, start_time=len(self.jobs), entrypoint=entrypoint, runtime_env=runtime_env, text=text,
        )  # fmt: skip
        return submission_id

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        self.tails += 1
        for number, line in enumerate(self.lines):
            await asyncio.sleep(0)
            if self.breaks and number == 3:
                self.breaks -= 1
                raise OSError("broken pipe")
            yield line
        self.end(id)

    def end(self, id: str, code: int = 0) -> None:
        self.jobs[id].status.value = "FAILED" if code else "SUCCEEDED"
        self.jobs[id].driver_exit_code = code


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    made = Head()
    monkeypatch.setattr(grid, "JOB_PATIENCE_S", 0.05)
    monkeypatch.setattr(grid.Remote, "_ask", lambda self, address: made)
    for name in ("RAY_ADDRESS", "RAYGRID_CLUSTER", "RAYGRID_STORE", remote.JOB):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY)
    return file


def run(*arguments: object) -> int:
    return launch.main([str(argument) for argument in arguments])


CLUSTER = ("--cluster", "http://127.0.0.1:1")


def test_the_job_carries_study_and_code(
    head: Head, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(*CLUSTER, study, "--set", "recipe.epochs=2", "--store", "s3://b/p q", "--out", tmp_path / "out")
    assert code == 0
    (job,) = head.jobs.values()
    command = "python -m raygrid.launch lab.yaml --set recipe.epochs=2 --store 's3://b/p q' --out \"$HOME/results\""
    assert job.entrypoint == command
    assert job.text == {"lab.yaml": STUDY}
    assert [Path(module).name for module in job.runtime_env["py_modules"]] == ["raygrid", "analysis"]
    assert job.runtime_env["env_vars"][remote.JOB] == job.submission_id
    assert capsys.readouterr().out.count("line 3") == 1


def test_a_wrong_study_is_refused_before_anything_is_submitted(head: Head, study: Path) -> None:
    assert run(*CLUSTER, study, "--set", "recipe.epoch=2") == 2
    assert not head.jobs


def test_the_same_request_follows_the_job_that_runs(
    head: Head, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = remote.request("x", "lab", str(study), (), None, tmp_path)
    labels = {"raygrid.launch": asked.digest, "raygrid.study": "lab"}
    empty = tmp_path / "empty"
    empty.mkdir()
    head.submit_job(entrypoint="x", submission_id="raygrid-lab-1", runtime_env={"working_dir": empty}, metadata=labels)
    assert run(*CLUSTER, study) == 0
    assert list(head.jobs) == ["raygrid-lab-1"]
    assert "Following the job raygrid-lab-1" in capsys.readouterr().out
    assert run(*CLUSTER, study) == 0, "it is over: a new one, which finds everything done"
    assert len(head.jobs) == 2
    assert run(*CLUSTER, study, "--set", "recipe.epochs=3") == 0
    assert len(head.jobs) == 3, "another request is another job"


def test_two_who_ask_at_once_get_one_job(head: Head, study: Path, tmp_path: Path) -> None:
    """Somebody else's submission arrives between the look and the submission."""
    asked = remote.request(CLUSTER[1], "lab", str(study), (), None, tmp_path)
    looks = 0

    def late() -> list[Any]:
        nonlocal looks
        looks += 1
        if looks == 1:
            id = f"raygrid-lab-{asked.digest}-1"
            empty = tmp_path / "empty"
            empty.mkdir()
            head.submit_job(entrypoint="x", submission_id=id, runtime_env={"working_dir": empty},
                            metadata={"raygrid.launch": asked.digest})  # fmt: skip
            return []
        return list(head.jobs.values())

    head.list_jobs = late  # type: ignore[method-assign]
    assert remote.run(asked, Console(file=io.StringIO())) == 0
    assert len(head.jobs) == 1


def test_lost_connections_are_made_again_and_nothing_is_shown_twice(
    head: Head, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.breaks = 2
    assert run(*CLUSTER, study) == 0
    shown = capsys.readouterr().out
    assert head.tails == 3
    assert [line for line in shown.splitlines() if line.startswith("line ")] == [f"line {n}" for n in range(7)]
    assert shown.count("The job goes on") == 2 and shown.count("connected again") == 2


@pytest.mark.parametrize("code", [1, 2, 3, 130])
def test_the_exit_code_is_the_jobs(head: Head, study: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "end", lambda id: Head.end(head, id, code))
    assert run(*CLUSTER, study) == code


def test_results_come_back_verified(head: Head, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there" / "lab"
    (there / "report").mkdir(parents=True)
    (there / "results.parquet").write_bytes(b"PAR1")
    (there / "report" / "figure2.svg").write_text("<svg/>")
    store = Store(str(tmp_path / "store"))
    monkeypatch.setenv(remote.JOB, "raygrid-lab-1")
    remote.publish(store, there, "lab")
    monkeypatch.delenv(remote.JOB)
    head.lines.append(f"{remote.MARK} {store.url}\n")
    assert run(*CLUSTER, study, "--out", tmp_path / "here") == 0
    assert (tmp_path / "here" / "lab" / "results.parquet").read_bytes() == b"PAR1"
    assert (tmp_path / "here" / "lab" / "report" / "figure2.svg").read_text() == "<svg/>"

    store.put("studies/lab/results.parquet", b"PAR2")
    with pytest.raises(StoreError, match="damaged"):
        remote.fetch(store, "lab", tmp_path / "again")
    store.put("studies/lab/files.json", b'{"../../x": "0"}')
    with pytest.raises(StoreError, match="not a path inside"):
        remote.fetch(store, "lab", tmp_path / "again")
    with pytest.raises(StoreError, match="no results of study other"):
        remote.fetch(store, "other", tmp_path / "again")


def test_results_that_cannot_be_fetched_are_told_where_they_are(
    head: Head, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.lines.append(f"{remote.MARK} file://{tmp_path}/nowhere\n")
    assert run(*CLUSTER, study) == 0
    shown = capsys.readouterr().out
    assert "this machine cannot fetch them" in shown and f"{tmp_path}/nowhere/studies/lab" in shown
    assert "a folder of the cluster's machines" in shown
    assert not (tmp_path / "nowhere").exists(), "no store is made here"


def test_a_launch_at_home_puts_nothing_into_a_folder_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(remote.JOB, raising=False)
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "a").write_text("a")
    store = Store(str(tmp_path / "store"))
    remote.publish(store, tmp_path / "lab", "lab")
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("argument", "address", "default", "expected"),
    [
        ("a.yaml", "10.0.0.1:6379", "b.yaml", "a.yaml"),
        (None, "10.0.0.1:6379", "b.yaml", None),
        (None, "http://10.0.0.1:8265", "b.yaml", "http://10.0.0.1:8265"),
        (None, None, "b.yaml", "b.yaml"),
        (None, None, None, None),
    ],
)
def test_which_cluster_is_chosen(
    argument: str | None,
    address: str | None,
    default: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("RAY_ADDRESS", address), ("RAYGRID_CLUSTER", default)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert remote.chosen(argument) == expected


def test_a_cluster_that_is_not_there_is_one_message(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cluster", "no-such.yaml", study) == 2
    assert "no such file (give a file of `ray up`, or http://HOST:8265)" in capsys.readouterr().err
    assert run("--cluster", "http://127.0.0.1:9", study) == 2
    assert "does not answer" in capsys.readouterr().err


def test_a_missing_token_is_said() -> None:
    refused = grid.Remote("c.yaml")._refused(RuntimeError("Request failed with status code 401: Missing token"))
    assert isinstance(refused, EnvironmentError_)
    assert "token is missing here or another one" in str(refused)


def test_no_tunnel_outlives_a_cluster_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("cluster_name: c")
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def tunnel(command: object, **named: object) -> subprocess.Popen[bytes]:
        started.append(real(["sleep", "60"], **named))  # type: ignore[call-overload]
        return started[-1]

    def refused(*_: object) -> None:
        raise EnvironmentError_("refused")

    monkeypatch.setattr(grid.subprocess, "Popen", tunnel)
    monkeypatch.setattr(grid.socket, "create_connection", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(grid.Remote, "_ask", refused)
    with pytest.raises(EnvironmentError_, match="refused"), grid.Remote(str(tmp_path / "c.yaml")):
        pass
    assert [one.poll() is not None for one in started] == [True]
