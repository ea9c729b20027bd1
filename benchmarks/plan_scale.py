"""How far planning scales, and how near the schedule of the paper's balanced grid comes to its lower bound.

Runs without Ray and torch. Plans and plays through 100,000 cells, then simulates the 232 networks of the balanced
grid (4 random splits, 8 layers, CaffeNet) on 1 to 128 devices. Times are CPU seconds of this process beside wall
seconds, since machines are shared; memory is the peak of the whole process.

16 input passes, one a stream, leave the 8 streams of the second phase whole: at best ceil(8 / devices) of them follow
each other on one device. Where devices do not divide 8 that takes longer than the goal for the makespan allows, and
some streams must be cut; to 8 devices the fewest passes that can meet that goal stand beside those of the schedule.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections import defaultdict
from functools import cache
from typing import Any

from raygrid.agenda import Entry, Pricing, load
from raygrid.cell import DatasetFacts
from raygrid.cost import Meter, ideal
from raygrid.plan import Plan, Simulation, plan, simulate
from raygrid.study import Study

CELLS = 100_000
DEVICES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)


PHASES = ("base", "retrain")
GOAL = 1.05
"""makespan over its bound, to 8 devices"""


def facts(classes: int) -> DatasetFacts:
    """A data set of the size of ImageNet, with as many classes as wanted."""
    return DatasetFacts(
        name="imagenet",
        sha256="0" * 64,
        classes=tuple(f"c{i}" for i in range(classes)),
        groups=(None,) * classes,
        train=(1_290_000 // classes,) * classes,
        test=(50_000 // classes,) * classes,
        image_size=256,
    )


def grid(splits: int, seeds: int = 1) -> Study:
    """The paper's networks on every half of every split: 58 a split and seed."""
    lines = "".join(f"  - {{kind: random, seed: {i}}}\n" for i in range(splits))
    return Study.parse(
        f"""
name: balanced
dataset: imagenet
network: caffenet
splits:
{lines}
treatments: [base, selffer, selffer+, transfer, transfer+]
seeds: {list(range(seeds))}
recipe:
  iterations: 450000
  batch_size: 256
  augmentation: {{crop: 227, padding: 0}}
  evaluations: 450
  numerics: {{autocast: bfloat16}}
"""
    )


def timed(work: Any) -> tuple[Any, float, float]:
    """Result, CPU seconds, wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def peak_mb() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def scale(classes: int, splits: int) -> dict[str, float]:
    """Plan and play through 100,000 cells on 64 devices."""
    study, data = grid(splits, seeds=-(-CELLS // (58 * splits))), facts(classes)
    planned, plan_cpu, plan_wall = timed(lambda: plan(study, data))
    played, play_cpu, play_wall = timed(lambda: simulate(planned, 64))
    print(
        f"{len(planned.cells):,} cells of {classes} classes: planned in {plan_cpu:.2f} s CPU ({plan_wall:.2f} s wall), "
        f"played through on 64 devices in {play_cpu:.2f} s CPU ({play_wall:.2f} s wall), peak {peak_mb():.0f} MB"
    )
    return {
        "cells": len(planned.cells),
        "classes": classes,
        "plan_cpu_s": round(plan_cpu, 3),
        "plan_wall_s": round(plan_wall, 3),
        "simulate_cpu_s": round(play_cpu, 3),
        "makespan_over_bound": round(played.ratio, 4),
        "peak_mb": round(peak_mb()),
    }


@cache
def fewest_parts(streams: int, devices: int, room: float) -> float:
    """Fewest parts of equal streams that fit on devices of which each has room for so many of them.

    Streams and devices hang together by the parts: each group of s streams on d devices has at least s + d - 1 parts
    (it is a connected graph of s + d nodes) and room for all its streams (d rooms).
    """
    if not streams:
        return 0
    groups = [(s, math.ceil(s / room - 1e-9)) for s in range(1, streams + 1)]
    rest = [s + d - 1 + fewest_parts(streams - s, devices - d, room) for s, d in groups if d <= devices]
    return min(rest, default=math.inf)


def input_limits(planned: Plan, meter: Meter, devices: int, best: float) -> dict[str, float]:
    """The least makespan over its bound with every stream whole, and the fewest input passes within the goal. A device
    begins with the second phase when the first base has ended, or later."""
    streams: dict[str, list[Entry]] = defaultdict(list)
    for entry in map(Pricing(meter), planned.cells):
        streams[entry.cell.stream].append(entry)
    costs = {phase: [load(es).cost for es in streams.values() if es[0].cell.phase == phase] for phase in PHASES}
    base, stream, count = min(costs["base"]), min(costs["retrain"]), len(costs["retrain"])
    room = (GOAL * best - base) / stream
    return {
        "ratio_if_streams_are_whole": round(max(1.0, (base + math.ceil(count / devices) * stream) / best), 4),
        "fewest_passes_within_goal": len(costs["base"]) + int(fewest_parts(count, devices, room)),
    }


def row(planned: Plan, meter: Meter, devices: int, unit: float) -> dict[str, float]:
    """The balanced grid on some number of devices; times in full trainings."""
    played: Simulation = simulate(planned, devices, meter=meter)
    limit = played.bound
    limits = input_limits(planned, meter, devices, limit.best) if devices <= 8 else {}
    least = " (fewest within goal {fewest_passes_within_goal}; streams whole: ratio {ratio_if_streams_are_whole:.3f})"
    print(
        f"{devices:4d} devices: makespan {played.makespan / unit:7.2f}, bound {limit.best / unit:7.2f} "
        f"(path {limit.critical_path / unit:.2f}, work {limit.work / unit:.2f}, crowding {limit.crowding / unit:.2f}), "
        f"ratio {played.ratio:.3f}, busy {played.busy:4.0%}, cohorts {len(played.cohorts):3d}, "
        f"input passes {played.input_passes:3d}" + (least.format(**limits) if limits else "")
    )
    return {
        "devices": devices,
        "makespan": round(played.makespan / unit, 3),
        "bound": round(limit.best / unit, 3),
        "bound_without_crowding": round(max(limit.critical_path, limit.work) / unit, 3),
        "ratio": round(played.ratio, 4),
        "ratio_without_crowding": round(played.makespan / max(limit.critical_path, limit.work), 4),
        "busy": round(played.busy, 3),
        "cohorts": len(played.cohorts),
        "input_passes": played.input_passes,
        **limits,
    }


def main() -> dict[str, Any]:
    """Print the figures for people; the last line is one JSON object."""
    planned = plan(grid(4), facts(1000))
    best = ideal(planned.cells, planned.facts)
    unit = best.bases_shared.flops / best.bases_shared.units
    print(
        f"balanced grid, {len(planned.cells)} networks: {best.independent.units:.0f} trainings if independent, "
        f"{best.bases_shared.units:.0f} bases shared, {best.backward_skipped.units:.1f} backward skipped, "
        f"{best.trunk_shared.units:.1f} trunk shared (tests included)"
    )
    meter = Meter(planned.facts)
    rows = [row(planned, meter, devices, unit) for devices in DEVICES]
    result = {
        "benchmark": "plan_scale",
        "scale": [scale(10, splits=4), scale(1000, splits=216)],
        "balanced": rows,
        "worst_ratio_to_8": max(r["ratio"] for r in rows if r["devices"] <= 8),
        "worst_ratio_beyond": max(r["ratio"] for r in rows if r["devices"] > 8),
        "worst_ratio_beyond_without_crowding": max(r["ratio_without_crowding"] for r in rows if r["devices"] > 8),
        "input_passes_1_2_4_8": [int(r["input_passes"]) for r in rows if r["devices"] in (1, 2, 4, 8)],
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
