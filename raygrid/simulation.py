"""How long a plan takes on G devices, without Ray: agenda and cost model played through, beside a lower bound."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raygrid.agenda import Agenda, Cohort, Entry, Planned, Pricing, load
from raygrid.cell import Cell
from raygrid.cost import Meter


@dataclass(frozen=True)
class Bound:
    """Lower bounds of the makespan; none of them can be beaten by any order or grouping of the cells."""

    critical_path: float
    """the base and the longest cell that needs it, one after the other"""
    work: float
    """(all work, each trunk once, + devices idle while only bases can run) / devices"""
    crowding: float
    """among the G k + 1 longest cells some k + 1 share a device, after the first base has ended"""

    @property
    def best(self) -> float:
        """The largest."""
        return max(self.critical_path, self.work, self.crowding)


@dataclass(frozen=True)
class Simulation:
    """A plan played through. Times are FLOPs, or predicted seconds where a device kind was given."""

    devices: int
    makespan: float
    bound: Bound
    busy: float
    """share of the devices' time that they trained, 0 to 1"""
    cohorts: tuple[Cohort, ...]
    input_passes: int
    """trainings' worth of decoded, augmented images: one a cohort, two with base-long"""

    @property
    def ratio(self) -> float:
        """Makespan over its bound; 1 is the best possible."""
        return self.makespan / self.bound.best if self.bound.best else 1.0


def simulate(
    plan: Planned,
    devices: int,
    *,
    kind: str | None = None,
    largest: int | None = None,
    memory: int | None = None,
    meter: Meter | None = None,
    done: Mapping[str, str] | None = None,
    spread: float = 0.0,
) -> Simulation:
    """Play a plan through on equal devices. Start-up of workers is not counted.

    `kind`: predicted seconds on that device kind instead of FLOPs. `done`: cells with records, and their status; cells
    that these block are left out. `spread`: each cohort takes 1 +- spread times its
    prediction, at random from a fixed seed: how robust the schedule is.
    """
    meter = meter or Meter(plan.facts)
    agenda = Agenda(plan, done or {}, devices, largest, kind, memory, meter)
    price = Pricing(meter, kind)
    jitter = random.Random(0)
    now = busy = 0.0
    cohorts: list[Cohort] = []
    events: list[tuple[float, int, Cohort]] = []
    while True:
        while len(events) < devices and (cohort := agenda.take()) is not None:
            lasts = load([price(cell) for cell in cohort.cells]).cost * jitter.uniform(1 - spread, 1 + spread)
            heapq.heappush(events, (now + lasts, len(cohorts), cohort))
            cohorts.append(cohort)
            busy += lasts
        if not events:
            break
        now = events[0][0]
        while events and events[0][0] <= now * (1 + 1e-9):
            _, _, cohort = heapq.heappop(events)
            agenda.finish(cohort, {cell.address: "ok" for cell in cohort.cells})
    assert agenda.over, "the agenda left cells behind"
    passes = sum(2 if any(cell.treatment == "base-long" for cell in c.cells) else 1 for c in cohorts)
    share = busy / (now * devices) if now else 1.0
    limit = bound([cell for cohort in cohorts for cell in cohort.cells], devices, price)
    return Simulation(devices, now, limit, share, tuple(cohorts), passes)


def bound(cells: Sequence[Cell], devices: int, price: Pricing) -> Bound:
    """Lower bounds of the makespan of cells on equal devices; bases that are not among them are there already."""
    entries = [price(cell) for cell in cells]
    full = {entry.cell.address: entry.lone for entry in entries}
    needs = {e.cell.address: e.cell.base.address for e in entries if e.cell.base and e.cell.base.address in full}
    dependants = [entry for entry in entries if entry.cell.address in needs]
    bases = [full[needs[entry.cell.address]] for entry in dependants]
    first = min(bases, default=0.0)
    idle = max(0, devices - (len(entries) - len(dependants))) * first
    starts = [before + entry.lone for before, entry in zip(bases, dependants, strict=True)]
    return Bound(
        critical_path=max([*starts, *full.values()], default=0.0),
        work=(_shared_work(entries) + idle) / devices,
        crowding=first + _crowding(dependants, devices),
    )


def _shared_work(entries: Sequence[Entry]) -> float:
    trunks: dict[tuple[str, str], float] = {}
    for entry in entries:
        if entry.trunk_name is not None:
            key = (entry.cell.stream, entry.trunk_name)
            trunks[key] = max(trunks.get(key, 0.0), entry.trunk)
    return sum(entry.own for entry in entries) + sum(trunks.values())


def _crowding(entries: Sequence[Entry], devices: int) -> float:
    """Pigeonholes: of the G k + 1 longest cells, k + 1 share a device; if any of those is frozen, so is its trunk."""
    longest = sorted(entries, key=lambda entry: -entry.own)
    sums, whole_sums = [0.0], [0.0]
    trunk = float("inf")
    found = 0.0
    for count, entry in enumerate(longest, start=1):
        sums.append(sums[-1] + entry.own)
        if entry.trunk_name:
            trunk = min(trunk, entry.trunk)
        else:
            whole_sums.append(whole_sums[-1] + entry.own)
        k, rest = divmod(count - 1, devices)
        if rest == 0:
            least = sums[count] - sums[count - k - 1] + (trunk if trunk < float("inf") else 0.0)
            if len(whole_sums) > k + 1:
                least = min(least, whole_sums[-1] - whole_sums[-k - 2])
            found = max(found, least)
    return found
