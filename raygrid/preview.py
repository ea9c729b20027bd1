"""What a study will cost, before it is paid: the plan, what exists already, hours by device; and what it did cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygrid.display import duration
from raygrid.errors import UserError, closest
from raygrid.plan import Agenda, Plan, plan
from raygrid.record import Record, find_records
from raygrid.store import Store

if TYPE_CHECKING:
    from rich.console import Console

    from raygrid.study import Study

PLAN_FILE = "plan.json"


def preview(study: Study, url: str, explain: str | None, console: Console) -> int:
    """`--dry-run`: print the plan and what exists in the store, train nothing."""
    from raygrid.data.known import facts

    the_plan = plan(study, facts(study.dataset))
    present: dict[str, Record] = {}
    if "://" in url or Path(url).exists():
        present = find_records(Store(url), the_plan.cells)
    show(the_plan, present, console)
    if explain:
        _explain(the_plan, present, explain, console)
    return 0


def show(the_plan: Plan, present: Mapping[str, Record], console: Console) -> None:
    """The plan in a few lines."""
    study, cells = the_plan.study, the_plan.cells
    missing = [cell for cell in cells if cell.address not in present]
    console.print(
        f"study     {study.name}: {' '.join(study.question.split())}".rstrip(": "), highlight=False, markup=False
    )
    facts = the_plan.facts
    console.print(
        f"data      {facts.name}, {len(facts.classes)} classes, content {facts.sha256[:12]}",
        highlight=False,
        markup=False,
    )
    kinds = ", ".join(f"{count} {treatment}" for treatment, count in the_plan.counts.items())
    console.print(f"networks  {len(cells)} ({kinds})", highlight=False)
    streams = {cell.stream for cell in missing}
    console.print(
        f"sharing   {the_plan.trainings_if_independent} trainings if every network had a base of its own, "
        f"{len(cells)} with bases shared; {len(streams)} streams of batches to read instead of {len(missing)}",
        highlight=False,
    )
    console.print(f"present   {len(cells) - len(missing)} in the store, {len(missing)} to train", highlight=False)


def announce(the_plan: Plan, records: Mapping[str, Record], store: Store, folder: Path, console: Console) -> None:
    """Print the plan at the start of a launch, say if the data changed since the last one, and keep the plan."""
    show(the_plan, records, console)
    path = folder / PLAN_FILE
    before = _read(path)
    if before and before.get("data_sha256") not in (None, the_plan.facts.sha256):
        console.print(
            f"data      changed since the last launch (was {before['data_sha256'][:12]}): these are new networks, the old "
            "ones stay in the store",
            style="yellow",
            highlight=False,
        )
    kept = {
        "study": the_plan.study.name,
        "question": the_plan.study.question,
        "data_sha256": the_plan.facts.sha256,
        "networks": len(the_plan.cells),
        "cells": [cell.address for cell in the_plan.cells],
        "store": store.url,
    }
    path.write_text(
        json.dumps({**(before if before.get("data_sha256") == the_plan.facts.sha256 else {}), **kept}, indent=1)
    )
    (folder / "study.yaml").write_text(_yaml(the_plan))


def _yaml(the_plan: Plan) -> str:
    import yaml

    return yaml.safe_dump(the_plan.study.model_dump(mode="json", exclude={"execution"}), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def predicted_seconds(the_plan: Plan, records: Mapping[str, Record], devices: int) -> float | None:
    """Seconds that the missing cells will take on so many devices of this machine's kind."""
    return None


def note_actual(folder: Path, seconds: float | None, records: Mapping[str, Record]) -> None:
    """Put what the run took beside what was predicted."""
    path = folder / PLAN_FILE
    kept = _read(path)
    kept["training_seconds"] = round(sum(r.provenance.duration_s for r in records.values()), 1)
    if seconds is not None:
        kept["wall_seconds"] = round(seconds, 1)
    path.write_text(json.dumps(kept, indent=1))


def _explain(the_plan: Plan, present: Mapping[str, Record], name: str, console: Console) -> None:
    """Why a cell must be trained: how it differs from the nearest cell that exists."""
    from raygrid.cell import difference

    cells = {cell.address: cell for cell in the_plan.cells} | {cell.title: cell for cell in the_plan.cells}
    if name not in cells:
        raise UserError(f"--explain {name}: the plan has no such cell{closest(name, list(cells)[:40])}")
    cell = cells[name]
    if cell.address in present:
        console.print(f"{cell.title} has a record: it is not trained again.", markup=False)
        return
    if not present:
        console.print(f"{cell.title} has no record, and none of this plan's other cells has one.", markup=False)
        return
    nearest = min((r.cell for r in present.values()), key=lambda other: len(difference(cell, other)))
    console.print(f"{cell.title} has no record. Nearest that has one: {nearest.title}; they differ in", markup=False)
    for key, mine, other in difference(cell, nearest):
        console.print(f"  {key}: {mine} here, {other} there", markup=False, highlight=False)


__all__ = ["Agenda", "announce", "duration", "note_actual", "predicted_seconds", "preview", "show"]
