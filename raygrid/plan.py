"""From a study to the networks to train, what each of them waits for, and the cohorts that train side by side.

A plan is arithmetic: no torch, no Ray, no files. `Agenda` is the one place that decides what is trained next; the Ray
search algorithm, the in-process back end and the simulator all ask it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from raygrid.cell import Cell, DatasetFacts, Task
from raygrid.errors import StudyError
from raygrid.splits import Halves, divide
from raygrid.study import COPYING, LAYERED, TREATMENTS, Block, Study


@dataclass(frozen=True)
class Plan:
    """All cells of a study, each once; bases that others need are in it whether the study lists them or not."""

    study: Study
    facts: DatasetFacts
    cells: tuple[Cell, ...]

    @cached_property
    def by_address(self) -> dict[str, Cell]:
        return {cell.address: cell for cell in self.cells}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of networks by treatment, in the order of the paper."""
        found = Counter(cell.treatment for cell in self.cells)
        return {treatment: found[treatment] for treatment in TREATMENTS if found[treatment]}

    @property
    def trainings_if_independent(self) -> int:
        """Trainings that the same cells would cost if each trained its own base."""
        return len(self.cells) + sum(cell.treatment in COPYING for cell in self.cells)


def plan(study: Study, facts: DatasetFacts) -> Plan:
    """Enumerate the cells of a study: the deduplicated union of its blocks, bases first.

    Raises StudyError where the study asks for what the data set does not have.
    """
    cells: dict[str, Cell] = {}
    for block in study.blocks:
        for cell in _block_cells(study, block, facts):
            if cell.base is not None:
                cells.setdefault(cell.base.address, cell.base)
            cells.setdefault(cell.address, cell)
    ordered = sorted(cells.values(), key=lambda cell: cell.phase != "base")
    return Plan(study, facts, tuple(ordered))


def _block_cells(study: Study, block: Block, facts: DatasetFacts) -> Iterable[Cell]:
    layers = range(1, study.network.layers) if block.layers == "all" else block.layers
    crop = block.recipe.augmentation.crop
    if crop is not None and crop > facts.image_size + 2 * block.recipe.augmentation.padding:
        raise StudyError(
            f"recipe.augmentation.crop: {crop} pixels do not fit in images of {facts.image_size} pixels "
            f"with {block.recipe.augmentation.padding} of padding"
        )
    for split in block.splits:
        halves = divide(split, facts.classes, facts.groups)
        for name in ("all",) if halves.whole else block.targets:
            target = _task(halves, name, block, facts)
            others = [target] if halves.whole else [_task(halves, half, block, facts) for half in ("A", "B")]
            for seed in block.seeds:
                for treatment in block.treatments:
                    for n in layers if treatment in LAYERED else (0,):
                        yield _cell(study, block, facts, target, others, seed, treatment, n)


def _task(halves: Halves, half: str, block: Block, facts: DatasetFacts) -> Task:
    classes = halves.classes(half)
    for what, counts in (("training", facts.train), ("test", facts.test)):
        for c in classes:
            if not counts[c]:
                raise StudyError(f"dataset {facts.name}: class {facts.classes[c]!r} has no {what} images")
    k = block.images_per_class
    if k is not None:
        few = min(classes, key=lambda c: facts.train[c])
        if k > max(facts.train[c] for c in classes):
            raise StudyError(
                f"images_per_class: {k} is more than any class of half {half} has "
                f"({facts.classes[few]!r} has {facts.train[few]}); leave it out to use all images"
            )
    return Task(
        dataset=facts.name,
        data_sha256=facts.sha256,
        split=halves.name,
        split_seed=halves.seed,
        half=half,  # type: ignore[arg-type]
        classes=classes,
        images_per_class=k,
        split_classes=len(halves.A) + len(halves.B) + len(halves.whole),
    )


def _cell(
    study: Study,
    block: Block,
    facts: DatasetFacts,
    target: Task,
    others: Sequence[Task],
    seed: int,
    treatment: str,
    n: int,
) -> Cell:
    source = None
    if treatment.startswith("selffer"):
        source = target
    elif treatment.startswith("transfer"):
        source = next(task for task in others if task.half != target.half)
    return Cell(
        network=study.network,
        target=target,
        source=source,
        treatment=treatment,  # type: ignore[arg-type]
        n=n,
        seed=seed,
        recipe=block.recipe,
        outputs=len(facts.classes) if block.recipe.outputs == "dataset" else len(target.classes),
        image_size=facts.image_size,
    )


# --- what is trained next --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cohort:
    """Cells that share one stream and train side by side on one device."""

    cells: tuple[Cell, ...]

    @property
    def title(self) -> str:
        return self.cells[0].title if len(self.cells) == 1 else f"{self.cells[0].target.label} x {len(self.cells)}"


@dataclass
class Agenda:
    """Hands out cohorts of cells whose bases have records; forms each when it is asked and never re-forms one.

    `done` maps the address of every cell that has a record to its status.
    """

    plan: Plan
    done: Mapping[str, str]
    workers: int = 1
    largest: int | None = None
    """most cells a cohort (`execution.cohort`)"""
    waiting: dict[str, list[Cell]] = field(default_factory=dict)
    """cells by the address of the base that they wait for"""
    ready: dict[str, list[Cell]] = field(default_factory=dict)
    """cells by stream"""
    running: dict[str, Cohort] = field(default_factory=dict)
    """cohorts handed out, by the address of their first cell"""
    blocked: list[Cell] = field(default_factory=list)
    """cells whose base has no usable checkpoint; taken away by whoever writes their records"""

    def __post_init__(self) -> None:
        self._status = dict(self.done)
        self.waiting, self.ready = defaultdict(list), defaultdict(list)
        for cell in self.plan.cells:
            if cell.address not in self._status:
                self._add(cell)

    def _add(self, cell: Cell) -> None:
        base = cell.base
        if base is None or self._status.get(base.address) == "ok":
            self.ready[cell.stream].append(cell)
        elif base.address in self._status:
            self.blocked.append(cell)
            self._status[cell.address] = "blocked"
        else:
            self.waiting[base.address].append(cell)

    @property
    def left(self) -> int:
        """Cells not yet handed out."""
        return sum(map(len, self.waiting.values())) + sum(map(len, self.ready.values()))

    @property
    def over(self) -> bool:
        """Nothing is left and nothing runs."""
        return not self.left and not self.running

    def take(self) -> Cohort | None:
        """The next cohort, or None while nothing is ready."""
        streams = [key for key, cells in self.ready.items() if cells]
        if not streams:
            return None
        stream = max(streams, key=lambda key: (self._gates(key), len(self.ready[key])))
        cells = self.ready.pop(stream)
        size = self._size(len(cells), len(streams))
        chosen, rest = cells[:size], cells[size:]
        if rest:
            self.ready[stream] = rest
        cohort = Cohort(tuple(chosen))
        self.running[chosen[0].address] = cohort
        return cohort

    def _gates(self, stream: str) -> int:
        return sum(len(self.waiting.get(cell.address, ())) for cell in self.ready[stream])

    def _size(self, cells: int, streams: int) -> int:
        """A stream goes out whole, unless devices would idle."""
        idle = max(1, self.workers - len(self.running))
        share = -(-cells // max(1, -(-idle // streams)))
        return min(share, self.largest or cells)

    def finish(self, cohort: Cohort, outcomes: Mapping[str, str]) -> None:
        """Take note of a cohort's end: address -> status. Cells without an outcome go back to the agenda."""
        self.running.pop(cohort.cells[0].address, None)
        for cell in cohort.cells:
            if cell.address in outcomes:
                self._status[cell.address] = outcomes[cell.address]
        for cell in cohort.cells:
            if cell.address not in outcomes:
                self._add(cell)
            else:
                for dependant in self.waiting.pop(cell.address, ()):
                    self._add(dependant)


def addresses(cells: Collection[Cell]) -> list[str]:
    """Addresses of cells, in order."""
    return [cell.address for cell in cells]
