"""RAYGRID_NO_SKIP=1: a test, a fixture or a whole module that would skip fails instead, with its reason."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

ALLOWED = ("test_no_dependency_has_a_known_hole", "pip-audit: its data source ")
"""the one test that may skip, and how its reason begins: what pip-audit asks cannot be reached from everywhere"""


def _reason(report: Any) -> str:
    text = report.longrepr
    return str(text[2] if isinstance(text, tuple) else text).removeprefix("Skipped: ")


def _judge(report: Any, name: str) -> Any:
    may = name.partition("[")[0] == ALLOWED[0] and _reason(report).startswith(ALLOWED[1])
    if report.skipped and not hasattr(report, "wasxfail") and not may and os.environ.get("RAYGRID_NO_SKIP") == "1":
        report.longrepr = f"RAYGRID_NO_SKIP=1, but it skips: {_reason(report)}"
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Of a test, its fixtures and its marks."""
    return _judge((yield), item.name)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Of a module: `importorskip` at its top, or `skip(allow_module_level=True)`."""
    return _judge((yield), collector.name)
