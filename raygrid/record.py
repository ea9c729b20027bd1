"""The record of a finished cell: written last, created if absent; its presence means that the cell is done.

`result` is deterministic: the same cell gives the same bytes wherever and however it was trained (law 2). `provenance`
says when, where and with what, and may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from raygrid.cell import Cell, canonical
from raygrid.errors import AlreadyExists, IntegrityError
from raygrid.store import Store
from raygrid.study import Frozen

FORMAT = 1

Status = Literal["ok", "diverged", "blocked"]


class Evaluation(Frozen):
    """One test of a network, and the training since the test before."""

    step: int
    """training steps done"""
    epoch: float
    """passes over the task's training images done"""
    images: int
    """test images used"""
    train_loss: float | None
    """mean training loss since the previous evaluation (nats); null where it was not finite"""
    top1: float
    """fraction of test images whose class got the highest score"""
    top5: float | None
    """fraction whose class was among the five highest; null for fewer than 10 classes"""
    loss: float | None
    """mean cross-entropy on the test images (nats); null where it was not finite"""
    lr: float
    """learning rate of the last step"""


class Result(Frozen):
    """What a cell's training gave; the same for the same cell."""

    status: Status
    steps: int
    images_seen: int
    top1_last: float | None
    top1_best: float | None
    top1_mean10: float | None
    """mean of the ten best tests (the paper's score); null below 10 evaluations"""
    top5_last: float | None
    loss_last: float | None
    frozen_verified: bool | None
    """whether frozen tensors equal the bytes they were copied from; null where nothing is frozen"""
    checkpoint: str | None
    """path in the store; null where there is none (not finite, or blocked)"""
    checkpoint_sha256: str | None
    history: tuple[Evaluation, ...] = ()
    reason: str | None = None
    """why a cell is diverged or blocked"""


class Provenance(Frozen):
    """When, where and with what a cell was trained."""

    started: str
    """UTC, ISO 8601"""
    ended: str
    duration_s: float
    """the cell's share of its cohort's seconds, all attempts that made progress together"""
    host: str
    device: str
    instruction_set: str
    torch: str
    python: str
    raygrid_version: str
    commit: str | None
    resumed_at_step: int = 0
    """step of the progress that the last attempt started from"""
    cohort: int = 1
    """cells that trained side by side at the end"""


class Record(Frozen):
    """A finished cell."""

    format: int = FORMAT
    cell: Cell
    result: Result
    provenance: Provenance


def folder(cell: Cell) -> str:
    """Where everything of a cell lives in the store."""
    return f"cells/{cell.address}"


def record_path(cell: Cell) -> str:
    return f"{folder(cell)}/record.json"


def progress_path(cell: Cell) -> str:
    return f"{folder(cell)}/progress.safetensors"


def lease_path(cell: Cell) -> str:
    return f"{folder(cell)}/lease.json"


def checkpoint_path(cell: Cell, sha256: str) -> str:
    """Named by content: two workers that raced cannot mix a record with the other's weights."""
    return f"{folder(cell)}/checkpoint-{sha256[:12]}.safetensors"


def write_record(store: Store, record: Record) -> bool:
    """Write a record; False if there was one already (it stands, whoever wrote it)."""
    text = canonical(record.model_dump(mode="json"))
    try:
        store.create(record_path(record.cell), text.encode())
    except AlreadyExists:
        return False
    return True


def read_record(data: bytes, where: str) -> Record:
    """A record from its bytes. Raises IntegrityError, naming the object, where they are not one."""
    try:
        return Record.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise IntegrityError(
            f"store: {where} is not a record that this version reads ({first}); move it away"
        ) from None


def find_record(store: Store, cell: Cell) -> Record | None:
    """A cell's record, or None while it has none."""
    data = store.find(record_path(cell))
    return None if data is None else read_record(data, store.uri(record_path(cell)))


def find_records(store: Store, cells: Iterable[Cell]) -> dict[str, Record]:
    """Records of those cells that have one, by address. One listing, then only reads of what exists."""
    wanted: Mapping[str, Cell] = {record_path(cell): cell for cell in cells}
    roots = {cell.target.dataset for cell in wanted.values()}
    present = [path for root in sorted(roots) for path in store.list(f"cells/{root}") if path in wanted]
    return {wanted[path].address: read_record(data, store.uri(path)) for path, data in store.find_many(present).items()}


def deterministic(record: Record) -> dict[str, Any]:
    """The part of a record that must not depend on when, where and how often it was trained."""
    return json.loads(canonical(record.model_dump(mode="json", exclude={"provenance"})))
