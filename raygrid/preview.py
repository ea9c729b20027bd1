"""What a study will cost, before it is paid: the plan, what exists already, hours by device; and what it did cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygrid.display import duration
from raygrid.errors import UserError, closest, expanded
from raygrid.plan import Plan, explain, plan
from raygrid.record import Record, find_records, read_record
from raygrid.store import Store

if TYPE_CHECKING:
    from rich.console import Console

    from raygrid.cost import Ideal
    from raygrid.study import Study

PLAN_FILE = "plan.json"


def preview(
    study: Study,
    url: str,
    folder: Path,
    console: Console,
    why: str | None = None,
    cluster: str | None = None,
    prices: str | None = None,
) -> int:
    """`--dry-run`: print the plan, what exists in the store and what the rest costs; train nothing."""
    from raygrid.data.known import facts
    from raygrid.prices import unpriced

    the_plan = plan(study, facts(study.dataset))
    store = _store(url)
    present = find_records(store, the_plan.cells) if store else {}
    if cluster and (provider := unpriced(cluster)):
        text = f"{cluster}: no prices are known of provider {provider!r}: no dollars, and hours are this machine's"
        console.print(text, highlight=False, markup=False)
        cluster = None
    devices, kind = _workers(cluster, prices) if cluster else (os.cpu_count() or 1, "cpu")
    show(the_plan, present, console, study.execution.workers or devices, kind)
    _warn_if_changed(the_plan, folder, console)
    if why:
        _explain(the_plan, _everything(store, the_plan), why, console)
        return 0
    done = {address: record.result.status for address, record in present.items()}
    if len(done) < len(the_plan.cells):
        _by_device(the_plan, done, console)
        if cluster:
            _by_node_type(the_plan, done, cluster, prices, console)
    return 0


def _store(url: str) -> Store | None:
    """The store, if there is one: a dry run makes no folder."""
    folder = url.removeprefix("file://")
    return Store(url, make=False) if "://" in folder or expanded(folder).is_dir() else None


def _workers(cluster: str, prices: str | None) -> tuple[int, str]:
    """Devices of a cluster file's largest worker type at its maximum, and their kind."""
    from raygrid.prices import load_prices, node_types

    nodes = node_types(cluster, load_prices(prices))
    largest = max([node for node in nodes if not node.head] or nodes, key=lambda node: node.devices * node.nodes)
    return max(1, largest.devices * largest.nodes), largest.kind


def show(
    the_plan: Plan, present: Mapping[str, Record], console: Console, devices: int = 1, kind: str | None = "cpu"
) -> float | None:
    """The plan in a few lines; returns the predicted seconds of what is missing on `devices` devices of a kind."""
    study, facts = the_plan.study, the_plan.facts
    done = {address: record.result.status for address, record in present.items()}
    summary = the_plan.summary(devices, kind or "cpu", done)
    rungs = summary.ideal
    missing = summary.cells - summary.existing

    def line(what: str, text: str) -> None:
        console.print(f"{what:<10}{text}", highlight=False, markup=False)

    line("study", f"{study.name}: {' '.join(study.question.split())}".rstrip(": "))
    line("data", f"{facts.name}, {len(facts.classes)} classes, content {facts.sha256[:12]}")
    kinds = ", ".join(f"{count} {treatment}" for treatment, count in summary.counts.items())
    line("networks", f"{summary.cells} ({kinds})")
    line("present", f"{summary.existing} in the store, {missing} to train")
    if not missing:
        return None
    together = summary.largest_cohort > 1
    alone = sum(2 if cell.treatment == "base-long" else 1 for cell in the_plan.cells if cell.address not in done)
    if saved := _saved(rungs, together, summary.input_passes, alone):
        line("sharing", saved)
    size = f"at most {summary.largest_cohort} network{'s' * together}"
    work = rungs.trunk_shared if together else rungs.backward_skipped
    line("work", f"{work.flops:.3g} FLOP in {summary.cohorts} cohorts of {size}")
    line("memory", f"about {summary.peak_bytes / 1e9:.1f} GB for the largest cohort")
    if kind is None:
        return None
    where = f"{devices} CPU core{'s' * (devices > 1)}" if kind == "cpu" else f"{devices} {kind}"
    line("predicted", f"{duration(summary.seconds)} of training on {where}")
    return summary.seconds


def _saved(rungs: Ideal, together: bool, passes: int, alone: int) -> str:
    """What sharing saves, in words; empty where it saves nothing. `together`: whether any cohort has two networks;
    `alone`: trainings' worth of batches if each network made its own."""
    frozen = rungs.trunk_shared if together else rungs.backward_skipped
    how = "with frozen layers shared too" if together else "with no backward pass through frozen layers"
    steps = [(rungs.independent.units, "trainings' worth of work if each network had its own base")]
    for units, words in ((rungs.bases_shared.units, "with bases shared"), (frozen.units, how)):
        if round(units) < round(steps[-1][0]):
            steps.append((units, words))
    found = []
    if len(steps) > 1:
        worth = ", ".join(f"{units:.0f} {words}" for units, words in steps)
        found.append(f"saves {steps[0][0] - steps[-1][0]:.0f} trainings: {worth}")
    if passes < alone:
        found.append(f"batches are made {passes} times, not {alone}")
    return "; ".join(found)


def _everything(store: Store | None, the_plan: Plan) -> dict[str, Record]:
    """Records of every cell of this data set that the store has, whichever study made them."""
    if store is None:
        return {}
    paths = [p for p in store.list(f"cells/{the_plan.facts.name}") if p.endswith("/record.json")]
    found = [read_record(data, path) for path, data in store.find_many(paths).items()]
    return {record.cell.address: record for record in found}


def _by_device(the_plan: Plan, done: Mapping[str, str], console: Console) -> None:
    """Hours on one device of every kind."""
    from rich.table import Table

    from raygrid.cost import DEVICES

    table = Table(title="hours on one device, predicted (GPUs: assumed 36 % of peak)", expand=False)
    for column in ("device", "hours", "memory of the largest cohort, GB"):
        table.add_column(column, justify="left" if column == "device" else "right")
    for kind in DEVICES:
        summary = the_plan.summary(1, kind, done)
        table.add_row(
            "1 CPU core" if kind == "cpu" else kind, f"{summary.seconds / 3600:,.2f}", f"{summary.peak_bytes / 1e9:.1f}"
        )
    console.print(table)


def _by_node_type(the_plan: Plan, done: Mapping[str, str], cluster: str, prices: str | None, console: Console) -> None:
    """Hours and dollars with the node types of a cluster file."""
    from rich.table import Table

    from raygrid.prices import load_prices, quotes

    table = Table(title=f"{cluster}, each worker type at its maximum, with the head node", expand=False)
    for column in ("node type", "devices", "hours", "USD", "prices of"):
        table.add_column(column, justify="left" if column in ("node type", "prices of") else "right")
    for quote in quotes(the_plan, cluster, load_prices(prices), done):
        name = f"{quote.node.instance_type}{' (spot)' if quote.node.spot else ''}"
        table.add_row(name, str(quote.devices), f"{quote.hours:,.2f}", f"{quote.usd:,.2f}", quote.node.date)
    console.print(table)


def announce(
    the_plan: Plan,
    records: Mapping[str, Record],
    store: Store,
    folder: Path,
    console: Console,
    devices: int,
    kind: str | None,
) -> float | None:
    """Print the plan at the start of a launch, say if the data changed since the last one, and keep the plan; returns
    the predicted seconds."""
    seconds = show(the_plan, records, console, devices, kind)
    path = folder / PLAN_FILE
    before = _warn_if_changed(the_plan, folder, console)
    kept = {
        "study": the_plan.study.name,
        "question": the_plan.study.question,
        "data_sha256": the_plan.facts.sha256,
        "networks": len(the_plan.cells),
        "cells": [cell.address for cell in the_plan.cells],
        "store": store.url,
        "gpus_per_trial": the_plan.study.execution.gpu,
    }
    if seconds is not None:
        kept |= {"predicted_seconds": round(seconds, 1), "predicted_on": f"{devices} {kind}"}
    path.write_text(
        json.dumps({**(before if before.get("data_sha256") == the_plan.facts.sha256 else {}), **kept}, indent=1)
    )
    (folder / "study.yaml").write_text(the_plan.study.to_yaml())
    return seconds


def _warn_if_changed(the_plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Say if the data are not those of the last launch; returns what was kept of that."""
    before = _read(folder / PLAN_FILE)
    if before and before.get("data_sha256") not in (None, the_plan.facts.sha256):
        console.print(
            f"data      changed since the last launch (was {before['data_sha256'][:12]}): these are new networks, "
            "the old ones stay in the store",
            style="yellow",
            highlight=False,
        )
    return before


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def note_actual(folder: Path, seconds: float | None, records: Mapping[str, Record], mlflow: str) -> None:
    """Put what the run took beside what was predicted, what its machines cost (price null: not known), and where MLflow
    shows it."""
    from raygrid.prices import bootstrap, is_gpu, rate

    path = folder / PLAN_FILE
    kept = _read(path)
    made = [(r.provenance.device, r.provenance.duration_s, r.cell.recipe.numerics.threads) for r in records.values()]
    kept["training_seconds"] = round(sum(seconds for _, seconds, _ in made), 1)
    kept["machines"] = {}
    for name in sorted({name for name, _, _ in made}):
        gpus = kept.get("gpus_per_trial", 1) if is_gpu(name) else 0
        busy = sum(seconds * (gpus or threads) for device, seconds, threads in made if device == name)
        price = rate(name, bootstrap())
        kept["machines"][name] = {"device_seconds": round(busy, 1), "usd_per_hour": asdict(price) if price else None}
    if seconds is not None:
        kept["wall_seconds"] = round(seconds, 1)
    kept["mlflow"] = mlflow
    path.write_text(json.dumps(kept, indent=1))


def _explain(the_plan: Plan, present: Mapping[str, Record], name: str, console: Console) -> None:
    """Why a cell must be trained: how it differs from the nearest cell that exists."""
    cells = [cell for cell in the_plan.cells if name in (cell.title, cell.address)]
    if not cells:
        titles = [cell.title for cell in the_plan.cells]
        raise UserError(f"--explain {name}: the plan has no such cell{closest(name, titles)}")
    if len(cells) > 1:
        listed = ", ".join(cell.address for cell in cells)
        raise UserError(f"--explain {name}: {len(cells)} cells have this title; name one by its address ({listed})")
    [cell] = cells
    if cell.address in present:
        console.print(f"{cell.title} has a record: it is not trained again.", markup=False)
        return
    found = explain(cell, [record.cell for record in present.values()])
    if found is None:
        console.print(f"{cell.title} has no record, and nothing else in the store has one.", markup=False)
        return
    nearest, fields = found
    console.print(f"{cell.title} has no record. The nearest that has one is {nearest.title}:", markup=False)
    for key, mine, other in fields:
        console.print(f"  {key}: {mine} here, {other} there", markup=False, highlight=False)
