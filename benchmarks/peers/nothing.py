"""Ray Tune alone: so many trials that do nothing but report once. `python -m benchmarks.peers.nothing 1000`"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import ray
from ray import tune


def trial(config: dict[str, Any]) -> None:
    """Nothing, reported."""
    tune.report({"top1": 0.5})


def main(count: int) -> None:
    """Run them on all cores, actors reused."""
    ray.init(include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"cell": tune.grid_search(list(range(count)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(name="nothing", storage_path=folder, verbose=0),
        ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
