"""The record of a finished cell: written last, created if absent; its presence means that the cell is done.

`result` is deterministic: the same cell gives the same bytes wherever and however it was trained (law 2). `provenance`
says when, where and with what, and may differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raygrid.cell import Cell, canonical
from raygrid.errors import AlreadyExists, IntegrityError, StoreError, first_line
from raygrid.store import Store
from raygrid.study import Frozen

SEAL = ',"sha256":"{}"}}'
"""the end of a record's text: the digest of the text without it, so that a changed digit is found"""

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


class History(Frozen):
    """The tests of a network, a column for each field of `Evaluation`: a grid has millions of them, and columns are
    read, checked and exported several times faster than rows."""

    step: tuple[int, ...] = ()
    epoch: tuple[float, ...] = ()
    images: tuple[int, ...] = ()
    train_loss: tuple[float | None, ...] = ()
    top1: tuple[float, ...] = ()
    top5: tuple[float | None, ...] = ()
    loss: tuple[float | None, ...] = ()
    lr: tuple[float, ...] = ()

    @classmethod
    def of(cls, tests: Iterable[Evaluation]) -> Self:
        """The columns of some tests."""
        rows = [vars(test) for test in tests]
        return cls(**{name: tuple(row[name] for row in rows) for name in cls.model_fields})

    def __len__(self) -> int:
        """How many tests."""
        return len(self.step)

    def tests(self) -> Iterator[Evaluation]:
        """Row by row."""
        columns = [getattr(self, name) for name in type(self).model_fields]
        for values in zip(*columns, strict=True):
            yield Evaluation(**dict(zip(type(self).model_fields, values, strict=True)))

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if len({len(getattr(self, name)) for name in type(self).model_fields}) > 1:
            raise ValueError("columns of a history differ in length")
        return self


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
    checkpoint_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    history: History = History()
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

    format: Literal[2] = 2
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


def failure_path(cell: Cell) -> str:
    return f"{folder(cell)}/failure.json"


def checkpoint_path(cell: Cell, sha256: str) -> str:
    """Named by content: two workers that raced cannot mix a record with the other's weights."""
    return f"{folder(cell)}/checkpoint-{sha256[:12]}.safetensors"


def write_record(store: Store, record: Record) -> bool:
    """Write a record; False if there was one already (it stands, whoever wrote it)."""
    text = canonical(record.model_dump(mode="json")).encode()
    try:
        store.create(record_path(record.cell), text[:-1] + _seal(text))
    except AlreadyExists:
        return False
    return True


def _seal(text: bytes) -> bytes:
    return SEAL.format(hashlib.sha256(text).hexdigest()).encode()


def read_record(data: bytes, where: str, cell: Cell | None = None) -> Record:
    """A record from its bytes. Raises IntegrityError, naming the object, where they are not one, are not what was
    written, or tell of another cell."""
    length = len(_seal(b""))
    text = data[:-length] + b"}"
    try:
        if data[-length:] != _seal(text):
            raise ValueError("it was changed after it was written, or cut short")
        record = Record.model_validate_json(text)
        if cell is not None and record.cell.hash != cell.hash:
            raise ValueError(f"it is the record of another cell, {record.cell.address}")
    except ValueError as error:
        raise IntegrityError(
            f"store: {where} is not a record that this version reads ({first_line(error)}); move it away"
        ) from None
    return record


def find_record(store: Store, cell: Cell) -> Record | None:
    """A cell's record, or None while it has none. What does not read well is read once more: it may have been damaged
    on its way."""
    for attempt in (1, 2):
        data = store.find(record_path(cell))
        try:
            return None if data is None else read_record(data, store.uri(record_path(cell)), cell)
        except IntegrityError:
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


def find_records(store: Store, cells: Iterable[Cell], listed: Container[str] | None = None) -> dict[str, Record]:
    """Records of those cells that have one, by address. One listing, unless its paths are given as `listed`; then only
    reads of what exists."""
    wanted: Mapping[str, Cell] = {record_path(cell): cell for cell in cells}
    if listed is None:
        roots = sorted({cell.target.dataset for cell in wanted.values()})
        listed = {path for root in roots for path in store.list(f"cells/{root}")}
    found = {}
    for path, data in store.find_many(path for path in wanted if path in listed).items():
        try:
            record: Record | None = read_record(data, store.uri(path), wanted[path])
        except IntegrityError:
            record = find_record(store, wanted[path])
        if record is not None:
            found[wanted[path].address] = record
    return found


def note_failure(store: Store, cell: Cell, why: str) -> None:
    """Leave word, for whoever asks the store, of a cell that could not be trained. The next launch tries it again."""
    note = {"why": why, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        store.put(failure_path(cell), canonical(note).encode())
    except StoreError:
        return  # it was told where it was launched


def tidy(store: Store, finished: Iterable[Cell], open_: Iterable[Cell] = ()) -> None:
    """Remove what killed processes left of finished cells, progress and leases, of no use once there is a record; and
    what is said of failures, also of cells that are tried again now."""
    done = list(finished)
    again = list(open_)
    left = {path for cell in done for path in (progress_path(cell), lease_path(cell))}
    left |= {failure_path(cell) for cell in [*done, *again]}
    for root in sorted({cell.target.dataset for cell in [*done, *again]}):
        for path in store.list(f"cells/{root}"):
            if path in left:
                store.delete(path)


def deterministic(record: Record) -> dict[str, Any]:
    """The part of a record that must not depend on when, where and how often it was trained."""
    return json.loads(canonical(record.model_dump(mode="json", exclude={"provenance"})))
