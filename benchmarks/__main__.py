"""`python -m benchmarks NAME [--quick] [--keep]`, `python -m benchmarks table`."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence

from benchmarks import kept

NAMES = {
    "frozen_sweep": "seven networks on one frozen trunk: one after another, and as a cohort",
    "grid_vs_peers": "the demo grid against one process a cell, and against idiomatic Ray Tune",
    "overhead": "what a launch costs besides training; a thousand networks that train nothing",
    "fast_paths": "the training loop without each of its fast paths",
    "phases": "where the seconds of a training go",
    "before": "the training loop at a commit and here, and whether the bytes are the same",
    "plan_scale": "100,000 networks planned; makespan beside its bound",
    "analysis_scale": "export and analysis of 100,000 networks",
    "ingest": "images into arrays, against decoding alone",
    "gpu": "images a second and model FLOP utilisation on a GPU",
}
INSTEAD = {"ingest": ["--images", "300", "--pixels", "96x72", "--size", "32"], "plan_scale": []}
"""what --quick means to benchmarks that have no such option"""


class _Both(io.TextIOBase):
    """Writes to two places."""

    def __init__(self, *places: io.TextIOBase):
        self.places = places

    def write(self, text: str) -> int:
        for place in self.places:
            place.write(text)
        return len(text)

    def flush(self) -> None:
        for place in self.places:
            place.flush()


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark; returns the exit code."""
    if not arguments or arguments[0] not in (*NAMES, "table"):
        lines = [f"  {name:<15} {what}" for name, what in NAMES.items()]
        print("usage: python -m benchmarks NAME [--quick] [--keep]\n       python -m benchmarks table\n")
        print("\n".join(lines))
        return 0 if arguments in (["--help"], ["-h"]) else 2
    name, *rest = arguments
    if name == "table":
        print(kept.table())
        return 0
    keep = "--keep" in rest
    passed = [argument for argument in rest if argument != "--keep"]
    own = passed
    if name in INSTEAD and "--quick" in passed:
        own = [argument for argument in passed if argument != "--quick"] + INSTEAD[name]
    sys.argv = [f"benchmarks {name}", *own]
    before = kept.before()
    printed = io.StringIO()
    with contextlib.redirect_stdout(_Both(sys.stdout, printed)):  # type: ignore[arg-type, type-var]
        figures = importlib.import_module(f"benchmarks.{name}").main()
    if not isinstance(figures, dict):
        return int(figures or 0)
    if keep:
        print(kept.keep(name, passed, figures, printed.getvalue(), before), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
