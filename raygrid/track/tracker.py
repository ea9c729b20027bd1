"""The writer: one thread that projects a grid onto MLflow, and never lets MLflow touch training (law 7).

Training calls `log` and `finish`, which only put something down and return. The thread carries it to the server, waits
while the server is away, and where memory or patience ends forgets what it holds: the store has it, and gives it back
when the cell is finished, when the grid ends, or in `sync`. What is written is a function of cell and record
(projection.py), and a cell's run is looked up by its address before one is made, so that nothing is ever there twice.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raygrid.cell import Cell
from raygrid.errors import StoreError
from raygrid.plan import Plan
from raygrid.record import Record, find_record, find_records, record_path
from raygrid.store import Store
from raygrid.track import projection as show
from raygrid.track import views
from raygrid.track.server import Away, Gone, Refused, Rejected, Server, TrackError, plain_uri

HELD_POINTS = 50_000
"""evaluations' values held in memory while the server is away; later ones come from the store"""
HELD_RECORDS = 256
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""waits between tries while the server is away"""
REFUSED_S = 60.0
"""wait between tries while the server refuses"""
GRACE_S = 10.0
"""how long `close` goes on trying a server that answers nothing"""
CLOSING_TRIES = 20
"""how often `close` tries one thing that a server, which answers else, does not take"""
FIGURES_S = 20.0
"""least time between two refreshes of the figure runs"""
ROUNDS = 5
"""how often `close` looks for what is missing"""
ARTIFACT_BYTES = 5 * 2**20
ARTIFACTS = (".png", ".svg", ".md", ".tex", ".csv", ".html", ".json", ".yaml", ".parquet")


@dataclass(frozen=True)
class Missed:
    """What MLflow does not show at the end. False where it shows everything."""

    cells: int
    """finished cells whose run is absent or not complete; all of them where MLflow was never reached"""
    why: str | None
    command: str
    """the command that brings it there"""

    def __bool__(self) -> bool:
        return self.cells > 0 or self.why is not None

    def __str__(self) -> str:
        if not self:
            return "MLflow shows every finished cell"
        what = f"MLflow misses {self.cells} finished cell{'' if self.cells == 1 else 's'}"
        return f"{what}{f' ({self.why})' if self.why else ''}; nothing is lost: {self.command}"


@dataclass
class _Run:
    """A run that this process writes, and what is there already: what succeeded is not tried again."""

    run: Any
    known: set[tuple[str, int]] = field(default_factory=set)
    """(metric, step) of the points that it has"""
    data: bool = False
    """its data are noted"""
    described: bool = False
    """its params are there"""
    recorded: bool = False
    """all values of a record are there"""
    closed: bool = False
    """it has ended: nothing may be added"""

    def fresh(self, points: Iterable[show.Point]) -> list[show.Point]:
        """Points that the run does not have, each once."""
        return list({(p.key, p.step): p for p in points if (p.key, p.step) not in self.known}.values())

    def note(self, points: Iterable[show.Point]) -> None:
        self.known.update((p.key, p.step) for p in points)
        self.described = True


class Tracker:
    """Projects a plan's cells onto MLflow. `log` and `finish` never block and never raise; see the module."""

    def __init__(self, plan: Plan, store: Store, uri: str, report: Path | None = None):
        self.plan = plan
        self.store = store
        self.uri = uri
        self.report = report
        self.figures = show.Figures(plan)
        self.server = Server(uri)
        self.name = f"raygrid/{plan.study.name}"
        self.counts = {"cells": 0, "created": 0, "completed": 0, "present": 0}
        self._trouble: str | None = None
        self._lock = threading.Condition()
        self._points: OrderedDict[str, list[show.Point]] = OrderedDict()
        self._held = 0
        self._todo: OrderedDict[str, Record | None] = OrderedDict()
        self._closing: float | None = None
        self._thread: threading.Thread | None = None
        # the rest belongs to the writer alone
        self._experiment: str | None = None
        self._described = self._connected = False
        self._open: dict[str, _Run] = {}
        self._done: set[str] = set()
        self._scores: dict[str, float | None] = {}
        self._waiting: dict[str, list[tuple[Cell, Any]]] = defaultdict(list)
        self._lines: dict[str, _Run] = {}
        self._rejected: dict[str, str] = {}
        self._drawn = 0.0
        self._settled = 0
        self._stage = 0
        self._unsettled = False
        self._sent: set[Path] = set()

    # --- what training calls -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the writer; returns at once."""
        self._thread = threading.Thread(target=self._work, name="raygrid-mlflow", daemon=True)
        self._thread.start()

    def log(self, cell: Cell, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a cell at a training step."""
        try:
            points = show.points_at(step, metrics)
            with self._lock:
                if self._held + len(points) <= HELD_POINTS:
                    self._points.setdefault(cell.address, []).extend(points)
                    self._held += len(points)
                    self._lock.notify()
        except Exception as error:
            self._trouble = f"MLflow: metrics of {cell.title} were not logged ({type(error).__name__}: {error})"

    def finish(self, cell: Cell, record: Record) -> None:
        """Note that a cell has a record."""
        with self._lock:
            self._todo[cell.address] = record if len(self._todo) < HELD_RECORDS else None
            self._lock.notify()

    def close(self, timeout_s: float = 60.0) -> Missed:
        """Write what is left, fill in from the store what MLflow misses, draw the figure runs, end the writer. Takes
        `timeout_s` at most."""
        if self._thread is not None:
            with self._lock:
                self._closing = time.monotonic() + timeout_s
                self._lock.notify()
            self._thread.join(timeout_s)
        left = len(self._todo.keys() | self._rejected.keys() | self._unseen())
        why = self.trouble
        if why is None and self._thread is not None and self._thread.is_alive():
            why = f"MLflow {plain_uri(self.uri)} was too slow"
        with self._lock:
            self._closing = 0.0
        where = f"--store {self.store.url} --uri {plain_uri(self.uri)}"
        return Missed(left, why, f"python -m raygrid.track sync STUDY {where}")

    def _unseen(self) -> set[str]:
        """Finished cells, where MLflow was never reached: nobody knows what it has of them."""
        if self._thread is None or self._connected:
            return set()
        with contextlib.suppress(StoreError):
            listed = set(self.store.list(f"cells/{self.plan.facts.name}"))
            return {c.address for c in self.plan.cells if record_path(c) in listed and c.address not in self._done}
        return set()

    @property
    def trouble(self) -> str | None:
        """One line while MLflow cannot be written."""
        return self._trouble or next(iter(self._rejected.values()), None)

    @property
    def view(self) -> str | None:
        """The part of a link after the server: the Figure 2 view; None while the experiment is not known."""
        return None if self._experiment is None else views.link("", self._experiment, views.view_of(self.figures))

    @property
    def link(self) -> str | None:
        """Link to the Figure 2 view on the server; None for an embedded file, or while the server was not reached."""
        return None if self.server.file or self.view is None else plain_uri(self.uri).rstrip("/") + self.view

    @property
    def command(self) -> str:
        """The command that opens MLflow's pages on an embedded file; for a server, its address."""
        return f"mlflow ui --workers 1 --backend-store-uri {self.uri}" if self.server.file else plain_uri(self.uri)

    # --- the writer ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        tries, closing = 0, None
        while not self._over():
            try:
                more = self._step()
                tries, self._trouble = 0, None
                if not more:
                    return
                continue
            except Away as error:
                self._trouble, wait = str(error), BACKOFF_S[min(tries, len(BACKOFF_S) - 1)]
            except Refused as error:
                self._trouble, wait = str(error), REFUSED_S
                if self._closing is not None:
                    return
            except Exception as error:  # whatever it is, it must end neither training nor the projection
                self._trouble, wait = f"MLflow: {type(error).__name__}: {' '.join(str(error).split())}"[:300], 2.0
            tries += 1
            if tries % 3 == 0:
                self._rotate()
            if self._closing is None:
                with self._lock:
                    self._lock.wait_for(lambda: self._closing is not None, wait)
                continue
            closing = closing or time.monotonic()
            if time.monotonic() - max(closing, self.server.answered) > GRACE_S or tries > CLOSING_TRIES:
                return
            time.sleep(min(wait, 1.0))

    def _over(self) -> bool:
        return self._closing is not None and time.monotonic() > self._closing

    def _step(self) -> bool:
        """Write one thing. False when all is written and the grid has ended."""
        if not self._connected:
            self._connect()
        with self._lock:
            if not self._points and not self._todo and self._closing is None:
                self._lock.wait(FIGURES_S)
            training = next(iter(self._points), None)
            finished = training if training in self._todo else next(iter(self._todo), None)
            closing = self._closing is not None
        if training and training != finished:
            self._train(self.plan.by_address[training])
        elif finished:
            self._finish(self.plan.by_address[finished])
        elif closing:
            return self._settle()
        if time.monotonic() - self._drawn > FIGURES_S:
            self._draw()
        return True

    def _rotate(self) -> None:
        """Let others go first: one write that the server chokes on must not hold up the rest."""
        with self._lock:
            for queue in (self._points, self._todo):
                if len(queue) > 1:
                    queue.move_to_end(next(iter(queue)))  # type: ignore[attr-defined]

    # --- the experiment ------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Find or make the experiment; learn what it has, and note which finished cells it lacks. What is done of this
        is not done again after a failure: a server that answers now and then is enough."""
        if self._experiment is None:
            tags = {
                "raygrid.study": self.plan.study.name,
                "raygrid.dataset": self.plan.facts.name,
                "mlflow.experimentKind": "custom_model_development",
            }
            self._experiment = self.server.experiment(self.name, {**tags, **views.views(self.figures)})
            self._open.clear()
            self._lines.clear()
        if not self._described:
            self.describe(self._experiment)
            self._described = True
        self._compare(self._experiment)
        self._connected = True

    def describe(self, experiment: str) -> None:
        """Write the saved views and the note. A server that does not want them shows its own default."""
        pages = {
            "Figure 2": "raygrid-figure2",
            "Figure 2, mean over splits": "raygrid-figure2-mean",
            "Trials": "raygrid-trials",
            "Failures": "raygrid-failures",
            "What differs": "raygrid-differs",
        }
        links = {name: views.link("", experiment, view).lstrip("/") for name, view in pages.items()}
        tags = views.views(self.figures, self._scores)
        tags["mlflow.note.content"] = views.note(self.plan, self.command, links)
        with contextlib.suppress(Rejected):
            self.server.tag_experiment(experiment, tags)

    def _compare(self, experiment: str) -> None:
        """What the experiment has, against what the store has."""
        trials: dict[str, list[Any]] = defaultdict(list)
        lines: dict[str, list[Any]] = defaultdict(list)
        for run in self.server.runs(experiment):
            tags = run.data.tags
            if tags.get(show.KIND) == "trial":
                trials[tags.get(show.CELL, "")].append(run)
            elif tags.get(show.KIND) == "figure":
                lines[tags.get(show.LINE, "")].append(run)
        whole = {}
        for cell in self.plan.cells:
            run = self.server.one_of(trials.get(cell.address, []))
            if run is not None and show.RECORD in run.data.tags and run.info.status in ("FINISHED", "FAILED"):
                whole[cell.address] = run
                self._scores[cell.address] = run.data.metrics.get(show.FIGURE)
        records = find_records(self.store, [cell for cell in self.plan.cells if cell.address not in whole])
        self._done = set(whole)
        for address, record in records.items():
            self._scores[address] = show.score(record, self.plan.study.score)
            with self._lock:
                if address not in self._todo and address not in self._rejected:
                    self._todo[address] = record if len(self._todo) < HELD_RECORDS else None
        for line in list(self._lines):
            if self._lines[line].run.info.run_id not in {run.info.run_id for run in lines.get(line, [])[:1]}:
                del self._lines[line]  # of two launches' runs, the other's stays
        self._waiting.clear()
        for address, run in whole.items():
            if show.DELTA not in run.data.metrics:
                cell = self.plan.by_address[address]
                self.server.log(run, self._difference(cell))
                self._await_base(cell, run)
        for line, runs in lines.items():
            run = self.server.one_of(runs)
            if run is not None and line not in self._lines:
                self._lines[line] = _Run(run, self.server.known_steps(run), described=bool(run.data.params))
        self.counts["present"] = len(whole)
        self.counts["cells"] = len(whole) + len(records)

    def _settle(self) -> bool:
        """At the end: what others wrote meanwhile, and what was missed; then the figures. True while there is more."""
        assert self._experiment is not None
        stage = self._stage  # one at a time, so that a failure repeats one only
        if stage == 0:
            self._unsettled = False
            present = self.counts["present"]
            if self._settled < ROUNDS:  # a cell that stays incomplete is not tried for ever
                self._compare(self._experiment)
            self._settled += 1
            self.counts["present"] = present
            if self._todo:
                return True
        elif stage == 1:
            for address, held in self._open.items():
                if not held.closed and address not in self._done:
                    with contextlib.suppress(Gone, Rejected):
                        self.server.set_status(held.run, "KILLED")
                    held.closed = True
        elif stage == 2:
            self._draw()
        elif stage == 3:
            self.describe(self._experiment)
        else:
            with contextlib.suppress(Gone, Rejected):
                self._report()
            self._stage = 0  # once more, if runs were made here: another launch may have made the same
            return self._unsettled and self._settled < ROUNDS
        self._stage = stage + 1
        return True

    # --- runs ----------------------------------------------------------------------------------------------

    def _run(self, cell: Cell, record: Record | None, trained: bool) -> _Run:
        """The one run of a cell, made if there is none; opened again, and another attempt counted, if it was `trained`
        further in this launch."""
        held = self._open.get(cell.address)
        if held is not None:
            return held
        assert self._experiment is not None
        run = self.server.find(self._experiment, show.CELL, cell.address)
        if run is None:
            start = show.milliseconds(record.provenance.started) if record else int(time.time() * 1000)
            tags = show.birth_tags(cell, self.figures.group(cell))
            run = self.server.create(self._experiment, cell.title, tags, start)
            held = _Run(run)
            self.counts["created"] += 1
        else:
            closed = show.RECORD in run.data.tags and run.info.status != "RUNNING"
            described = bool(run.data.params)
            held = _Run(run, self.server.known_steps(run), described, described, closed=closed)
            if trained and not closed:
                if run.info.status != "RUNNING":
                    self.server.set_status(run, "RUNNING")
                if held.described:
                    attempts = int(run.data.tags.get(show.ATTEMPTS, "0")) + 1
                    self.server.log(run, [], tags={show.ATTEMPTS: str(attempts), show.STATUS: "training"})
        self._open[cell.address] = held
        return held

    def _write(self, cell: Cell, action: Callable[[], None]) -> None:
        """Do something to a cell's run. A run that was deleted is found or made anew; what the server does not take
        is left out."""
        try:
            try:
                action()
            except Gone:
                self._open.pop(cell.address, None)
                try:
                    action()
                except Gone:
                    self._open.pop(cell.address, None)
                    self._experiment, self._connected = None, False
                    self.server.experiment(self.name, {})  # deleted as a whole? then this says so
                    raise
        except Rejected as error:
            self._rejected[cell.address] = str(error)

    def _describe_run(self, cell: Cell, held: _Run) -> dict[str, str]:
        """Params, where the run has none; its data are noted first, so that params mean both are there."""
        if not held.data:
            tasks = {"train": cell.target} if cell.source is None else {"train": cell.target, "base": cell.source}
            with contextlib.suppress(Rejected):
                self.server.log_data(held.run, tasks, self.plan.facts, self.store.uri(f"data/{self.plan.facts.sha256}"))
            held.data = True
        return {} if held.described else show.params(cell)

    def _train(self, cell: Cell) -> None:
        """Write what was measured of a cell in training."""
        with self._lock:
            points = list(self._points[cell.address])

        def action() -> None:
            held = self._run(cell, None, True)
            fresh = held.fresh(points)
            if not held.closed and (fresh or not held.described):
                self.server.log(held.run, fresh, self._describe_run(cell, held))
                held.note(fresh)

        if cell.address not in self._done:
            self._write(cell, action)
        self._forget(cell.address, len(points))

    def _forget(self, address: str, count: int) -> None:
        with self._lock:
            points = self._points.pop(address, [])
            self._held -= min(count, len(points))
            if points[count:]:
                self._points[address] = points[count:]

    def _finish(self, cell: Cell) -> None:
        """Write all that a record says of a cell, and end its run."""
        with self._lock:
            record = self._todo[cell.address]
            live = list(self._points.get(cell.address, ()))
        record = record or find_record(self.store, cell)
        if record is not None:
            self._scores[cell.address] = show.score(record, self.plan.study.score)
            if cell.address not in self._done:
                self._write(cell, lambda: self._project(cell, record, live))
            if cell.address not in self._rejected:
                self._done.add(cell.address)
                self.counts["completed"] += 1
            while self._waiting.get(cell.address):
                dependant, run = self._waiting[cell.address][-1]
                with contextlib.suppress(Gone, Rejected):
                    self.server.log(run, self._difference(dependant))
                self._waiting[cell.address].pop()
            self._open.pop(cell.address, None)
        self._forget(cell.address, len(live))
        with self._lock:
            self._todo.pop(cell.address, None)

    def _project(self, cell: Cell, record: Record, live: list[show.Point]) -> None:
        held = self._run(cell, record, bool(live))
        if held.closed:
            return
        if not held.recorded:
            points = held.fresh([*show.history(record), *live])
            paths = [record.result.checkpoint] if record.result.checkpoint else []
            tags = show.final_tags(record, {path: self.store.uri(path) for path in paths})
            extra = [*show.finals(record, self.plan.study.score), *self._difference(cell)]
            self.server.log(held.run, [*points, *extra], self._describe_run(cell, held), tags)
            held.note(points)
            held.recorded = True
        self.server.set_status(held.run, show.run_status(record), show.milliseconds(record.provenance.ended))
        held.closed = True
        self._await_base(cell, held.run)

    def _difference(self, cell: Cell) -> list[show.Point]:
        """How far a finished cell is above the base of its task, if that is finished too."""
        base = show.target_base(cell)
        if base is None or base.address not in self._scores or base.address not in self.plan.by_address:
            return []
        return show.delta(self._scores[cell.address], self._scores[base.address])

    def _await_base(self, cell: Cell, run: Any) -> None:
        """Note a finished cell that is to be compared with a base which has no record yet."""
        base = show.target_base(cell)
        if base is not None and base.address in self.plan.by_address and base.address not in self._scores:
            self._waiting[base.address].append((cell, run))

    # --- figures -------------------------------------------------------------------------------------------

    def _line(self, key: str, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> _Run:
        """The figure run of a key; one drawn for another plan is replaced."""
        assert self._experiment is not None
        held = self._lines.get(key)
        if held is not None and held.run.data.tags.get(show.PLAN) != tags[show.PLAN]:
            with contextlib.suppress(Gone):
                self.server.delete(held.run.info.run_id)
            held = None
            self._lines.pop(key, None)
        if held is None:
            run = self.server.find(self._experiment, show.LINE, key)
            if run is None:
                tags = {show.KIND: "figure", show.LINE: key, "mlflow.source.name": "raygrid", **tags}
                run = self.server.create(self._experiment, name, tags, int(time.time() * 1000))
                self._unsettled = True
            held = self._lines[key] = _Run(run, self.server.known_steps(run), described=bool(run.data.params))
        if not held.described:
            self.server.log(held.run, [], params)
            held.described = True
        if not held.closed and held.run.info.status != "FINISHED":
            self.server.set_status(held.run, "FINISHED")
        held.closed = True
        return held

    def _draw(self) -> None:
        """Bring the figure runs up to what is finished: one a treatment, in the paper's colours."""
        self._drawn = time.monotonic()
        main = next(iter(self.figures.groups), "")
        for curve in self.figures.curves:
            points = curve.points(self._scores)
            held = self._lines.get(curve.key)
            same = held is not None and held.run.data.tags.get(show.PLAN) == curve.digest
            if not points or (same and held is not None and not held.fresh(points)):
                continue
            name = f"Fig 2 · {show.label(curve.treatment)}" + ("" if curve.group == main else f" · {curve.group}")
            tags = {
                show.GROUP: curve.group,
                show.PLAN: curve.digest,
                "mlflow.runColor": show.colour(curve.treatment),
            }
            try:
                held = self._line(curve.key, name, tags, {"treatment": curve.treatment, "group": curve.group})
                fresh = held.fresh(points)
                self.server.log(held.run, fresh)
                held.note(fresh)
            except Gone:
                self._lines.pop(curve.key, None)

    def _report(self) -> None:
        """Figures, tables and the study as artifacts of one run."""
        files = [path for path in sorted(self.report.rglob("*")) if path.is_file()] if self.report else []
        small = [p for p in files if p.suffix in ARTIFACTS and p.stat().st_size <= ARTIFACT_BYTES]
        held = self._line("report", "Report", {show.PLAN: "report"}, {"treatment": "report"})
        self.server.upload_text(held.run, self.plan.study.model_dump_json(indent=1), "study.json")
        for path in small:
            if self._over():
                return
            if path in self._sent:
                continue
            assert self.report is not None
            inside = path.relative_to(self.report).parent.as_posix()
            self.server.upload(held.run, path, "report" if inside == "." else f"report/{inside}")
            self._sent.add(path)


def sync(plan: Plan, store: Store, uri: str, report: Path | None = None) -> dict[str, int]:
    """Bring an MLflow experiment up to the store: every finished cell once. Run it as often as you like.

    Returns counts: `cells` with records, runs `present` and whole before, `completed` now, of these `created`. Raises
    TrackError where the server is away or refuses.
    """
    tracker = Tracker(plan, store, uri, report)
    tracker._closing = math.inf
    tracker._work()
    if tracker.trouble:
        raise TrackError(tracker.trouble)
    return tracker.counts


def write_views(plan: Plan, uri: str) -> str:
    """Write the saved views of a study anew; returns the part of the Figure 2 link after the server."""
    tracker = Tracker(plan, Store("memory:///"), uri)
    experiment = tracker.server.experiment(tracker.name, {"raygrid.study": plan.study.name})
    tracker.describe(experiment)
    return views.link("", experiment, views.view_of(tracker.figures))
