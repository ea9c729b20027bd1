"""The training loop before and after a change: `python -m benchmarks before COMMIT`.

Trains the same cohort with the code of a commit and with the code here, in turns, one thread, CPU seconds; and compares
the bytes that come out. A change that is to make training faster is kept only where this shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, load, spread, text
from benchmarks.workload import QUICK, as_yaml, scratch
from raygrid.launch import find_study
from raygrid.study import Study

ONE_SPLIT = [
    "grid=[{splits: [{kind: random, seed: 2, exclude: [cat, deer]}]}]",
    "targets=[B]",
    "treatments=[transfer, transfer+]",
    "layers=all",
    "recipe.epochs=2",
]
CODE = """
import hashlib, json, pathlib, sys, tempfile, time
import torch
import raygrid
from raygrid.data.arrays import publish
from raygrid.data.known import prepare
from raygrid.plan import plan
from raygrid.record import deterministic, find_records
from raygrid.store import Store
from raygrid.study import Study
from raygrid.train import Bench, train_cohort

study = Study.load(sys.argv[1])
manifest, place = prepare(study.dataset, progress=False)
planned = plan(study, manifest.facts())
with tempfile.TemporaryDirectory() as folder:
    store = Store(folder)
    publish(manifest, place, store)
    for cell in planned.cells:
        if cell.treatment == "base":
            train_cohort([cell], Bench(store, planned.facts))
    cells = [cell for cell in planned.cells if cell.phase == "retrain"]
    begun = time.process_time()
    train_cohort(cells, Bench(store, planned.facts))
    spent = time.process_time() - begun
    records = find_records(store, cells)
    found = json.dumps([deterministic(records[cell.address]) for cell in cells], sort_keys=True)
tree = pathlib.Path(raygrid.__file__).parent.parent
print(json.dumps({"cpu_s": spent, "bytes": hashlib.sha256(found.encode()).hexdigest(), "tree": str(tree)}))
"""


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("commit", nargs="?", default="HEAD", help="code to compare with (default: HEAD)")
    p.add_argument("--repeats", type=int, help="turns (default 5)")
    p.add_argument("--quick", action="store_true", help="toy size: shows only that the benchmark works")
    options = p.parse_args()
    study = Study.parse(QUICK) if options.quick else find_study(None, ONE_SPLIT)
    repeats = options.repeats or (1 if options.quick else 5)
    with scratch() as folder:
        old = folder / "old"
        old.mkdir()
        archive = subprocess.run(["git", "archive", options.commit], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x"], cwd=old, input=archive.stdout, check=True)
        file = as_yaml(study, folder / "study.yaml")
        found: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
        for _ in range(repeats):
            for name, tree in (("before", old), ("after", ROOT)):
                found[name].append(train(tree, file))
    figures: dict[str, Any] = {
        "benchmark": "before",
        "commit": _hash(options.commit),
        "repeats": repeats,
        **{f"{name}_cpu_s": spread([one["cpu_s"] for one in turns]) for name, turns in found.items()},
        "speedup": spread([a["cpu_s"] / b["cpu_s"] for a, b in zip(found["before"], found["after"], strict=True)]),
        "same_bytes": len({one["bytes"] for turns in found.values() for one in turns}) == 1,
        "load_average": load(),
    }
    print(
        f"{text(figures['before_cpu_s'])} CPU s at {figures['commit'][:9]}, {text(figures['after_cpu_s'])} here: "
        f"{text(figures['speedup'])} x; {'the same' if figures['same_bytes'] else 'OTHER'} bytes"
    )
    print(json.dumps(figures))
    return figures


def train(tree: Path, study: Path) -> dict[str, Any]:
    """One training of the cohort with the code of a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(study)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["tree"]) == tree.resolve(), f"{found['tree']} was imported instead of {tree}"
    return found


def _hash(commit: str) -> str:
    done = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
