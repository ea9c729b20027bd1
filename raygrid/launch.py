"""`python -m raygrid.launch [STUDY]`: data, plan, training, MLflow, Parquet, figures and tables, in this order."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygrid.errors import RaygridError, Unfetched, UserError, ended_by, expanded

if TYPE_CHECKING:
    from rich.console import Console

    from raygrid.cell import Cell
    from raygrid.grid import Cluster, Grid
    from raygrid.plan import Cohort, Plan
    from raygrid.record import Record
    from raygrid.store import Store
    from raygrid.study import Study
    from raygrid.track import Tracker

WITHOUT_NETWORK = "icons"
MLFLOW_GRACE_S = 60.0
FAILURES = "failures.log"
"""tracebacks of cells that failed, beside the results"""
BEHIND = ".mlflow-behind"
"""a file beside the results while MLflow may lack a finished cell: a launch with nothing to train then sees to that"""
WRITING = ".writing"
"""the lock beside the results: another launch of the same study writes into the same report"""

EPILOG = """\
A second launch of the same study trains only what has no record; after Ctrl-C or a crash, launch again.

environment: RAYGRID_STORE (default of --store), RAYGRID_CLUSTER (default of --cluster), MLFLOW_TRACKING_URI,
             RAY_ADDRESS, RAYGRID_CACHE
exit codes:  0 every planned cell has a record with status ok; 1 some cell has none or another status;
             2 wrong input; 3 the store is unusable; 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m raygrid.launch",
        description="Run a study: train what is missing, then write Parquet, figures and tables.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("study", nargs="?", help="YAML file, or the name of a study that comes with raygrid (default: demo)")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as in recipe.epochs=4"
    )
    p.add_argument(
        "--store", metavar="URL", help="folder, s3://, gs:// or az:// that holds data and networks (default: OUT/store)"
    )
    p.add_argument("--out", metavar="DIR", default="results", help="where Parquet and report go (default: results)")
    p.add_argument(
        "--cluster", metavar="FILE", help="run there: a file of `ray up`, or a dashboard's address (RAYGRID_CLUSTER)"
    )
    p.add_argument("--dry-run", action="store_true", help="print the plan and what exists already; train nothing")
    p.add_argument("--prices", metavar="FILE", help="with --dry-run --cluster: prices instead of raygrid's own (CSV)")
    p.add_argument("--explain", metavar="CELL", help="with --dry-run: why this cell must be trained")
    return p


@dataclass(frozen=True)
class Job:
    """A launch in plain values: what the command line and the environment asked for."""

    study: Study
    chosen: bool
    """whether the user named the study, or a key of it: no other is then run in its place"""
    store_url: str
    out: Path
    mlflow_uri: str


def find_study(name: str | None, overrides: Sequence[str]) -> Study:
    """A study by file or by the name of one that comes with raygrid."""
    from raygrid.study import Study, study_file

    return Study.load(study_file(name), overrides)


def job_for(study: str | None, overrides: Sequence[str], store: str | None, out: str | Path) -> Job:
    """Settle what is asked: arguments first, then the environment, then defaults."""
    folder = expanded(out).resolve()
    return Job(
        study=find_study(study, overrides),
        chosen=study is not None or bool(overrides),
        store_url=store or os.environ.get("RAYGRID_STORE") or str(folder / "store"),
        out=folder,
        mlflow_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    from rich.console import Console

    console = Console(soft_wrap=True)
    try:
        asked = job_for(arguments.study, arguments.set, arguments.store, arguments.out)
        from raygrid import remote

        if arguments.dry_run:
            from raygrid.preview import preview

            cluster = remote.chosen(arguments.cluster)
            file = cluster if cluster and "://" not in cluster else None
            if arguments.prices and not file:
                raise UserError(
                    "--prices: dollars are printed for the node types of a cluster file; add --cluster FILE"
                )
            folder = asked.out / asked.study.name
            return preview(asked.study, asked.store_url, folder, console, arguments.explain, file, arguments.prices)
        for flag, value in (("--explain", arguments.explain), ("--prices", arguments.prices)):
            if value:
                raise UserError(f"{flag} goes with --dry-run, which trains nothing; add it")
        if cluster := remote.chosen(arguments.cluster):
            job = remote.request(cluster, asked.study.name, arguments.study, arguments.set, arguments.store, asked.out)
            return remote.run(job, console)
        if asked.study.execution.backend == "ray":
            remote.hint(console)
        return launch(asked, console)
    except (RaygridError, OSError, KeyboardInterrupt) as error:
        return ended_by(error, "what was finished is in the store, the same command goes on")


def launch(asked: Job, console: Console) -> int:
    """Run a study to its end; returns the exit code. Raises RaygridError."""
    from raygrid.data.arrays import publish
    from raygrid.data.cache import locked
    from raygrid.data.known import prepare
    from raygrid.plan import plan
    from raygrid.record import find_records, tidy
    from raygrid.store import Store

    study = asked.study
    store = Store(asked.store_url)
    store.check()
    try:
        manifest, place = prepare(study.dataset)
    except Unfetched as error:
        if asked.chosen:
            raise
        console.print(
            f"\n*** {error}\n*** The default study needs these photographs. Running the study `{WITHOUT_NETWORK}` "
            "instead, on drawings that come with raygrid: its figures say little about photographs. ***\n",
            style="bold yellow",
            highlight=False,
            markup=False,
        )
        study = find_study(WITHOUT_NETWORK, ())
        manifest, place = prepare(study.dataset)
    the_plan = plan(study, manifest.facts())
    publish(manifest, place, store)
    records = find_records(store, the_plan.cells)
    tidy(store, [record.cell for record in records.values()], the_plan.cells)
    folder = asked.out / study.name
    folder.mkdir(parents=True, exist_ok=True)

    from raygrid.track import Tracker

    tracker = Tracker(the_plan, store, asked.mlflow_uri, folder / "report")
    behind = folder / BEHIND
    if all(cell.address in records for cell in the_plan.cells):
        from raygrid.preview import announce

        with locked(folder / WRITING):
            announce(the_plan, records, store, folder, console, 1, None)
            console.print("Every network of this study is in the store: nothing to train.")
            _write(the_plan, records, store, folder, asked, console, None)
        if behind.exists():
            tracker.start()
            _close(tracker, behind, MLFLOW_GRACE_S, console)
    else:
        behind.touch()
        try:
            begun = time.monotonic()
            trouble = _train(the_plan, records, store, folder, tracker, console)
            seconds = time.monotonic() - begun
            records = find_records(store, the_plan.cells)
            with locked(folder / WRITING):
                _write(the_plan, records, store, folder, asked, console, seconds)
        finally:
            _close(tracker, behind, MLFLOW_GRACE_S if sys.exc_info()[0] is None else 5.0, console)
        if trouble is not None:
            raise trouble
    if records:
        from raygrid.remote import publish as publish_results

        with locked(folder / WRITING):
            publish_results(store, folder, study.name)
    return _verdict(the_plan, records, console)


def _train(
    the_plan: Plan, records: dict[str, Record], store: Store, folder: Path, tracker: Tracker, console: Console
) -> RaygridError | None:
    """Train what is missing; returns what ended the grid early, if anything did."""
    from raygrid import grid as grids
    from raygrid.data.cache import locked
    from raygrid.display import Board, Display
    from raygrid.plan import Agenda
    from raygrid.preview import announce

    execution = the_plan.study.execution
    threads = max(block.recipe.numerics.threads for block in the_plan.study.blocks)
    cluster: Cluster | None = None
    devices = execution.workers or 1
    memory: int | None = None
    if execution.backend == "ray":
        console.print("Starting Ray ...", style="dim")
        cluster = grids.connect()
        grids.check_store(store, cluster)
        devices = execution.workers or cluster.devices(execution, threads)
        kind = cluster.kind(execution)
        memory = cluster.memory(execution)
    else:
        kind, memory = grids.in_process_kind(execution)
    with locked(folder / WRITING):
        predicted = announce(the_plan, records, store, folder, console, devices, kind)
    board = Board(the_plan)
    for record in records.values():
        board.add(record)
    agenda = Agenda(
        the_plan,
        {address: record.result.status for address, record in records.items()},
        workers=devices,
        largest=execution.cohort,
        kind=kind,
        memory=memory,
    )
    display = Display(board, console, devices, predicted)
    grid = grids.Grid(the_plan, agenda, store, _Watch(display, tracker, store, folder / FAILURES))
    tracker.start()
    with _stopping(grid, raises=cluster is not None):
        try:
            with display:
                if cluster is None:
                    grids.run_in_process(grid, execution)
                else:
                    grids.run_on_ray(grid, execution, cluster)
        finally:
            if cluster is not None:
                grids.disconnect()
    if grid.stop:
        raise KeyboardInterrupt
    for line in display.failures:
        console.print(f"! {line}", style="red", highlight=False, markup=False)
    return grid.trouble


def _close(tracker: Tracker, behind: Path, seconds: float, console: Console) -> None:
    """End the tracker; say what MLflow misses."""
    missed = tracker.close(seconds)
    if missed:
        behind.touch()  # another launch, which missed nothing, may have removed it
        console.print(f"{missed}", style="yellow", highlight=False, markup=False)
    else:
        behind.unlink(missing_ok=True)


class _Watch:
    """Tells the display and the tracker, and the store of failures; keeps their log."""

    def __init__(self, display: Any, tracker: Any, store: Store, log: Path):
        self.display, self.tracker, self.store, self.log = display, tracker, store, log
        self.linked = False

    def _link(self) -> None:
        """MLflow's link, as soon as it is known: nobody waits for it."""
        if not self.linked and self.tracker.link:
            self.linked = True
            self.display.note(f"{'MLflow':<10}{self.tracker.link}")

    def logged(self, cell: Cell, step: int, metrics: dict[str, float]) -> None:
        self._link()
        self.tracker.log(cell, step, metrics)
        self.display.logged(cell, step, metrics)
        self.display.trouble = self.tracker.trouble or ""

    def recorded(self, record: Record) -> None:
        self._link()
        self.tracker.finish(record.cell, record)
        self.display.recorded(record)

    def failed(self, cell: Cell, why: str) -> None:
        from raygrid.record import note_failure

        note_failure(self.store, cell, why)
        self.display.failed(cell, why)

    def started(self, cohort: Cohort, where: str) -> None:
        self._link()
        self.display.started(cohort, where)

    def ended(self, cohort: Cohort) -> None:
        self.display.ended(cohort)

    def traced(self, cell: Cell, text: str) -> None:
        self.display.log = str(self.log)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {cell.address}\n{text}\n")

    def note(self, text: str) -> None:
        self.display.note(text)


class _stopping:
    """Ctrl-C and SIGTERM: the in-process loop saves its progress and stops; with Ray the driver leaves."""

    def __init__(self, grid: Grid, raises: bool):
        self.grid, self.raises = grid, raises
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        import threading

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        again = self.grid.stop
        self.grid.stop = True
        if self.raises or again:
            raise KeyboardInterrupt


def _write(
    the_plan: Plan,
    records: dict[str, Record],
    store: Store,
    folder: Path,
    asked: Job,
    console: Console,
    seconds: float | None,
) -> None:
    """Parquet, figures and tables from what the store holds."""
    if not records:
        console.print("No network has been trained yet: there is nothing to analyse.")
        return
    import analysis
    from raygrid.export import export
    from raygrid.preview import note_actual
    from raygrid.track.server import plain_uri

    results, history = export(the_plan, records, store, folder)
    note_actual(folder, seconds, records, plain_uri(asked.mlflow_uri))
    try:
        written = analysis.write(folder, folder / "report")
    except analysis.AnalysisError as error:
        console.print(
            f"The results are in {results}, but they could not be analysed: {error}", style="yellow", markup=False
        )
        return
    console.print()
    console.print(written.summary, highlight=False, markup=False)
    console.print()
    shown = {path.name: path for path in written.paths}
    for what, path in (
        ("report", shown.get("report.html")),
        ("Figure 2", shown.get("figure2.png")),
        ("paired", shown.get("figure2_paired.png")),
        ("Figure 3", shown.get("figure3.png")),
        ("Table 1", shown.get("table1.md")),
        ("results", results),
        ("history", history),
    ):
        if path is not None:
            console.print(f"{what:<10}{path}", highlight=False, markup=False)
    uri = asked.mlflow_uri
    from raygrid.track import plain_uri

    look = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else plain_uri(uri)
    console.print(f"{'MLflow':<10}{look}", highlight=False, markup=False)


def _verdict(the_plan: Plan, records: dict[str, Record], console: Console) -> int:
    wrong = [
        cell for cell in the_plan.cells if cell.address not in records or records[cell.address].result.status != "ok"
    ]
    if not wrong:
        return 0
    lost = sum(cell.address not in records for cell in wrong)
    console.print(
        f"{len(wrong)} of {len(the_plan.cells)} networks are not ok: {lost} without a record, "
        f"{len(wrong) - lost} diverged or blocked.",
        style="yellow",
        highlight=False,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
