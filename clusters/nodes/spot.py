"""Turns a cloud's notice that it will take this machine back into `ray drain-node`, and then ends.

    python spot.py aws|gcp

A drained node gets no new trials, and Ray counts what it loses as pre-empted rather than failed. Runs on every worker,
once a machine; needs nothing but Python. `RAYGRID_METADATA` is another address of the metadata service, for tests.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

EVERY_S = 5.0
NOTICE_S = {"aws": 100, "gcp": 25}
"""seconds that are surely left after a notice: AWS gives 120, Google 30"""


def ask(url: str, method: str = "GET", **headers: str) -> str | None:
    """Answer of the metadata service; None for 404 (no notice) and where it does not answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def notice(cloud: str) -> str | None:
    """What the cloud says of this machine's end, or None while it says nothing."""
    if cloud == "gcp":
        root = os.environ.get("RAYGRID_METADATA", "http://metadata.google.internal")
        text = ask(f"{root}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google")
        return "preempted" if text and text.strip().upper() == "TRUE" else None
    root = os.environ.get("RAYGRID_METADATA", "http://169.254.169.254")
    lifetime = {"X_aws_ec2_metadata_token_ttl_seconds": "300"}
    token = ask(f"{root}/latest/api/token", "PUT", **lifetime)
    if token is None:
        return None
    return ask(f"{root}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token)


def drain(cloud: str, why: str) -> int:
    """Tell Ray; returns the exit code of its command."""
    command = ["ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", why[:200]]
    return subprocess.run([*command, "--deadline-remaining-seconds", str(NOTICE_S[cloud])], check=False).returncode


def main() -> int:
    """Watch until there is a notice and Ray has taken it."""
    cloud = sys.argv[1] if len(sys.argv) > 1 else ""
    if cloud not in NOTICE_S:
        print("raygrid: spot.py: give the cloud (allowed: aws, gcp)", file=sys.stderr)
        return 2
    with Path("~/.raygrid-spot.lock").expanduser().open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0  # another one watches
        while True:
            why = notice(cloud)
            if why is not None:
                print(f"notice: {why}", flush=True)
                code = drain(cloud, f"{cloud}: {why}")
                if code == 0:
                    print("Ray knows: this node gets no new work", flush=True)
                    return 0
                print(f"ray drain-node: exit code {code}; trying again", flush=True)
            time.sleep(EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
