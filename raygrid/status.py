"""`python -m raygrid.status STUDY`: how far a study is, from anywhere, from the store alone."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from raygrid.errors import RaygridError, ended_by

if TYPE_CHECKING:
    from rich.console import Console

    from raygrid.cell import Cell
    from raygrid.plan import Plan
    from raygrid.record import Record
    from raygrid.store import Store

SILENT_S = 90.0
"""a lease written longer ago, by this machine's clock, is held by nobody who lives: they are written every 15 s"""
HEAD = 2**16
"""bytes of a progress file read at first"""
SHOWN = 8
"""networks in training that are named"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m raygrid.status",
        description="Show how far a study is: what is finished, what trains, how long it may take, what went wrong.",
        epilog="exit codes: 0 every planned cell is ok; 1 not yet; 2 wrong input, or no store;"
        " 3 the store is unusable; 130 interrupted",
    )
    p.add_argument("study", nargs="?", help="YAML file, or the name of a study that comes with raygrid (default: demo)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as for the launch")
    p.add_argument("--store", metavar="URL", help="the launch's store (default: RAYGRID_STORE, else results/store)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    from rich.console import Console

    try:
        return show(arguments, Console(soft_wrap=True))
    except (RaygridError, OSError, KeyboardInterrupt) as error:
        return ended_by(error, "it only looked")


def show(arguments: argparse.Namespace, console: Console) -> int:
    """Print the matrix, who trains what, how long it may take, and what is wrong. Nothing is written."""
    from raygrid.data.known import facts
    from raygrid.display import Board, duration
    from raygrid.launch import find_study
    from raygrid.plan import plan
    from raygrid.record import failure_path, find_records, lease_path, progress_path
    from raygrid.store import Store

    study = find_study(arguments.study, arguments.set)
    store = Store(arguments.store or os.environ.get("RAYGRID_STORE") or "results/store", make=False)
    the_plan = plan(study, facts(study.dataset))
    written: dict[str, float] = {}
    for root in sorted({cell.target.dataset for cell in the_plan.cells}):
        written |= store.written(f"cells/{root}")
    records = find_records(store, the_plan.cells, written)
    unfinished = [cell for cell in the_plan.cells if cell.address not in records]
    board = Board(the_plan)
    for record in records.values():
        board.add(record)

    leases = {cell.address: lease_path(cell) for cell in unfinished if lease_path(cell) in written}
    held = {a for a, path in leases.items() if time.time() - written[path] < SILENT_S}
    workers = _owners(store, [leases[address] for address in held])
    progress = _progress(store, {c.address: progress_path(c) for c in unfinished if progress_path(c) in written})
    for address in held:
        now = progress.get(address)
        board.live[address] = (now.step, now.top1) if now else (0, None)
    notes = {failure_path(c): c for c in unfinished if c.address not in held and failure_path(c) in written}
    failures = {notes[path].address: _why(data) for path, data in store.find_many(notes).items()}
    board.status |= dict.fromkeys(failures, "failed")

    console.print(board.matrix())
    left = len(unfinished) - len(held) - len(failures)
    parts = [f"{board.finished}/{len(the_plan.cells)} networks finished"]
    parts += [f"{len(held)} in training on {workers} worker{'s' * (workers > 1)}"] if held else []
    parts += [f"{len(failures)} failed"] if failures else []
    parts += [f"{left} to train"] if left else []
    waiting = [cell for cell in unfinished if cell.address not in failures]
    seconds = _seconds_left(the_plan, waiting, records.values(), progress)
    if seconds and workers:
        parts.append(f"about {duration(seconds / workers)} left")
    elif seconds:
        parts.append(f"about {duration(seconds)} of training left for one worker, and nobody trains now")
    console.print(", ".join(parts), highlight=False)
    for cell in [cell for cell in unfinished if cell.address in held][:SHOWN]:
        now = progress.get(cell.address)
        where = f"step {now.step} of {cell.steps(the_plan.facts)}" if now else "no progress saved yet"
        where += f", top-1 {now.top1:.3f}" if now and now.top1 is not None else ""
        console.print(f"now: {cell.title}: {where}", style="dim", highlight=False, markup=False)
    if len(held) > SHOWN:
        console.print(f"     and {len(held) - SHOWN} more", style="dim")
    if silent := len(leases) - len(held):
        text = f"{silent} of those to train held by workers that fell silent (killed?): the next launch goes on there"
        console.print(text, style="yellow", highlight=False)
    wrong = [
        f"{r.cell.title}: {r.result.status}: {r.result.reason}" for r in records.values() if r.result.status != "ok"
    ]
    wrong += [f"{the_plan.by_address[a].title}: failed: {why}" for a, why in failures.items()]
    for text in wrong:
        console.print(f"! {text}", style="red", markup=False, highlight=False)
    good = sum(record.result.status == "ok" for record in records.values())
    return 0 if good == len(the_plan.cells) else 1


@dataclass(frozen=True)
class _Progress:
    """How far a cell was when its worker last saved."""

    step: int
    seconds: float
    top1: float | None
    """of its last test"""


def _progress(store: Store, paths: Mapping[str, str]) -> dict[str, _Progress]:
    """By the keys of `paths`: what the heads of progress files say; many requests at a time, of a few bytes each."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        read = pool.map(lambda path: _read_progress(store, path), paths.values())
        return {key: found for key, found in zip(paths, read, strict=True) if found is not None}


def _read_progress(store: Store, path: str) -> _Progress | None:
    """A safetensors file begins with the length of a JSON text, which holds all that is wanted here."""
    try:
        data = store.get_head(path, HEAD)
        size = int.from_bytes(data[:8], "little")
        if HEAD < 8 + size < 100 * HEAD:
            data = store.get_head(path, 8 + size)
        facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["raygrid"])
        history = facts["history"]
        return _Progress(int(facts["step"]), float(facts["seconds"]), float(history[-1]["top1"]) if history else None)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # finished meanwhile, or damaged: its worker will see


def _owners(store: Store, leases: Sequence[str]) -> int:
    """How many processes hold leases."""
    owners = set()
    for text in store.find_many(leases).values():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            lease = json.loads(text)
            owners.add((lease["host"], lease["pid"]))
    return len(owners)


def _why(note: bytes) -> str:
    try:
        return str(json.loads(note)["why"])
    except (ValueError, KeyError, TypeError):
        return "?"


def _seconds_left(
    the_plan: Plan, cells: Iterable[Cell], records: Iterable[Record], progress: Mapping[str, _Progress]
) -> float:
    """Seconds of training left for one worker, from what a step took in cells that are most alike; 0 where nothing is
    known."""
    spent: dict[tuple[object, ...], list[float]] = defaultdict(list)
    known = [(r.cell, r.provenance.duration_s, r.result.steps) for r in records]
    known += [(the_plan.by_address[address], p.seconds, p.step) for address, p in progress.items()]
    for cell, seconds, steps in known:
        if steps:
            for kind in _kinds(cell):
                spent[kind].append(seconds / steps)
    left = 0.0
    for cell in cells:
        rates = next((spent[kind] for kind in _kinds(cell) if kind in spent), [0.0])
        done = progress[cell.address].step if cell.address in progress else 0
        left += fmean(rates) * max(0, cell.steps(the_plan.facts) - done)
    return left


def _kinds(cell: Cell) -> list[tuple[object, ...]]:
    """What it has in common with others, most alike first."""
    return [(cell.treatment, cell.n), (cell.treatment,), (cell.phase,), ()]


if __name__ == "__main__":
    sys.exit(main())
