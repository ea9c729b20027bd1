"""`python -m raygrid.status STUDY`: how far a study is, from anywhere, from the store alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from raygrid.errors import RaygridError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m raygrid.status",
        description="Show how far a study is: what is finished, what trains, what went wrong.",
        epilog="exit codes: 0 every planned cell is ok; 1 not yet; 2 wrong input; 3 the store is unusable",
    )
    p.add_argument("study", nargs="?", help="YAML file, or the name of a study that comes with raygrid (default: demo)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as for the launch")
    p.add_argument("--store", metavar="URL", help="the launch's store (default: RAYGRID_STORE, else results/store)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    from rich.console import Console

    console = Console(soft_wrap=True)
    try:
        return show(arguments, console)
    except RaygridError as error:
        Console(stderr=True, soft_wrap=True).print(f"raygrid: {error}", style="red", highlight=False, markup=False)
        return error.exit_code


def show(arguments: argparse.Namespace, console: object) -> int:
    """Print the matrix and what is wrong."""
    from rich.console import Console

    from raygrid.data.known import facts
    from raygrid.display import Board
    from raygrid.launch import find_study
    from raygrid.plan import plan
    from raygrid.record import find_records, folder
    from raygrid.store import Store

    assert isinstance(console, Console)
    study = find_study(arguments.study, arguments.set)
    store = Store(arguments.store or os.environ.get("RAYGRID_STORE") or "results/store")
    the_plan = plan(study, facts(study.dataset))
    records = find_records(store, the_plan.cells)
    board = Board(the_plan)
    for record in records.values():
        board.add(record)
    held = {path.removesuffix("/lease.json") for path in store.list("cells") if path.endswith("/lease.json")}
    for cell in the_plan.cells:
        if folder(cell) in held and cell.address not in records:
            board.live[cell.address] = (0, 0.0)
    console.print(board.matrix())
    console.print(f"{board.finished}/{len(the_plan.cells)} networks finished, {len(board.live)} held by a worker")
    for record in records.values():
        if record.result.status != "ok":
            text = f"! {record.cell.title}: {record.result.status}: {record.result.reason}"
            console.print(text, style="red", markup=False, highlight=False)
    good = sum(record.result.status == "ok" for record in records.values())
    return 0 if good == len(the_plan.cells) else 1


if __name__ == "__main__":
    sys.exit(main())
