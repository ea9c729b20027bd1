"""`python -m raygrid.track`: bring MLflow up to the store, or write its saved views anew."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raygrid.plan import Plan

EPILOG = (
    "exit codes: 0 all is written; 1 MLflow cannot be written; 2 wrong input; 3 the store is unusable; 130 interrupted"
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m raygrid.track", description=__doc__, epilog=EPILOG)
    commands = top.add_subparsers(dest="command", required=True)
    about = {
        "sync": "log every finished cell of a study that MLflow lacks, from the records in the store; safe to repeat",
        "views": "write the saved views of a study's experiment anew",
    }
    for name, text in about.items():
        command = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        command.add_argument(
            "study", metavar="STUDY", help="a study file, or the name of a study that comes with raygrid"
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the study"
        )
        command.add_argument("--uri", help="MLflow (default: MLFLOW_TRACKING_URI, else sqlite:///results/mlflow.db)")
        if name == "sync":
            command.add_argument("--store", help="the store (default: RAYGRID_STORE, else results/store)")
            command.add_argument("--report", type=Path, help="folder whose figures and tables become artifacts")
    return top


def load(study: str, overrides: Sequence[str]) -> Plan:
    """The plan of a study file, or of a bundled study's name."""
    from raygrid.data.known import facts
    from raygrid.plan import plan
    from raygrid.study import Study, study_file

    loaded = Study.load(study_file(study), overrides)
    return plan(loaded, facts(loaded.dataset))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    given = parser().parse_args(arguments)
    from raygrid.errors import RaygridError, ended_by
    from raygrid.store import Store
    from raygrid.track.server import plain_uri
    from raygrid.track.tracker import sync, write_views

    uri = given.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('results/mlflow.db').resolve()}"
    try:
        plan = load(given.study, given.set)
        if given.command == "views":
            view = write_views(plan, uri)
            server = plain_uri(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
            print(f"views of raygrid/{plan.study.name} written: {server}{view}")
            if not uri.startswith("http"):
                print(f"there once this runs: mlflow ui --workers 1 --backend-store-uri {plain_uri(uri)}")
            return 0
        store = Store(given.store or os.environ.get("RAYGRID_STORE") or "results/store", make=False)
        counts = sync(plan, store, uri, given.report)
    except (RaygridError, OSError, KeyboardInterrupt) as error:
        return ended_by(error, "what was written stays, the same command writes the rest")
    print(
        f"raygrid/{plan.study.name}: {counts['cells']} of {len(plan.cells)} cells are finished; "
        f"{counts['present']} runs were whole, {counts['completed']} completed now ({counts['created']} of them new)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
