"""The same trainings as Ray Tune trials: one trial a cell, a report an evaluation, actors reused.

`python -m benchmarks.peers.tune JOBS.json`: a list of waves (bases, then what copies them), each a list of jobs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.peers.plain import Job, train


def trial(config: dict[str, Any]) -> None:
    """Train one cell."""
    last = train(config["job"], tune.report)
    tune.report({key: last[key] for key in ("top1", "train_cpu_s")})


def main(waves: list[list[Job]]) -> list[dict[str, Any]]:
    """Run wave after wave on all cores; a result a job."""
    ray.init(include_dashboard=False, log_to_driver=False)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, jobs in enumerate(waves):
            tuner = tune.Tuner(
                tune.with_resources(trial, {"cpu": 1}),
                param_space={"job": tune.grid_search(jobs)},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(name=f"wave{number}", storage_path=folder, verbose=0),
            )
            for result in tuner.fit():
                assert result.metrics is not None and result.error is None, result.error
                found.append(
                    {
                        "name": result.metrics["config"]["job"]["name"],
                        "top1": result.metrics["top1"],
                        "train_cpu_s": result.metrics["train_cpu_s"],
                    }
                )
    ray.shutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
