"""No fault lacks a guard that was seen to hold it: the table of `guards.py` and that of the README cannot rot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import fault_table
from tests.guards import GUARDLESS, GUARDS, README, ROOT, SECURITY, Guard, lines, row, update

TESTS = ROOT / "tests"
HELD = {fault for guard in GUARDS for fault in guard.holds}


def functions(file: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", file.read_text(), re.M))


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.what)
def test_a_guard_stands_in_the_code_and_its_tests_are_there(guard: Guard) -> None:
    assert (ROOT / guard.file).read_text().count(guard.text) == 1
    assert guard.text != guard.instead and guard.holds
    for test in guard.holds.values():
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in functions(TESTS / file), test


def test_every_fault_is_held_by_a_guard() -> None:
    for pattern in fault_table.marks():
        assert any(pattern.fullmatch(fault) for fault in HELD), f"{pattern.pattern}: name its guard in tests/guards.py"
    rows = fault_table.lines(fault_table.README.read_text())
    assert not set(rows) - HELD, "name their guards in tests/guards.py"
    assert {fault for fault in HELD if not fault.startswith(SECURITY)} == set(rows), "faults that nobody makes"


def test_every_security_test_is_held_by_a_guard() -> None:
    named = {test.partition("[")[0] for guard in GUARDS for test in guard.holds.values()}
    for file in ("faults/test_faults_security.py", "cluster/test_trust.py"):
        for name in functions(TESTS / file):
            assert (f"{file}::{name}" in named) != (name in GUARDLESS), name


def test_the_readme_tells_of_every_guard_and_of_no_other() -> None:
    told = lines(README.read_text())
    assert list(told) == [guard.what for guard in GUARDS], "python tests/guards.py --write"
    for guard in GUARDS:
        outcome = told[guard.what].rpartition(" | ")[2].removesuffix(" |")
        assert told[guard.what] == row(guard, outcome), "python tests/guards.py --write"
        assert re.fullmatch(r"(fails|hangs|fails or hangs), \d{4}-\d\d-\d\d", outcome)


def test_only_rows_of_guards_that_were_run_change(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    first, second = GUARDS[:2]
    copy.write_text("a\n<!-- made by guards.py -->\n| gone | x | y | fails |\n<!-- end of guards -->\nb\n")
    update({second.what: "fails, 2001-01-01"}, copy)
    assert lines(copy.read_text()) == {second.what: row(second, "fails, 2001-01-01")}
    update({first.what: "hangs, 2001-01-02"}, copy)
    assert list(lines(copy.read_text())) == [first.what, second.what]
    assert copy.read_text().startswith("a\n") and copy.read_text().endswith("\nb\n")
