"""Under RAYGRID_NO_SKIP=1 nothing skips, however it tries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "test_call.py": "import pytest\ndef test_it(): pytest.skip('want')\ndef test_good(): pass\n",
    "test_import.py": "import pytest\ndef test_it(): pytest.importorskip('no_such_module', reason='want')\n",
    "test_mark.py": "import pytest\n@pytest.mark.skip(reason='want')\ndef test_it(): pass\n",
    "test_if.py": "import pytest\n@pytest.mark.skipif(True, reason='want')\ndef test_it(): pass\n",
    "test_fixture.py": "import pytest\n@pytest.fixture\ndef one(): pytest.skip('want')\ndef test_it(one): pass\n",
    "test_module.py": "import pytest\npytest.skip('want', allow_module_level=True)\n",
    "test_module_import.py": "import pytest\npytest.importorskip('no_such_module', reason='want')\n",
    "test_unittest.py": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): self.skipTest('want')\n",
    "test_audit_missing.py": "import pytest\ndef test_no_dependency_has_a_known_hole(): pytest.skip('want pip-audit')\n",
}
MAY = (
    "import pytest\ndef test_no_dependency_has_a_known_hole(): pytest.skip('pip-audit: its data source is away')\n"
    "@pytest.mark.xfail\ndef test_known(): assert False\n"
)


@pytest.mark.parametrize("asked", ["1", ""])
def test_each_way_to_skip(asked: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport\n"
    )
    for name, text in {**WAYS, "test_may.py": MAY}.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-ra"],
        cwd=tmp_path, env={**os.environ, "RAYGRID_NO_SKIP": asked}, capture_output=True, text=True,
    )  # fmt: skip
    wrong = {*re.findall(r"(?m)^(?:FAILED|ERROR) (test_\w+\.py)", done.stdout)}
    assert wrong == (set(WAYS) if asked else set()), done.stdout
    assert ("want" in done.stdout) and (done.returncode != 0) == bool(asked)
    assert ("1 passed, 1 skipped" if asked else f"1 passed, {len(WAYS) + 1} skipped") in done.stdout, done.stdout
    assert "1 xfailed" in done.stdout


def test_nothing_else_reads_the_variable() -> None:
    """One place decides, or a new test forgets to."""
    files = [p for p in (ROOT / "tests").rglob("*.py") if "NO_SKIP" in p.read_text()]
    assert sorted(p.name for p in files) == ["no_skip.py", "test_no_skip.py"]
