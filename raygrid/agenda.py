"""What is trained next: the one place that decides it.

The Ray search algorithm, the in-process back end and the simulator all ask an `Agenda`. It hands out cohorts of ready
cells of one stream, bases first. Its clock is virtual: it advances by the predicted cost of cohorts that end, so that
the same events in the same order always give the same cohorts, whatever the wall clock says. From it the agenda
reckons when every device would be done if the rest were spread evenly (the level), and hands out no more than that.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from raygrid.cell import Cell, DatasetFacts
from raygrid.cost import CellCost, Footprint, Meter, device

SLACK = 0.02
"""a stream goes out whole if it ends later than the level by at most this fraction of all the time until then"""
PATIENCE = 0.05
"""a stream whose last base is about to end is waited for, at most this fraction of the stream's own cost"""


@dataclass(frozen=True)
class Cohort:
    """Cells that share one stream and train side by side on one device."""

    cells: tuple[Cell, ...]
    again: bool = False
    """some of its cells came back once, since another launch trains them, and nothing else is left to do"""

    @property
    def title(self) -> str:
        return self.cells[0].title if len(self.cells) == 1 else f"{self.cells[0].target.label} x {len(self.cells)}"


class Planned(Protocol):
    """What an agenda needs of a plan."""

    @property
    def cells(self) -> tuple[Cell, ...]: ...
    @property
    def facts(self) -> DatasetFacts: ...


class Entry(NamedTuple):
    """A cell with its cost, in FLOPs or predicted seconds."""

    own: float
    trunk: float
    trunk_name: str | None
    footprint: Footprint
    order: int
    cell: Cell

    @property
    def lone(self) -> float:
        """Cost if no other cell shares its trunk."""
        return self.own + self.trunk


@dataclass
class Pricing:
    """Entries of cells: in predicted seconds on a device kind, or in FLOPs where none is given."""

    meter: Meter
    kind: str | None = None
    _known: dict[int, tuple[CellCost, float, float]] = field(default_factory=dict, repr=False)

    def __call__(self, cell: Cell, order: int = 0) -> Entry:
        cost = self.meter(cell)
        known = self._known.get(id(cost))
        if known is None:
            known = self._known[id(cost)] = (cost, *self._price(cell, cost))
        return Entry(known[1], known[2], self.meter.trunk_name(cell), cost.footprint, order, cell)

    def _price(self, cell: Cell, cost: CellCost) -> tuple[float, float]:
        if self.kind is None:
            return cost.own.flops, cost.trunk.flops
        numerics = cell.recipe.numerics
        rates, half = device(self.kind, numerics), numerics.autocast == "bfloat16"
        return rates.seconds(cost.own, half), rates.seconds(cost.trunk, half)


@dataclass
class Load:
    """A cohort in the making: its cost and memory, kept up as cells are added."""

    cost: float = 0.0
    memory: int = 0
    passing: int = 0
    trunks: dict[str, tuple[float, int]] = field(default_factory=dict)

    def with_(self, entry: Entry) -> tuple[float, int]:
        """Cost and memory (bytes) if the entry were added."""
        time, weights = self.trunks.get(entry.trunk_name or "", (0.0, 0))
        foot = entry.footprint
        memory = self.memory + foot.member + foot.tap + max(0, foot.trunk - weights)
        return self.cost + entry.own + max(0.0, entry.trunk - time), memory + max(self.passing, foot.passing)

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        self.cost, memory = self.with_(entry)
        self.memory = memory - max(self.passing, entry.footprint.passing)
        self.passing = max(self.passing, entry.footprint.passing)
        if entry.trunk_name is not None:
            time, weights = self.trunks.get(entry.trunk_name, (0.0, 0))
            self.trunks[entry.trunk_name] = max(time, entry.trunk), max(weights, entry.footprint.trunk)


def load(entries: Sequence[Entry]) -> Load:
    """Cost and memory of entries side by side."""
    found = Load()
    for entry in entries:
        found.add(entry)
    return found


@dataclass
class Stream:
    """The cells of one stream that have not been handed out."""

    order: int
    ready: list[Entry] = field(default_factory=list)
    awaited: dict[str, float] = field(default_factory=dict)
    """base -> cost of the cells that wait for it"""
    cost: float = 0.0
    """of the ready ones, each trunk once"""
    longest: float = 0.0
    """cost of the ready cell that takes longest alone"""
    gating: float = 0.0
    """cost of what waits for its ready cells"""
    counted: float = 0.0
    """its part in the agenda's sum of work"""
    version: int = 0
    """counts changes; older entries of the queue are stale"""

    @property
    def whole(self) -> float:
        """Cost with the cells that still wait."""
        return self.cost + sum(self.awaited.values())


@dataclass
class Agenda:
    """Hands out cohorts of cells whose bases have records; forms each when it is asked and never re-forms one.

    `done` maps the address of every cell that has a record to its status.
    """

    plan: Planned
    done: Mapping[str, str]
    workers: int = 1
    """devices to keep busy; may change while the grid runs"""
    largest: int | None = None
    """most cells a cohort (`execution.cohort`)"""
    kind: str | None = None
    """device kind whose predicted seconds are the cost of a cohort; None: FLOPs"""
    memory: int | None = None
    """bytes of one device; None: the kind's own, or no bound where no kind is given"""
    meter: Meter | None = None
    running: dict[str, Cohort] = field(default_factory=dict, init=False)
    """cohorts handed out, by the address of their first cell"""
    blocked: list[Cell] = field(default_factory=list, init=False)
    """cells whose base has no usable checkpoint; taken away by whoever writes their records"""
    left: int = field(default=0, init=False)
    """cells not yet handed out"""

    def __post_init__(self) -> None:
        self._price = Pricing(self.meter or Meter(self.plan.facts), self.kind)
        self._status = dict(self.done)
        self._planned = {cell.address for cell in self.plan.cells}
        self._streams: dict[str, Stream] = {}
        self._waiting: dict[str, dict[str, list[Entry]]] = defaultdict(dict)
        """base -> stream -> cells"""
        self._gates: dict[str, float] = {}
        """base -> cost of what waits for it"""
        self._queues: dict[bool, list[tuple[bool, float, int, int, str]]] = {True: [], False: []}
        """heaps of (incomplete, -cost, order, version, stream): of gating bases (True) and of all else"""
        self._work = {True: 0.0, False: 0.0}
        """cost not handed out, likewise"""
        self._open: dict[str, Stream] = {}
        """streams with ready cells that gate nothing"""
        self._now = 0.0
        self._handed: dict[str, tuple[float, list[Entry]]] = {}
        """virtual end and entries of each running cohort"""
        self._elsewhere: dict[str, Entry] = {}
        """cells that came back: handed out again when nothing else can be"""
        self._returned: set[str] = set()
        """cells that ever came back"""
        rates = device(self.kind) if self.kind else None
        self._room = self.memory or (rates.memory if rates else None)
        if self._room is not None and rates:
            self._room -= rates.fixed_bytes
        entries = [self._price(c, order) for order, c in enumerate(self.plan.cells) if c.address not in self._status]
        changed = [self._place(entry) for entry in entries]
        for base, streams in self._waiting.items():
            for name, waiting in streams.items():
                self._streams[name].awaited[base] = load(waiting).cost
            self._gates[base] = sum(self._streams[name].awaited[base] for name in streams)
        self._update(changed)

    @property
    def over(self) -> bool:
        """Nothing is left and nothing runs."""
        return not self.left and not self.running

    def take(self) -> Cohort | None:
        """The next cohort, or None while nothing is ready, or what is ready had better wait for a base about to end."""
        cohort = self._next()
        if cohort is None and self._elsewhere:
            entries = list(self._elsewhere.values())
            self._elsewhere.clear()
            self.left -= len(entries)
            self._update([self._place(entry) for entry in entries])
            cohort = self._next()
        return cohort

    def _next(self) -> Cohort | None:
        name = self._first(gating=True)
        if name is not None:
            return self._hand_out(name, max(self._level(gating=True), self._streams[name].longest))
        level = self._level(gating=False)
        late = level + SLACK * (self._now + level)
        name = self._first(gating=False)
        if name is not None and not self._streams[name].awaited and self._streams[name].cost <= late:
            return self._hand_out(name, late)
        return self._part(level * (1 + SLACK))

    def finish(self, cohort: Cohort, outcomes: Mapping[str, str]) -> None:
        """Take note of a cohort's end: address -> status. Cells without an outcome (another launch trains them) go back
        to the agenda, behind everything that nobody trains."""
        key = cohort.cells[0].address
        self.running.pop(key)
        end, entries = self._handed.pop(key)
        if outcomes:
            self._now = max(self._now, end)
        changed: list[str | None] = []
        self._status.update((c.address, outcomes[c.address]) for c in cohort.cells if c.address in outcomes)
        for entry in entries:
            if entry.cell.address in outcomes:
                changed += self._release(entry.cell.address)
            else:
                self._elsewhere[entry.cell.address] = entry
                self._returned.add(entry.cell.address)
                self.left += 1
        self._update(changed)

    # --- where cells are ------------------------------------------------------------------------------------------

    def _place(self, entry: Entry) -> str | None:
        """Put a cell where it belongs: ready, waiting or blocked. Returns its stream, None where blocked."""
        cell = entry.cell
        base = cell.base.address if cell.base is not None else None
        stream = self._streams.setdefault(cell.stream, Stream(entry.order))
        status = "ok" if base is None else self._status.get(base)
        if status == "ok":
            stream.ready.append(entry)
        elif status is None and base in self._planned:
            assert base is not None
            self._waiting[base].setdefault(cell.stream, []).append(entry)
        else:
            self.blocked.append(cell)
            self._status[cell.address] = "blocked"
            return None
        self.left += 1
        return cell.stream

    def _release(self, address: str) -> list[str | None]:
        """Place the cells that waited for this one: ready if its status is ok, else blocked, with all behind them."""
        changed: list[str | None] = []
        ended = [address]
        while ended:
            base = ended.pop()
            for name, entries in self._waiting.pop(base, {}).items():
                self._streams[name].awaited.pop(base)
                self.left -= len(entries)
                changed.append(name)
                ended += [entry.cell.address for entry in entries if self._place(entry) is None]
        return changed

    def _update(self, changed: Iterable[str | None]) -> None:
        """Reckon anew what changed streams cost, and queue them again."""
        for name in dict.fromkeys(changed):
            if name is None:
                continue
            stream = self._streams[name]
            self._work[stream.gating > 0] -= stream.counted
            stream.version += 1
            stream.cost = load(stream.ready).cost
            stream.longest = max((entry.lone for entry in stream.ready), default=0.0)
            stream.gating = sum(self._gates.get(entry.cell.address, 0.0) for entry in stream.ready)
            stream.counted = stream.whole
            gating = stream.gating > 0
            self._work[gating] += stream.counted
            self._open.pop(name, None)
            if stream.ready:
                cost = stream.gating if gating else stream.cost
                item = (bool(stream.awaited), -cost, stream.order, stream.version, name)
                heapq.heappush(self._queues[gating], item)
                if not gating:
                    self._open[name] = stream

    # --- what goes out ----------------------------------------------------------------------------------------------

    def _first(self, gating: bool) -> str | None:
        """The stream at the head of a queue: complete ones first, then by cost (bases: of what waits for them)."""
        queue = self._queues[gating]
        while queue and queue[0][3] != self._streams[queue[0][4]].version:
            heapq.heappop(queue)
        return queue[0][4] if queue else None

    def _level(self, gating: bool) -> float:
        """Cost that this device can take if it is to end with the others, were the rest of the work spread evenly."""
        total = self._work[gating]
        devices = max(1, self.workers - len(self.running))
        for left in sorted(max(0.0, end - self._now) for end, _ in self._handed.values()):
            if left >= total / devices:
                break
            total += left
            devices += 1
        return total / devices

    def _part(self, level: float) -> Cohort | None:
        """A cohort where no whole stream fits: what takes longest first, from the stream that takes longest."""
        streams = [(name, s) for name, s in self._open.items() if not s.awaited]
        if not streams:
            streams = [(name, s) for name, s in self._open.items() if not self._held(s, level)]
        if not streams:
            return None
        budget = max(level, *(s.longest for _, s in streams))
        name, _ = max(streams, key=lambda item: (item[1].cost, -item[1].order))
        return self._hand_out(name, budget)

    def _held(self, stream: Stream, level: float) -> bool:
        """Whether a stream had better wait for the bases that its other cells need: all run and are about to end."""
        soon = self._now + PATIENCE * stream.whole
        return stream.whole <= level and all(self._end(base) <= soon for base in stream.awaited)

    def _end(self, base: str) -> float:
        for end, entries in self._handed.values():
            if any(entry.cell.address == base for entry in entries):
                return end
        return float("inf")

    def _hand_out(self, name: str, budget: float) -> Cohort:
        """As much of a stream as budget, memory and `largest` allow; at least one cell."""
        stream = self._streams[name]
        if stream.cost <= budget:  # keep those of one trunk together, for memory or `largest` may split it yet
            entries = sorted(stream.ready, key=lambda e: (e.trunk_name or "", e.cell.frozen, e.order))
        else:
            entries = sorted(stream.ready, key=lambda e: (-e.lone, e.order))
        taken: list[Entry] = []
        rest: list[Entry] = []
        found = Load()
        for entry in entries:
            cost, memory = found.with_(entry)
            full = len(taken) >= (self.largest or len(entries)) or cost > budget * (1 + 1e-9)
            if taken and (full or (self._room is not None and memory > self._room)):
                rest.append(entry)
            else:
                found.add(entry)
                taken.append(entry)
        stream.ready = rest
        self.left -= len(taken)
        cells = tuple(entry.cell for entry in taken)
        cohort = Cohort(cells, not self._returned.isdisjoint(cell.address for cell in cells))
        key = cohort.cells[0].address
        self.running[key] = cohort
        self._handed[key] = self._now + found.cost, taken
        self._update([name])
        return cohort
