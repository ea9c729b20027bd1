"""Real servers on loopback that a test may hurt: S3 (SeaweedFS) and MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

KEYS = {"read and write": ("AKIAWRITE", "made-up-secret"), "read only": ("AKIAREAD", "another-made-up-secret")}
BUCKET = "grid"


class Server:
    """A program that is started, killed and started again on the same port and data."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        raise NotImplementedError

    def up(self) -> bool:
        raise NotImplementedError

    def start(self, wait_s: float = 120.0) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.environment(), stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        end = time.monotonic() + wait_s
        while not self.up():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def kill(self) -> None:
        """SIGKILL, all its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


class S3(Server):
    """SeaweedFS with one bucket, a key that may write and one that may not."""

    weed = Path(sys.executable).parent / "weed"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
        known = subprocess.run([str(self.weed), "server", "-h"], capture_output=True, text=True)
        self.iceberg = "s3.port.iceberg" in known.stdout + known.stderr
        all_of_them = ["Admin", "Read", "Write", "List"]
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": access, "secretKey": secret}],
                "actions": all_of_them if "write" in name else [f"Read:{BUCKET}", f"List:{BUCKET}"],
            }
            for name, (access, secret) in KEYS.items()
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def port(self) -> int:
        return self.ports["s3"]

    def command(self) -> list[str]:
        made = [str(self.weed), "server", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
        made += [f"-s3.config={self.folder / 's3.json'}", f"-s3.port={self.port}", "-master.volumeSizeLimitMB=64"]
        made += [f"-{name}.port={self.ports[name]}" for name in ("master", "volume", "filer")]
        return [*made, "-volume.max=10", *(["-s3.port.iceberg=0", "-s3.port.lance=0"] if self.iceberg else [])]

    def up(self) -> bool:
        import boto3
        from botocore.config import Config

        access, secret = KEYS["read and write"]
        client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", aws_access_key_id=access, aws_secret_access_key=secret,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
        )  # fmt: skip
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="up", Body=b"x")
            return True
        except Exception:
            return False


def s3_environment(port: int, who: str = "read and write") -> dict[str, str]:
    """Variables that lead a program to an S3 server on a port of this machine."""
    access, secret = KEYS[who]
    return {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
    }


class Mlflow(Server):
    """`mlflow server` on SQLite."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        mine = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "90",
        }
        return {**{k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}, **mine}

    def command(self) -> list[str]:
        made = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        made += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        return [*made, "--artifacts-destination", str(self.folder / "artifacts")]

    def up(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False


def free_port() -> int:
    """A free port whose number plus 10,000 (SeaweedFS's gRPC port) is free too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 10_000))
                return port
