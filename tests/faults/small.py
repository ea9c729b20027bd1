"""The study of these tests: it trains in two seconds; and what its store must hold whatever happened on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raygrid.record import deterministic, find_records
from raygrid.store import Store

SMALL = """\
name: small
dataset: digits
network: {name: small, width: 0.25}
splits: [{kind: random, seed: 0}]
targets: [B]
treatments: [base, scratch, selffer, transfer, transfer+]
layers: [3, 6]
images_per_class: 50
recipe:
  {epochs: 8, batch_size: 16, lr: 0.03, evaluations: 3, evaluation_images: 60, augmentation: {padding: 1, flip: false}}
execution: {backend: in-process}
"""
"""Nine networks on images of 8 pixels, five classes against five."""


def the_plan(text: str = SMALL, *overrides: str) -> Any:
    """Its plan."""
    from raygrid.data.known import facts
    from raygrid.plan import plan
    from raygrid.study import Study

    study = Study.parse(text, overrides)
    return plan(study, facts(study.dataset))


def launch(folder: Path, *arguments: str, store: str | None = None, text: str = SMALL, tracked: bool = False) -> int:
    """The command, in this process, without figures, and without MLflow unless `tracked`; returns its exit code."""
    from raygrid.launch import main

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(text)
    with no_figures(), contextlib.nullcontext() if tracked else no_mlflow():
        return main(
            [
                str(folder / "study.yaml"),
                "--out",
                str(folder / "out"),
                *(["--store", store] if store else []),
                *arguments,
            ]
        )


@contextlib.contextmanager
def no_figures() -> Iterator[None]:
    """Figures and tables are made from Parquet and have tests of their own."""
    import analysis

    class Written:
        summary = "no figures here"
        paths: tuple[Path, ...] = ()

    before = analysis.write
    analysis.write = lambda *rest, **named: Written()  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        analysis.write = before


@contextlib.contextmanager
def no_mlflow() -> Iterator[None]:
    """MLflow takes longer to import than the study to train."""
    from raygrid import track

    class Nobody:
        link = trouble = view = None
        uri = command = "sqlite:///nobody.db"

        def __init__(self, *rest: Any): ...

        def __getattr__(self, name: str) -> Any:
            return lambda *rest: None

    track.Tracker = Nobody  # type: ignore[misc]
    try:
        yield
    finally:
        del track.Tracker


def content(store: Store, plan: Any) -> dict[str, tuple[Any, bytes]]:
    """Deterministic part of every record and the bytes of every checkpoint, by address."""
    found = find_records(store, plan.cells)
    return {
        address: (deterministic(record), store.get(record.result.checkpoint) if record.result.checkpoint else b"")
        for address, record in found.items()
    }


def litter(folder: Path) -> list[str]:
    """Leases, progress, checks and temporary objects that were left in a folder store."""
    names = ("lease", "progress", ".part-")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(p) for p in files if p.name.startswith(names) or "#" in p.name or p.parent.name == "check"]
