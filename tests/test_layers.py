"""The way of the data: a module imports only from those above it; Ray and MLflow stay in their places."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "errors",
    "architectures",
    "study",
    "splits",
    "cell",
    "cost",
    "agenda",
    "simulation",
    "plan",
    "prices",
    "store",
    "record",
    "data",
    "networks",
    "transplant",
    "optimize",
    "member",
    "checkpoint",
    "provenance",
    "train",
    "export",
    "track",
    "grid",
    "display",
    "preview",
    "remote",
    "rim",
]
"""from the first to the last; a package is one place"""
RIM = ("launch", "library", "ingest", "status", "__init__", "__main__")
OUTSIDE = {"ray": "grid", "mlflow": "track"}
"""library -> the one module that may import it"""
LEAN = {"torch", "numpy", "safetensors", "pydantic", "pydantic_core", "yaml", "obstore", "psutil", "PIL", "rich"}
"""what modules up to `train` may import from outside when they are imported; ingest and downloads import more, lazily"""


def imports(path: Path, lazily: bool = True) -> set[str]:
    """Dotted names that a file imports; without `lazily`, only those of its own level."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(path: Path) -> str:
    parts = path.relative_to(ROOT / "raygrid").with_suffix("").parts
    return "rim" if parts[0] in RIM else parts[0]


FILES = sorted((ROOT / "raygrid").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_those_above_it(path: Path) -> None:
    mine = place(path)
    assert mine in ORDER, f"{mine} has no place in the order"
    for name in imports(path):
        if name.startswith("raygrid.") and name.split(".")[1] not in RIM:
            other = name.split(".")[1]
            if (ROOT / "raygrid" / f"{other}.py").exists() or (ROOT / "raygrid" / other).is_dir():
                assert ORDER.index(other) <= ORDER.index(mine), f"{mine} imports {other}"
        elif name.startswith("raygrid.") and mine != "rim":
            raise AssertionError(f"{mine} imports the rim ({name})")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_and_mlflow_each_stay_in_one_place(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        assert OUTSIDE.get(library, place(path)) == place(path), f"{place(path)} imports {name}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if place(p) in ORDER[: ORDER.index("train") + 1]], ids=lambda p: p.name
)
def test_the_numeric_core_runs_on_a_bare_gpu_machine(path: Path) -> None:
    import sys

    outside = {name.split(".")[0] for name in imports(path, lazily=False)} - {"raygrid"} - set(sys.stdlib_module_names)
    assert outside <= LEAN, outside - LEAN


def test_plan_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import raygrid.plan, raygrid.cost, raygrid.launch, raygrid.status, sys; print([m for m in ('torch', 'ray', 'mlflow', 'pandas') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").rglob("*.py")), ids=lambda p: p.name)
def test_analysis_knows_no_raygrid(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"raygrid", "ray", "torch", "mlflow"}


@pytest.mark.parametrize("command", ["raygrid.launch", "raygrid.status", "raygrid.ingest", "raygrid.track", "analysis"])
def test_help_imports_nothing_heavy_takes_half_a_second_and_tells_the_exit_codes(command: str) -> None:
    import resource
    import subprocess
    import sys

    code = (
        f"import runpy, sys\nsys.argv = ['{command}', '--help']\n"
        f"try: runpy.run_module('{command}', run_name='__main__')\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("[]") and "usage" in found.stdout
    assert "exit codes:" in found.stdout.lower()

    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", command, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 0.5  # the least of three: other work on the machine adds to it
