"""Runs a small study on a Ray that was told how many GPUs it has, and prints what its trials reserved.

python tests/cluster/reservations.py GPUS GPU FOLDER
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import ray
from ray.util import placement_group_table

from raygrid import grid as grids
from raygrid.agenda import Agenda
from raygrid.data.arrays import publish
from raygrid.data.known import prepare
from raygrid.plan import plan
from raygrid.store import Store
from raygrid.study import Study

STUDY = """\
name: fractions
dataset: digits
network: {name: small, width: 0.25}
splits: [{kind: random, seed: 0}]
treatments: [scratch]
seeds: [0, 1]
images_per_class: 20
recipe: {epochs: 2, batch_size: 16, lr: 0.03, evaluations: 1}
execution: {cohort: 1}
"""


class Quiet:
    """Hears nothing."""

    def __getattr__(self, name: str) -> object:
        return lambda *arguments, **named: None


def main() -> None:
    gpus, gpu, folder = float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    study = Study.parse(STUDY, [f"execution.gpu={gpu}"])
    manifest, place = prepare(study.dataset)
    the_plan = plan(study, manifest.facts())
    store = Store(str(folder))
    publish(manifest, place, store)
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    cluster = grids.Cluster(1, 2, gpus, 2, gpus, local=True)
    devices = cluster.devices(study.execution, 1)
    asked: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for group in placement_group_table().values():
                asked.update(json.dumps(bundle, sort_keys=True) for bundle in group["bundles"].values())

    threading.Thread(target=watch, daemon=True).start()
    agenda = Agenda(the_plan, {}, workers=devices, largest=1)
    grid = grids.Grid(the_plan, agenda, store, Quiet())  # type: ignore[arg-type]
    begun = time.monotonic()
    grids.run_on_ray(grid, study.execution, cluster)
    over.set()
    print(
        json.dumps(
            {
                "devices": devices,
                "asked": [json.loads(bundle) for bundle in sorted(asked)],
                "outcomes": sorted(set(grid.outcomes.values())),
                "cells": len(grid.outcomes),
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
