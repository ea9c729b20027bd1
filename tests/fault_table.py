"""The table of tests/faults/README.md: fault, times tried, what was lost, longest recovery; written by the tests that
make the faults.

A test says with `@pytest.mark.fault("an S3 server that is not there")` which row it makes; `{kind}` in it is the test's
parameter. `record_property("faults", 9)` where a test makes several, else one. Its recovery is its own duration. With
RAYGRID_WRITE_FAULTS=1 the rows of the tests that passed are written when the tests end; other rows stay as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
README = TESTS / "faults" / "README.md"
MARKED = re.compile(r"(<!-- made by harness.py and the tests -->\n).*?(\n<!-- end -->)", re.S)
HEAD = ["| what was killed or broken | times | lost | longest recovery |", "| --- | --- | --- | --- |"]


@dataclass
class Row:
    """What came of one fault. A law that does not hold is an error, not a row: nothing is lost in any of them."""

    times: int = 0
    longest: float = 0.0

    def book(self, times: int, seconds: float) -> None:
        self.times += times
        self.longest = max(self.longest, seconds)


def lines(text: str) -> dict[str, str]:
    """The rows of a README by fault."""
    found = MARKED.search(text)
    assert found, "README.md has lost the markers of its table"
    return {line.split(" | ")[0].removeprefix("| "): line for line in found[0].split("\n") if line.endswith(" s |")}


def marks() -> list[re.Pattern[str]]:
    """Faults that tests say they make."""
    texts = [path.read_text() for path in sorted(TESTS.rglob("test_*.py"))]
    found = [mark for text in texts for mark in re.findall(r'^@pytest\.mark\.fault\("(.*?)"\)', text, re.M)]
    return [re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(mark))) for mark in found]


def update(rows: Mapping[str, Row], first: Iterable[str], readme: Path = README) -> None:
    """Write rows into the README; rows of faults that nobody makes any more go. `first` are the harness's, in order."""
    text = readme.read_text()
    made = [f"| {what} | {row.times} | nothing | {max(1, round(row.longest))} s |" for what, row in rows.items()]
    kept = lines(text) | dict(zip(rows, made, strict=True))
    killed = list(first)
    patterns = marks()
    order = [what for what in killed if what in kept]
    for pattern in patterns:
        order += [what for what in kept if pattern.fullmatch(what) and what not in order]
    table = "\n".join([*HEAD, *(kept[what] for what in order)])
    readme.write_text(MARKED.sub(lambda found: found[1] + table + found[2], text))


_rows: dict[str, Row] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Book a fault that was outlived."""
    report = yield
    mark = item.get_closest_marker("fault")
    if mark is not None and report.when == "call" and report.passed:
        what = mark.args[0].format(**getattr(getattr(item, "callspec", None), "params", {}))
        _rows.setdefault(what, Row()).book(int(dict(report.user_properties).get("faults", 1)), report.duration)
    return report


def pytest_sessionfinish() -> None:
    if _rows and os.environ.get("RAYGRID_WRITE_FAULTS") == "1":
        from tests.faults.harness import VICTIMS

        update(_rows, VICTIMS.values())
