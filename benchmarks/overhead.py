"""What a launch costs besides training, and what a thousand networks cost that train nothing.

demo      a whole launch with clocks around its parts; what is neither training nor testing, by cause (wall seconds)
nothing   a launch of cells that are not trained (leases, records, reports, MLflow as ever; no analysis), in planned
          cohorts and with `cohort: 1`, beside as many trials of Ray Tune alone that report once

CPU seconds are those of all processes; wall seconds of a busy machine say little.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.workload import QUICK, as_yaml, chosen, parser, scratch
from raygrid.study import Study


def main() -> dict[str, Any]:
    """Run the benchmark; its figures."""
    p = parser(__doc__)
    p.add_argument("--cells", type=int, help="networks that train nothing (default 1000)")
    p.add_argument("--only", choices=("demo", "nothing"), help="one half of the benchmark")
    options = p.parse_args()
    wanted = options.cells or (9 if options.quick else 1000)
    figures: dict[str, Any] = {"benchmark": "overhead"}
    with scratch() as folder:
        if options.only != "nothing":
            figures["demo"] = demo(as_yaml(chosen(options), folder / "demo.yaml"), folder / "demo")
        if options.only != "demo":
            figures["nothing"] = nothing(wanted, folder)
    figures["load_average"] = measure.load()
    print(json.dumps(figures))
    return figures


def launch(study: Path, folder: Path, *arguments: str) -> tuple[dict[str, Any], measure.Spent]:
    """A traced launch."""
    printed, spent = measure.run(["-m", "benchmarks.traced", str(study), str(folder), *arguments])
    return json.loads(printed.splitlines()[-1]), spent


def demo(study: Path, folder: Path) -> dict[str, Any]:
    """Wall seconds outside of training and tests, by cause."""
    found, spent = launch(study, folder)
    workers = len(os.sched_getaffinity(0))
    trained = found["training_and_tests_device_s"] / workers
    parts = found["parts"]
    causes = {name: seconds for name, seconds in parts.items() if name not in ("launch", "the grid")}
    causes["elsewhere in the launch"] = found["elsewhere_in_launch"]
    causes["the grid: workers' start, saving, reports, idle devices"] = parts["the grid"] - trained
    causes["interpreter"] = spent.wall - parts["launch"] - parts["imports"]
    outside = spent.wall - trained
    print(
        f"launch of {found['cells']} networks in {found['cohorts']} cohorts on {workers} cores: {spent.wall:.1f} s, of "
        f"which training and tests {trained:.1f} s, all else {outside:.1f} s ({spent.cpu:.1f} CPU s in all):"
    )
    for name, seconds in sorted(causes.items(), key=lambda item: -item[1]):
        print(f"  {seconds:7.2f} s  {name}")
    return {
        "cells": found["cells"],
        "cohorts": found["cohorts"],
        "workers": workers,
        "wall_s": round(spent.wall, 2),
        "cpu_s": round(spent.cpu, 2),
        "training_and_tests_s": round(trained, 2),
        "outside_s": round(outside, 2),
        "allowed_s": round(25 + 0.02 * trained, 2),
        "causes_s": {name: round(seconds, 2) for name, seconds in causes.items()},
    }


def many(cells: int, literal: bool) -> Study:
    """A study of about so many networks, 58 a seed as in the paper (at toy size 9)."""
    few = ["targets=[B]", "treatments=[base, transfer]"]
    whole = ["targets=[A, B]", "treatments=[base, selffer, selffer+, transfer, transfer+]"]
    overrides = [*(whole if cells > 58 else few), "layers=all", f"seeds={list(range(max(1, round(cells / 58))))}"]
    overrides += ["execution.cohort=1"] if literal else []
    return Study.parse(QUICK, overrides)


def nothing(cells: int, folder: Path) -> dict[str, Any]:
    """Cells that are not trained, through Tune, store and MLflow; and Tune alone."""
    figures: dict[str, Any] = {}
    count = cells
    for name, literal in (("planned", False), ("literal", True)):
        study = as_yaml(many(cells, literal), folder / f"{name}.yaml")
        found, spent = launch(study, folder / name, "--nothing")
        assert found["records"] == found["cells"], f"{found['records']} of {found['cells']} cells have records"
        count = found["cells"]
        figures[name] = {
            "cells": count,
            "trials": found["cohorts"],
            "cpu_s": round(spent.cpu, 2),
            "wall_s": round(spent.wall, 2),
            "grid_wall_s": found["parts"]["the grid"],
            "waiting_for_mlflow_at_the_end_s": found["parts"]["waiting for MLflow at the end"],
            "parts_s": found["parts"],
        }
    _, spent = measure.run(["-m", "benchmarks.peers.nothing", str(count)])
    figures["tune_alone"] = {"cells": count, "cpu_s": round(spent.cpu, 2), "wall_s": round(spent.wall, 2)}
    figures["cells"] = count
    alone = figures["tune_alone"]
    for name in ("planned", "literal"):
        one = figures[name]
        one["cpu_over_tune_alone"] = round(one["cpu_s"] / alone["cpu_s"], 3)
        one["wall_over_tune_alone"] = round(one["wall_s"] / alone["wall_s"], 3)
    print(f"{count} networks that train nothing:")
    for name, what in (("planned", "planned cohorts"), ("literal", "cohort: 1"), ("tune_alone", "Tune alone")):
        one = figures[name]
        trials = f"{one.get('trials', count)} trials"
        ratio = f", {one['cpu_over_tune_alone']:.2f} x Tune alone" if name != "tune_alone" else ""
        print(f"  {what:<16} {trials:>12}: {one['cpu_s']:7.1f} CPU s, {one['wall_s']:7.1f} s on the wall{ratio}")
    return figures


if __name__ == "__main__":
    main()
