"""From a study to the networks to train, what each of them waits for, and what that will cost.

A plan is arithmetic: no torch, no Ray, no files. What is trained next is decided by `agenda`; how long it takes on G
devices is played through by `simulation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raygrid.agenda import Agenda, Cohort
from raygrid.architectures import ARCHITECTURES, shapes
from raygrid.cell import Cell, DatasetFacts, Task, difference
from raygrid.cost import Ideal, Meter, cohort_bytes, ideal
from raygrid.errors import StudyError
from raygrid.simulation import Simulation, simulate
from raygrid.splits import Halves, divide
from raygrid.study import LAYERED, Block, RandomSplit, Split, Study, in_order

__all__ = ["Agenda", "Cohort", "Plan", "Simulation", "Summary", "addresses", "explain", "plan", "simulate"]


@dataclass(frozen=True)
class Summary:
    """What a plan comes to, for people. Plain numbers."""

    cells: int
    counts: dict[str, int]
    """networks by treatment, in the order of the paper"""
    existing: int
    """how many have records already; what follows but `ideal` is about the others"""
    ideal: Ideal
    """FLOPs and full trainings of the whole plan, rung by rung"""
    devices: int
    kind: str
    """device kind that seconds and memory are meant for, a key of `cost.DEVICES`"""
    cohorts: int
    largest_cohort: int
    """cells"""
    peak_bytes: int
    """predicted device memory of the cohort that needs most"""
    input_passes: int
    """trainings' worth of images to decode and augment"""
    seconds: float
    """predicted time from the first step to the last, without the start-up of Ray and its workers"""


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
        found = Counter(cell.series for cell in self.cells)
        return {series: found[series] for series in in_order(found)}

    def summary(
        self,
        devices: int = 1,
        kind: str = "cpu",
        done: Mapping[str, str] | None = None,
        memory: int | None = None,
    ) -> Summary:
        """What the plan comes to on `devices` devices of a kind; `done` maps cells with records to their status.

        Raises UserError for a device kind that is not known.
        """
        meter = Meter(self.facts)
        played = simulate(
            self, devices, kind=kind, largest=self.study.execution.cohort, memory=memory, meter=meter, done=done
        )
        return Summary(
            cells=len(self.cells),
            counts=self.counts,
            existing=sum(cell.address in (done or {}) for cell in self.cells),
            ideal=ideal(self.cells, self.facts),
            devices=devices,
            kind=kind,
            cohorts=len(played.cohorts),
            largest_cohort=max((len(cohort.cells) for cohort in played.cohorts), default=0),
            peak_bytes=max((cohort_bytes(cohort.cells, meter, kind) for cohort in played.cohorts), default=0),
            input_passes=played.input_passes,
            seconds=played.makespan,
        )


def explain(cell: Cell, others: Iterable[Cell]) -> tuple[Cell, list[tuple[str, Any, Any]]] | None:
    """The nearest of the other cells, and the fields in which it differs: (key, this cell's value, its value).

    None where there are no others; no differences where the cell itself is among them.
    """

    def parts(one: Cell) -> tuple[object, ...]:
        source = one.source.id if one.source else None
        return (one.treatment, one.n, one.seed, one.target.id, source, one.network, one.recipe, one.outputs)

    mine = parts(cell)
    ranked = sorted(others, key=lambda other: sum(a != b for a, b in zip(mine, parts(other), strict=True)))
    found = [(other, difference(cell, other)) for other in ranked[:20]]
    return min(found, key=lambda pair: len(pair[1]), default=None)


def plan(study: Study, facts: DatasetFacts) -> Plan:
    """Enumerate the cells of a study: the deduplicated union of its blocks, bases first.

    Raises StudyError where the study asks for what the data set does not have.
    """
    halves = _divided(study, facts)
    cells: dict[str, Cell] = {}
    for block in study.blocks:
        for cell in _block_cells(study, block, facts, halves):
            if cell.base is not None:
                cells.setdefault(cell.base.address, cell.base)
            cells.setdefault(cell.address, cell)
    ordered = sorted(cells.values(), key=lambda cell: cell.phase != "base")
    return Plan(study, facts, tuple(ordered))


def _divided(study: Study, facts: DatasetFacts) -> dict[Split, Halves]:
    """All splits carried out. They are the units of replication: each name stands for one division of the classes, and
    no two random ones are the same (which happens where classes are few)."""
    divided: dict[Split, Halves] = {}
    named: dict[str, tuple[Halves, Split]] = {}
    drawn: dict[frozenset[tuple[int, ...]], str] = {}
    for split in dict.fromkeys(split for block in study.blocks for split in block.splits):
        halves = divided[split] = divide(split, facts.classes, facts.groups)
        first, other = named.setdefault(halves.label, (halves, split))
        if first != halves:
            raise StudyError(
                f"splits: two different divisions are both called {halves.label}: "
                f"{other.model_dump_json(exclude_defaults=True)} and {split.model_dump_json(exclude_defaults=True)}; "
                "give one of them another seed or name"
            )
        if isinstance(split, RandomSplit):
            same = drawn.setdefault(frozenset((halves.A, halves.B)), halves.label)
            if same != halves.label:
                raise StudyError(
                    f"splits: {same} and {halves.label} give the same two halves of {facts.name}, so they are one unit "
                    "of replication, not two: leave one out or choose another seed"
                )
    return divided


def _block_cells(study: Study, block: Block, facts: DatasetFacts, divided: Mapping[Split, Halves]) -> Iterator[Cell]:
    layers = block.values_of_n(study.network)
    network = study.network
    crop = block.recipe.augmentation.crop
    if crop is not None and crop > facts.image_size + 2 * block.recipe.augmentation.padding:
        raise StudyError(
            f"recipe.augmentation.crop: {crop} pixels do not fit in images of {facts.image_size} pixels "
            f"with {block.recipe.augmentation.padding} of padding"
        )
    try:
        shapes(ARCHITECTURES[network.name](2, network.width), crop or facts.image_size)
    except ValueError as error:
        raise StudyError(
            f"network.name: {network.name} cannot see crops of {crop or facts.image_size} pixels: {error}; choose a "
            f"network for smaller images ({', '.join(ARCHITECTURES)}) or a larger recipe.augmentation.crop"
        ) from None
    for split in block.splits:
        halves = divided[split]
        tasks = {half: _task(halves, half, block, facts) for half in (("all",) if halves.whole else ("A", "B"))}
        known: dict[tuple[str, int, str], Any] = {}
        for half in ("all",) if halves.whole else block.targets:
            other = tasks[{"A": "B", "B": "A", "all": "all"}[half]]
            for seed in block.seeds:
                for treatment in block.treatments:
                    like = _cell(study, block, facts, tasks[half], other, seed, treatment)
                    _share(like, known)
                    yield from map(like.sibling, layers if treatment in LAYERED else (0,))


def _share(cell: Cell, known: dict[tuple[str, int, str], Any]) -> None:
    """Give a cell the base and the stream that others of its split worked out: equal to its own, in no time."""
    kept = cell.__dict__  # where cached_property keeps them
    key = (cell.target.half, cell.seed, cell.phase)
    kept["stream"] = known.get(key) or known.setdefault(key, cell.stream)
    if cell.source is not None:
        key = (cell.source.half, cell.seed, "as base")
        kept["base"] = known.get(key) or known.setdefault(key, cell.base)


def _task(halves: Halves, half: str, block: Block, facts: DatasetFacts) -> Task:
    classes = halves.classes(half)
    for what, counts in (("training", facts.train), ("test", facts.test)):
        for c in classes:
            if not counts[c]:
                raise StudyError(f"dataset {facts.name}: class {facts.classes[c]!r} has no {what} images")
    k = block.images_per_class
    if k is not None:
        most = max(classes, key=lambda c: facts.train[c])
        if k > facts.train[most]:
            raise StudyError(
                f"images_per_class: {k} is more than any class of half {half} has "
                f"({facts.classes[most]!r} has most: {facts.train[most]}); leave it out to use all images"
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
    study: Study, block: Block, facts: DatasetFacts, target: Task, other: Task, seed: int, treatment: str
) -> Cell:
    """A cell of n = 0, to be copied for every n."""
    source = {"selffer": target, "transfer": other}.get(treatment.removesuffix("+"))
    return Cell(
        network=study.network,
        target=target,
        source=source,
        treatment=treatment,  # type: ignore[arg-type]
        n=0,
        preserved=block.preserve,
        seed=seed,
        recipe=block.recipe,
        outputs=len(facts.classes) if block.recipe.outputs == "dataset" else len(target.classes),
        image_size=facts.image_size,
    )


def addresses(cells: Collection[Cell]) -> list[str]:
    """Addresses of cells, in order."""
    return [cell.address for cell in cells]
