"""When, where and with what: facts about this process that a record keeps beside its result."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from raygrid.record import Provenance


@cache
def raygrid_version() -> str:
    """Version of the installed package."""
    try:
        return version("raygrid")
    except PackageNotFoundError:
        return "0+checkout"


@cache
def commit() -> str | None:
    """Commit of the checkout that the code runs from (`RAYGRID_COMMIT` where there is none, as in an image)."""
    if os.environ.get("RAYGRID_COMMIT"):
        return os.environ["RAYGRID_COMMIT"]
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def now(seconds: float, device: torch.device, resumed_at: int, cohort: int) -> Provenance:
    """Provenance of a cell that has just ended."""
    ended = datetime.now(UTC)
    return Provenance(
        started=(ended - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        ended=ended.isoformat(timespec="seconds"),
        duration_s=round(seconds, 3),
        host=socket.gethostname(),
        device=device_name(device),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        python=platform.python_version(),
        raygrid_version=raygrid_version(),
        commit=commit(),
        resumed_at_step=resumed_at,
        cohort=cohort,
    )
