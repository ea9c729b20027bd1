"""What a person sees while the grid runs: a matrix of treatments and n that fills as cells finish.

In a terminal it is drawn again and again in place; elsewhere it is one line a cell, good for logs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raygrid.cell import Cell
from raygrid.plan import Cohort, Plan
from raygrid.record import Record
from raygrid.study import in_order

FAILURES_SHOWN = 5


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12 s`."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@dataclass
class Board:
    """What is known of every cell of a plan; drawn by `matrix`."""

    plan: Plan
    scores: dict[str, float | None] = field(default_factory=dict)
    """by address: headline score of finished cells; null where a cell has none"""
    status: dict[str, str] = field(default_factory=dict)
    """by address: ok, diverged, blocked, failed"""
    live: dict[str, tuple[int, float | None]] = field(default_factory=dict)
    """by address: step and top-1 of the last test of cells in training; null before the first"""

    def add(self, record: Record) -> None:
        """A cell is finished."""
        address = record.cell.address
        self.status[address] = record.result.status
        self.scores[address] = getattr(record.result, self.plan.study.score)
        self.live.pop(address, None)

    @property
    def finished(self) -> int:
        return sum(status in ("ok", "diverged", "blocked") for status in self.status.values())

    def matrix(self) -> Table:
        """Mean top-1 of finished cells by treatment and n, with how many of them; `..` where some train."""
        rows: dict[str, dict[int, list[Cell]]] = defaultdict(lambda: defaultdict(list))
        for cell in self.plan.cells:
            rows[cell.series][cell.n].append(cell)
        columns = sorted({cell.n for cell in self.plan.cells})
        title = f"{self.plan.study.name}: top-1 (~ on the way), finished/planned"
        table = Table(title=title, expand=False)
        table.add_column("treatment")
        for n in columns:
            table.add_column(f"n = {n}", justify="right")
        for series in in_order(rows):
            table.add_row(series, *(self._place(rows[series].get(n, ())) for n in columns))
        return table

    def _place(self, cells: Iterable[Cell]) -> Text:
        cells = list(cells)
        if not cells:
            return Text("")
        found = [s for c in cells if (s := self.scores.get(c.address)) is not None]
        ended = sum(c.address in self.status for c in cells)
        bad = any(self.status.get(c.address, "ok") != "ok" for c in cells)
        live = [self.live[c.address][1] for c in cells if c.address in self.live]
        tested = [score for score in live if score is not None]
        mean = f"{fmean(found):.3f}" if found else f"~{fmean(tested):.3f}" if tested else "..." if live else "-"
        style = "red" if bad else "green" if ended == len(cells) else "yellow" if live or found else "dim"
        return Text(f"{mean} {ended}/{len(cells)}{'!' if bad else ''}", style=style)


class Display:
    """The live display of a launch."""

    def __init__(self, board: Board, console: Console, devices: int, predicted_s: float | None):
        self.board, self.console, self.devices, self.predicted_s = board, console, devices, predicted_s
        self.begun = time.monotonic()
        self.at_start = board.finished
        self.running: dict[str, Cohort] = {}
        self.speed: dict[str, tuple[float, float]] = {}
        self.failures: list[str] = []
        self.log: str | None = None
        """where to read more of failures"""
        self.trouble = ""
        self.steps_left = sum(c.steps(board.plan.facts) for c in board.plan.cells if c.address not in board.status)
        self.steps_all = max(1, self.steps_left)
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)
        self.interactive = console.is_terminal

    def __enter__(self) -> Display:
        if self.interactive:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.interactive:
            self._live.stop()

    def started(self, cohort: Cohort, where: str) -> None:
        """A cohort begins."""
        self.running[cohort.cells[0].address] = cohort
        if not self.interactive:
            self.console.print(f"start   {cohort.title}", highlight=False)

    def ended(self, cohort: Cohort) -> None:
        """A cohort no longer runs."""
        self.running.pop(cohort.cells[0].address, None)

    def logged(self, cell: Cell, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation."""
        before = self.board.live.get(cell.address, (0, 0.0))[0]
        self.steps_left -= max(0, step - before)
        self.board.live[cell.address] = (step, metrics.get("test/top1"))
        if "perf/images_per_s" in metrics:
            self.speed[cell.stream] = (time.monotonic(), metrics["perf/images_per_s"])

    def recorded(self, record: Record) -> None:
        """A cell is finished."""
        cell, result = record.cell, record.result
        before = self.board.live.get(cell.address, (0, 0.0))[0]
        self.steps_left -= max(0, cell.steps(self.board.plan.facts) - before)
        self.board.add(record)
        score = getattr(result, self.board.plan.study.score)
        shown = "no score" if score is None else f"top-1 {score:.4f}"
        if result.status != "ok":
            self._failure(f"{cell.title}: {result.status}: {result.reason}")
        elif not self.interactive:
            left = f"{self.board.finished}/{len(self.board.plan.cells)}"
            line = f"done    {cell.title:<32} {shown}  [{left}, {self.eta()}]"
            self.console.print(line, highlight=False, markup=False)

    def failed(self, cell: Cell, why: str) -> None:
        """A cell could not be trained."""
        self.board.status[cell.address] = "failed"
        self.board.live.pop(cell.address, None)
        self._failure(f"{cell.title}: failed: {why}{f' (more in {self.log})' if self.log else ''}")

    def note(self, text: str) -> None:
        """Something a person should know."""
        self.console.print(text, highlight=False, markup=False)

    def _failure(self, line: str) -> None:
        self.failures.append(line)
        if not self.interactive:
            self.console.print(f"FAILED  {line}", highlight=False, markup=False)

    def eta(self) -> str:
        """Time left, from the steps done in this launch; before there are any, from the prediction."""
        spent = time.monotonic() - self.begun
        done = self.steps_all - self.steps_left
        if done > 0.02 * self.steps_all:
            return f"about {duration(spent / done * self.steps_left)} left"
        return f"about {duration(self.predicted_s)} in all" if self.predicted_s else "..."

    def _render(self) -> RenderableType:
        recent = [speed for at, speed in self.speed.values() if time.monotonic() - at < 30]
        busy = min(len(self.running), self.devices)
        line = (
            f"{self.board.finished}/{len(self.board.plan.cells)} networks, {self.eta()}, "
            f"{busy}/{self.devices} devices busy, {sum(recent):,.0f} images/s, "
            f"{duration(time.monotonic() - self.begun)} so far"
        )
        parts: list[RenderableType] = [self.board.matrix(), Text(line, style="bold")]
        parts += [Text(f"now: {cohort.title}", style="dim") for cohort in list(self.running.values())[:8]]
        parts += [Text(f"! {text}", style="red") for text in self.failures[-FAILURES_SHOWN:]]
        if self.trouble:
            parts.append(Text(self.trouble, style="yellow"))
        return Group(*parts)
