"""What the tests of the analysis share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis import reference
from analysis.results import Results, read

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def authors() -> Results:
    """The authors' 148 logged networks."""
    return read(reference.PATH)


@pytest.fixture(scope="session")
def published() -> list[dict[str, str]]:
    """The points of the published figures, recomputed from the authors' logs (github yosinski/convnet_transfer at
    9838c27); letters as in the authors' folders."""
    with (HERE / "published_points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def need() -> Callable[[bool, str], None]:
    """Skip with the reason where something is not there."""

    def check(there: bool, reason: str) -> None:
        if not there:
            pytest.skip(reason)

    return check
