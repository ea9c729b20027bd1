"""One small world of trained networks that tests share, and how to make others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TINY = """\
name: tiny
dataset: digits
network: {name: small, width: 0.25}
splits: [{kind: random, seed: 0}]
targets: [B]
treatments: [base, scratch, selffer, selffer+, transfer, transfer+, random, base-long]
layers: [1, 4, 7]
images_per_class: 50
recipe: {epochs: 6, batch_size: 16, lr: 0.03, evaluations: 3, evaluation_images: 60, augmentation: {padding: 1, flip: false}}
execution: {backend: in-process}
"""
"""A study that learns in a third of a second a network: digits of 8 pixels, five classes against five."""


@dataclass(frozen=True)
class World:
    """A plan, all its networks trained once, undisturbed, each stream as one cohort."""

    plan: object
    store: object
    records: dict
    publish: Callable
    """(store) -> None: put the data into a store"""

    def fresh(self, folder: Path, bases: bool = True):
        """A new store with the data and, if asked, the bases of this world."""
        from raygrid.record import folder as place
        from raygrid.store import Store

        store = Store(str(folder))
        self.publish(store)
        if bases:
            for cell in self.plan.cells:
                if cell.treatment == "base":
                    for path in self.store.list(place(cell)):
                        store.put(path, self.store.get(path))
        return store


def make_plan(text: str = TINY, overrides: Sequence[str] = ()):
    """Plan of a study on data that come with raygrid; nothing is trained."""
    from raygrid.data.known import facts
    from raygrid.plan import plan
    from raygrid.study import Study

    study = Study.parse(text, overrides)
    return plan(study, facts(study.dataset))


def streams(cells: Iterable) -> list[list]:
    """Cells by stream, bases first."""
    found: dict[str, list] = {}
    for cell in cells:
        found.setdefault(cell.stream, []).append(cell)
    return sorted(found.values(), key=lambda group: group[0].phase)


def make_world(folder: Path, text: str = TINY, overrides: Sequence[str] = ()) -> World:
    """Train all of a study in this process."""
    from raygrid.data.arrays import publish
    from raygrid.data.known import prepare
    from raygrid.record import find_records
    from raygrid.store import Store
    from raygrid.train import Bench, train_cohort

    plan = make_plan(text, overrides)
    manifest, place = prepare(plan.study.dataset, progress=False)
    store = Store(str(folder))
    publish(manifest, place, store)
    for group in streams(plan.cells):
        train_cohort(group, Bench(store, plan.facts))
    return World(plan, store, find_records(store, plan.cells), lambda other: publish(manifest, place, other))
