"""What the benchmarks train: the demo study, or with --quick one that learns digits in a second."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from raygrid.cell import Cell
from raygrid.data.arrays import publish
from raygrid.data.known import prepare
from raygrid.data.manifest import Manifest
from raygrid.launch import find_study
from raygrid.plan import Plan, plan
from raygrid.record import folder
from raygrid.store import Store
from raygrid.study import Study

QUICK = """\
name: quick
dataset: digits
network: {name: small, width: 0.25}
splits: [{kind: random, seed: 0}]
targets: [B]
treatments: [base, scratch, selffer, selffer+, transfer, transfer+]
layers: [2, 5]
images_per_class: 50
recipe:
  {epochs: 5, batch_size: 16, lr: 0.03, evaluations: 2, evaluation_images: 60, augmentation: {padding: 1, flip: false}}
"""


def parser(what: str | None) -> argparse.ArgumentParser:
    """Options that all benchmarks of trainings have."""
    p = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="toy size: shows only that the benchmark works")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the study")
    p.add_argument("--study", help="study to train instead of the demo")
    return p


def chosen(options: argparse.Namespace, overrides: Sequence[str] = ()) -> Study:
    """The study that the options ask for."""
    wanted = [*overrides, *options.set]
    return Study.parse(QUICK, wanted) if options.quick else find_study(options.study, wanted)


@dataclass(frozen=True)
class Workload:
    """A study with its data at hand."""

    plan: Plan
    manifest: Manifest
    place: Path

    def store(self, where: Path, trained: Store | None = None, cells: Iterable[Cell] = ()) -> Store:
        """A new store with the data, and with some cells that another store holds."""
        store = Store(str(where))
        publish(self.manifest, self.place, store)
        for cell in cells:
            assert trained is not None
            for path in trained.list(folder(cell)):
                store.put(path, trained.get(path))
        return store

    def retrain_streams(self) -> list[list[Cell]]:
        """Second-phase cells, stream by stream."""
        found: dict[str, list[Cell]] = {}
        for cell in self.plan.cells:
            if cell.phase == "retrain":
                found.setdefault(cell.stream, []).append(cell)
        return list(found.values())


def workload(study: Study) -> Workload:
    """Plan a study and see to its data."""
    manifest, place = prepare(study.dataset, progress=False)
    return Workload(plan(study, manifest.facts()), manifest, Path(place))


def as_yaml(study: Study, where: Path) -> Path:
    """A study as a file that `raygrid.launch` reads."""
    where.write_text(study.to_yaml(defaults=False))
    return where


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away."""
    with TemporaryDirectory(prefix="raygrid-benchmark-", ignore_cleanup_errors=True) as name:
        yield Path(name)
