"""What all tests share: one node cache, one small world of trained networks, no network access."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fault_table, no_skip
from tests.worlds import World, make_world

_CACHE = tempfile.TemporaryDirectory(prefix="raygrid-test-cache-")
os.environ["RAYGRID_CACHE"] = _CACHE.name
for name in ("RAYGRID_STORE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAYGRID_CLUSTER"):
    os.environ.pop(name, None)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what): makes a row of the table of tests/faults/README.md")
    for plugin in (no_skip, fault_table):
        config.pluginmanager.register(plugin)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The networks of TINY, trained once for the whole test session."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """One local Ray for a module, as raygrid starts it."""
    from raygrid import grid

    before = dict(os.environ)
    cluster = grid.connect()
    yield cluster
    grid.disconnect()
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go, to be looked at: RAYGRID_ARTIFACTS (.ci/run keeps it), else pytest's temporary folder."""
    folder = Path(os.environ.get("RAYGRID_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of the user's reaches raygrid."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "RAYGRID_")) and name != "RAYGRID_CACHE":
            monkeypatch.delenv(name)
    yield
