"""`ray up clusters/local.yaml` on three machines, a study submitted from a fourth, one machine lost in the middle."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import CELLS, STUDY
from tests.cluster.lab import ROOT, Host, Lab, reference, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ADDRESSES = {"laptop": "10.77.0.2", "head": "10.77.0.10", "worker-1": "10.77.0.11", "worker-2": "10.77.0.12"}
CLIENT = {"RAY_UP_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="module")
def lab(hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("local"), "10.77.0.1", 24) as lab:
        lab.start_s3()
        for name, ip in ADDRESSES.items():
            lab.host(name, ip)
        yield lab


def cluster_file(lab: Lab) -> Path:
    """clusters/local.yaml with its names filled in, and small: one slot a machine, little shared memory."""
    text = (ROOT / "clusters" / "local.yaml").read_text()
    names = {"head": ADDRESSES["head"], "user": "root", "key": str(lab.folder / "key"), "store": "s3://grid/raygrid"}
    for name in ("worker-1", "worker-2"):
        names[name] = ADDRESSES[name]
    for name, value in names.items():
        text = text.replace(f"<{name}>", value)
    text = text.replace(
        "--object-manager-port=8076", "--object-manager-port=8076 --num-cpus=1 --object-store-memory=100000000"
    )
    file = lab.folder / "local.yaml"
    file.write_text(text)
    return file


@pytest.mark.fault("a worker and the laptop that launched, both lost")
def test_a_study_survives_the_loss_of_a_machine_and_of_the_laptop(lab: Lab, tmp_path: Path) -> None:
    study = lab.folder / "lab.yaml"
    study.write_text(STUDY)
    undisturbed = reference(study, tmp_path / "reference")
    next(undisturbed)
    laptop = lab.hosts["laptop"]
    file = cluster_file(lab)

    laptop.run("umask 077; ray get-auth-token --generate")
    laptop.run(f"ray up -y {file}", timeout=300, **CLIENT)
    nodes(lab, 3)

    refused_without_token(lab.hosts["head"])
    _the_cluster_is_pointed_out(laptop, file)

    launch = f"python -m raygrid.launch --cluster {file} {study} --out {lab.folder}/results"
    first = laptop.spawn(launch, lab.folder / "first.log", **CLIENT)
    until(lambda: "worker-2" in lab.leases().values(), 180, "worker-2 trains a cell")
    os.killpg(first.pid, signal.SIGKILL)  # the laptop is closed for good
    first.wait()
    lab.hosts["worker-2"].kill()
    before = len(lab.records())

    second = laptop.run(launch, timeout=400, **CLIENT)
    (lab.folder / "second.log").write_text(second.stdout + second.stderr)
    assert "which runs already" in second.stdout
    assert "fetched" in second.stdout
    expected = next(undisturbed)
    assert before < len(expected) == CELLS
    assert lab.records() == expected
    assert not lab.leases()

    results = lab.folder / "results" / "lab"
    import pandas as pd

    assert set(pd.read_parquet(results / "results.parquet")["cell"]) == set(expected)
    assert (results / "report" / "figure2.png").stat().st_size > 1000
    _mlflow_has_every_network_once(lab.hosts["head"], set(expected))
    assert lab.objects("raygrid/mlflow/", "figure2.png"), "MLflow's artifacts lie on S3"

    third = laptop.run(launch, timeout=120, **CLIENT)
    assert "nothing to train" in third.stdout

    laptop.run(f"ray down -y {file}", **CLIENT)
    assert lab.hosts["head"].run("pgrep -x raylet", check=False).returncode == 1


def nodes(lab: Lab, count: int) -> None:
    """Wait until the cluster has so many nodes."""

    def enough() -> bool:
        shown = lab.hosts["head"].run("ray status", check=False, RAY_AUTH_MODE="token").stdout
        active = shown.partition("Active:")[2].partition("Pending:")[0]
        return sum(line.strip().startswith("1 ") for line in active.splitlines()) >= count or f"{count} local" in active

    until(enough, 240, f"{count} nodes", every=3)


def refused_without_token(head: Host) -> None:
    """A job needs the token, and the dashboard answers this host alone."""
    ask = "curl -s -o /dev/null -w '%{http_code}' -H 'Content-Type: application/json' -d '{\"entrypoint\": \"true\"}'"
    wrong = head.run(f"{ask} -H 'Authorization: Bearer {'0' * 64}' http://127.0.0.1:8265/api/jobs/").stdout
    none = head.run(f"{ask} http://127.0.0.1:8265/api/jobs/").stdout
    right = head.run("ray job list --address http://127.0.0.1:8265", RAY_AUTH_MODE="token")
    assert (none, wrong, right.returncode) == ("401", "403", 0)
    outside = head.run(f"curl -s -m 3 http://{head.ip}:8265/api/version", check=False)
    assert outside.returncode != 0, "the dashboard listens to the network"


def _the_cluster_is_pointed_out(laptop: Host, file: Path) -> None:
    code = """
import sys
from rich.console import Console
from raygrid import remote
sys.argv[1:] = ["icons"]
remote.hint(Console(soft_wrap=True))
"""
    shown = laptop.run(f"cd {file.parent} && python -c {shlex.quote(code)}", **CLIENT, PYTHONPATH=str(ROOT)).stdout
    assert "python -m raygrid.launch --cluster local.yaml icons" in shown, shown


def _mlflow_has_every_network_once(head: Host, cells: set[str]) -> None:
    code = """
import json
from mlflow.tracking import MlflowClient
client = MlflowClient("http://127.0.0.1:5000")
experiment = client.get_experiment_by_name("raygrid/lab")
runs = client.search_runs([experiment.experiment_id], "tags.`raygrid.kind` = 'trial'", max_results=1000)
print(json.dumps([[run.data.tags["raygrid.cell"], run.info.status] for run in runs]))
"""
    found = json.loads(head.run(f"python -c {shlex.quote(code)}").stdout.splitlines()[-1])
    assert sorted(cell for cell, _ in found) == sorted(cells)
    assert {status for _, status in found} == {"FINISHED"}
