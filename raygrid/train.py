"""Training: a cohort on its stream, with PyTorch alone.

The loop takes any number of cells of one stream and steps them side by side; one cell is a special case. Each cell has
its own weights above the cut, optimiser, progress and record. A trunk (frozen layers of one origin) runs forward once
for all cells that stand on it, and never backward. No operation of a cell depends on which mates it has, so a cell
trained alone, in any cohort, or resumed anywhere ends in the same bytes (law 2).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from raygrid import checkpoint, provenance
from raygrid.cell import Cell, DatasetFacts, digest
from raygrid.data.arrays import Arrays, open_arrays, statistics
from raygrid.data.stream import Batch, Noise, Stream, TestSet
from raygrid.errors import CellFailed, IntegrityError, RaygridError, StoreError, first_line
from raygrid.member import Member, Trunk, metrics, result, verdict
from raygrid.networks import StagedNetwork, inputs, moved, packed
from raygrid.optimize import Optimizer, learning_rate
from raygrid.record import (
    Evaluation,
    Record,
    Result,
    checkpoint_path,
    find_record,
    lease_path,
    progress_path,
    write_record,
)
from raygrid.store import Leases, Store
from raygrid.transplant import assemble, fingerprint, freeze, frozen_fingerprint

logger = logging.getLogger(__name__)

FINITE_EVERY = 50
"""steps between looks at the losses; a look waits for the device"""
ALIVE_S = 60.0
"""seconds between two signs of life"""
PROGRESS_S = 20.0
"""least seconds between two savings of progress; never more than a twentieth of the time goes into saving"""


class Log(Protocol):
    """Where the training function reports: the one handle to the outside."""

    def __call__(self, cell: Cell, step: int, metrics: dict[str, float]) -> None: ...


class Interrupted(RaygridError):
    """Asked to stop; progress has been saved."""


@dataclass(frozen=True)
class Bench:
    """What a cohort needs around it; changes no number."""

    store: Store
    facts: DatasetFacts
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Path | None = None
    log: Log = lambda cell, step, metrics: None
    done: Callable[[Record], None] = lambda record: None
    """told of every record written here"""
    trace: Callable[[Cell, str], None] = lambda cell, text: logger.error("%s failed\n%s", cell.title, text)
    """told where in the code a cell failed"""
    alive: Callable[[], None] = lambda: None
    """called after the first step and every `ALIVE_S` from then on"""
    stop: Callable[[], bool] = lambda: False
    patience: float = math.inf
    """seconds to wait for cells that another worker trains; it is seen to be dead after `LEASE_DEAD_S`"""


def train_cohort(cells: Sequence[Cell], bench: Bench) -> dict[str, str]:
    """Train cells of one stream until each has a record; returns address -> `ok`, `diverged`, or `failed: why`.

    Cells that have a record are left alone; cells whose lease another worker holds are waited for, and taken over if
    it dies; those that it still holds after `bench.patience` have no outcome. Raises Interrupted when `bench.stop` says
    so, StoreError when the store refuses for good.
    """
    streams = {cell.stream for cell in cells}
    assert len(streams) == 1, f"cells of {len(streams)} streams in one cohort"
    torch.set_num_threads(cells[0].recipe.numerics.threads)
    torch.backends.cudnn.benchmark = bench.device.type == "cuda"  # shapes never change
    torch.backends.cudnn.allow_tf32 = False  # autocast none is float32; torch lets convolutions use TF32
    torch.backends.cuda.matmul.allow_tf32 = False
    outcomes: dict[str, str] = {}
    leases = Leases(bench.store)
    since = time.monotonic()
    try:
        while True:
            pending = [cell for cell in cells if cell.address not in outcomes]
            if not pending:
                return outcomes
            mine = []
            for cell in pending:
                taken = leases.take(lease_path(cell))
                record = find_record(bench.store, cell)
                if record is not None:
                    outcomes[cell.address] = record.result.status
                    _tidy(cell, bench.store)
                    leases.release(lease_path(cell))
                elif taken:
                    mine.append(cell)
            if mine:
                outcomes |= _Loop(bench, leases).train(mine)
                since = time.monotonic()
            elif len(outcomes) < len(cells):
                if bench.stop():
                    raise Interrupted("stopped while waiting for another launch")
                if time.monotonic() - since >= bench.patience:
                    return outcomes
                time.sleep(1.0)
    finally:
        leases.close()


def _tidy(cell: Cell, store: Store) -> None:
    """Progress of a finished cell is of no use."""
    store.delete(progress_path(cell))


class _Loop:
    """One run over the steps of a stream."""

    def __init__(self, bench: Bench, leases: Leases):
        self.bench, self.leases = bench, leases
        self.outcomes: dict[str, str] = {}
        self.arrays: Arrays | None = None
        self.trunks: dict[str, Trunk] = {}
        self.stepping: Member | None = None
        """whose weights are being changed right now: if that fails, they are not to be saved"""

    def train(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Train all; where the device's memory is too small, the cohort runs as two halves, one after the other."""
        members: list[Member] = []
        try:
            for cell in cells:
                with self._guard(cell):
                    members.append(self._member(cell))
            if members:
                self._run(members, Stream(self._arrays(cells[0]).train, members[0].cell))
            return self.outcomes
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            why = first_line(error)
        # after the handler: until it ends, the traceback's frames hold every weight and activation of the failed step
        unfinished = [cell for cell in cells if cell.address not in self.outcomes]
        if len(unfinished) < 2:
            for cell in unfinished:
                self._fail(cell, f"out of memory on {self.bench.device} ({why})")
            return self.outcomes
        left = {cell.address for cell in unfinished}
        self._save(m for m in members if m.cell.address in left and not m.finished and m is not self.stepping)
        logger.warning("out of memory with %d cells side by side; going on with two halves", len(unfinished))
        members.clear()
        self.trunks.clear()
        self.stepping = None
        gc.collect()
        if self.bench.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(unfinished) // 2
        for half in (unfinished[:middle], unfinished[middle:]):
            self.outcomes |= _Loop(self.bench, self.leases).train(half)
        return self.outcomes

    # --- making members ---------------------------------------------------------------------------------------------

    def _arrays(self, cell: Cell) -> Arrays:
        if self.arrays is None:
            self.arrays = open_arrays(self.bench.store, cell.target.data_sha256, self.bench.cache)
        return self.arrays

    def _member(self, cell: Cell) -> Member:
        bench, arrays = self.bench, self._arrays(cell)
        base = self._base(cell)

        def target_statistics() -> tuple[np.ndarray, np.ndarray]:
            kind = cell.recipe.normalization
            rows = arrays.train.rows(cell.target.classes, cell.target.images_per_class)
            found = statistics(arrays.train, rows, kind, key=f"{cell.target.id}-{kind}", cache=bench.cache)
            return found["mean"], found.get("std", np.ones(3))

        network = assemble(cell, base, target_statistics).to(bench.device)
        trunk = None
        before = None
        if cell.frozen:
            tensors = network.tensors(1, cell.frozen)  # of what was copied the base's count, not what the copy came to
            before = fingerprint(tensors if base is None else {name: base[name] for name in tensors})
            trunk = self._trunk(cell, network)
        trained = [
            p for number in range(cell.frozen + 1, network.depth + 1) for p in network.stage(number).parameters()
        ]
        images = cell.target.images(bench.facts)
        total = cell.steps(bench.facts)
        member = Member(
            cell=cell,
            network=network,
            trunk=trunk,
            optimizer=Optimizer(trained, cell.recipe),
            total=total,
            images=images,
            losses=torch.zeros(total, device=bench.device),
            frozen_before=before,
        )
        self._resume(member)
        return member

    def _base(self, cell: Cell) -> dict[str, Tensor] | None:
        """The base's tensors, fetched through the store (a node keeps a verified copy)."""
        if cell.base is None:
            return None
        record = find_record(self.bench.store, cell.base)
        if record is None or record.result.checkpoint is None or record.result.checkpoint_sha256 is None:
            raise CellFailed(f"{cell.address}: its base {cell.base.address} has no checkpoint")
        where, sha256 = record.result.checkpoint, record.result.checkpoint_sha256
        return checkpoint.fetch(self.bench.store, where, sha256, self.bench.cache, cell.base.hash)

    def _trunk(self, cell: Cell, network: StagedNetwork) -> Trunk:
        """Let a frozen cell stand on the trunk of its origin."""
        filters = f"random-{cell.seed}-{cell.recipe.normalization}"
        name = filters if cell.base is None else cell.base.address
        origin = digest([name, cell.network.model_dump(), cell.recipe.numerics.model_dump()])
        trunk = self.trunks.setdefault(origin, Trunk(network.input))
        network.input = trunk.input
        for number in range(1, cell.frozen + 1):
            network.stages[str(number)] = trunk.stages.setdefault(number, network.stage(number))
        return trunk

    # --- progress ---------------------------------------------------------------------------------------------------

    def _resume(self, member: Member) -> None:
        data = self.bench.store.find(progress_path(member.cell))
        if data is None:
            return
        try:
            checkpoint.restore(data, member)
        except IntegrityError as error:
            logger.warning("%s: progress is of no use, starting again (%s)", member.cell.title, error)
        member.resumed_at = member.step

    def _save(self, members: Iterable[Member]) -> None:
        for member in members:
            self.bench.store.put(progress_path(member.cell), checkpoint.pack(member))

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _run(self, members: list[Member], stream: Stream) -> None:
        bench = self.bench
        tests = TestSet(self._arrays(members[0].cell).test, members[0].cell)
        saved = time.monotonic()
        cost = 0.0
        fetch = _Fetch(stream, bench.device)
        seen = time.monotonic()
        told = -math.inf
        images = 0
        while active := [m for m in members if not m.finished]:
            begun = time.perf_counter()
            step = min(m.step for m in active)
            now = [m for m in active if m.step == step]
            with self._guard_all(now, f"the batch of step {step + 1}"):
                self._step(now, fetch(step), Noise(stream.names, step))
            now = [m for m in now if m.cell.address not in self.outcomes]
            if step % FINITE_EVERY == FINITE_EVERY - 1:
                self._look(now)
            due = [m for m in now if m.step in m.tests or m.finished]
            if due:
                self._look(due)
                with self._guard_all(due, f"the test after step {step + 1}"):
                    self._test([m for m in due if m.stopped is None], tests)
                due = [m for m in due if m.cell.address not in self.outcomes]
                now = [m for m in now if m.cell.address not in self.outcomes]
            if time.monotonic() - told >= ALIVE_S:
                bench.alive()
                told = time.monotonic()
            images += len(now) * stream.batch_size
            spent = time.perf_counter() - begun
            for member in now:
                member.seconds += spent / len(now)
            if due:
                speed = images / max(time.monotonic() - seen, 1e-9)
                self._report(due, speed)
                for member in due:
                    if member.finished:
                        with self._guard(member.cell):
                            self._finish(member, len(members))
                seen, images = time.monotonic(), 0
            members[:] = [m for m in members if m.cell.address not in self.outcomes]
            stop = bench.stop()
            if stop or time.monotonic() - saved > max(PROGRESS_S, 20 * cost):
                before = time.monotonic()
                self._save(m for m in members if not m.finished)
                saved = time.monotonic()
                cost = saved - before
            if stop:
                raise Interrupted(f"stopped after step {step + 1}; progress is saved")

    def _step(self, members: list[Member], batch: tuple[Tensor, Tensor, Tensor, Tensor], noise: Noise) -> None:
        """One training step of every member on the same batch."""
        _, labels, *_ = batch
        rises = _Rises(members, batch, noise)
        for member in list(members):
            with self._guard(member.cell):
                self.stepping = member
                with _autocast(member):
                    logits = rises(member)
                loss = functional.cross_entropy(logits.float(), labels)
                member.optimizer.zero_grad()
                loss.backward()
                member.losses[member.step] = loss.detach()
                member.optimizer.step(learning_rate(member.cell.recipe, member.step, member.total, member.cell.stretch))
                member.step += 1
            self.stepping = None

    def _look(self, members: Iterable[Member]) -> None:
        """Stop members whose loss is not finite; the step of the first such loss is what counts."""
        for member in members:
            bad = ~torch.isfinite(member.losses[: member.step])
            if member.stopped is None and bool(bad.any()):
                first = int(bad.nonzero()[0])
                member.stopped = f"the training loss was not finite at step {first + 1}"
                member.step = first

    def _test(self, members: list[Member], tests: TestSet) -> None:
        """Test members on the target's test images; the last test uses all of them."""
        groups: dict[int | None, list[Member]] = {}
        for member in members:
            few = None if member.step >= member.total else member.cell.recipe.evaluation_images
            groups.setdefault(few, []).append(member)
        for few, group in groups.items():
            for member, score in zip(group, self._scores(group, tests.batches(few)), strict=True):
                member.history.append(self._evaluation(member, score))

    def _scores(self, members: list[Member], batches: Iterable[Batch]) -> list[dict[str, float]]:
        for member in members:
            member.network.eval()
        totals = [torch.zeros(3, dtype=torch.float64, device=self.bench.device) for _ in members]
        images = 0
        with torch.no_grad():
            for batch in batches:
                tensors = inputs(batch, self.bench.device)
                labels = tensors[1]
                images += len(labels)
                rises = _Rises(members, tensors, None)
                for member, total in zip(members, totals, strict=True):
                    with _autocast(member):
                        logits = rises(member)
                    logits = logits.float()
                    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
                    loss = functional.cross_entropy(logits, labels, reduction="sum")
                    total += torch.stack([best[:, 0].sum(), best.sum(), loss.double()])
        for member in members:
            freeze(member.network, member.cell.frozen)
        names = ("top1", "top5", "loss")
        return [{"images": float(images), **dict(zip(names, total.tolist(), strict=True))} for total in totals]

    def _evaluation(self, member: Member, total: dict[str, float]) -> Evaluation:
        since = member.history[-1].step if member.history else 0
        train_loss = float(member.losses[since : member.step].double().mean())
        loss = total["loss"] / total["images"]
        return Evaluation(
            step=member.step,
            epoch=member.step * member.cell.recipe.batch_size / member.images,
            images=int(total["images"]),
            train_loss=train_loss if np.isfinite(train_loss) else None,
            top1=total["top1"] / total["images"],
            top5=total["top5"] / total["images"] if len(member.cell.target.classes) >= 10 else None,
            loss=loss if np.isfinite(loss) else None,
            lr=learning_rate(member.cell.recipe, member.step - 1, member.total, member.cell.stretch),
        )

    def _report(self, members: Iterable[Member], speed: float) -> None:
        for member in members:
            if member.stopped is None and member.history:
                last = member.history[-1]
                self.bench.log(member.cell, last.step, {**metrics(last), "perf/images_per_s": speed})

    # --- the end of a member ----------------------------------------------------------------------------------------

    def _finish(self, member: Member, cohort: int) -> None:
        """Write checkpoint and record, in this order; what another worker recorded first stands."""
        cell, store = member.cell, self.bench.store
        status, reason = verdict(member)
        where = sha256 = None
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in member.network.state_dict().items()}
        finite = member.stopped is None and all(bool(torch.isfinite(t).all()) for t in tensors.values())
        if finite:
            data, sha256 = checkpoint.encode(tensors, {"cell": cell.hash, "step": member.step})
            where = checkpoint_path(cell, sha256)
            store.put(where, data)
        verified = None
        if member.frozen_before is not None:
            verified = frozen_fingerprint(member.network, cell.frozen) == member.frozen_before
        record = Record(
            cell=cell,
            result=result(member, status, reason, verified, where, sha256),
            provenance=provenance.now(member.seconds, self.bench.device, member.resumed_at, cohort),
        )
        if not write_record(store, record):
            standing = find_record(store, cell)
            if standing is not None:
                record, status = standing, standing.result.status
                if where not in (None, standing.result.checkpoint):
                    with contextlib.suppress(StoreError):  # a worker's role may forbid it: a file too many, no more
                        store.delete(where)
        self.bench.done(record)
        _tidy(cell, store)
        self.leases.release(lease_path(cell))
        self.outcomes[cell.address] = status

    def _fail(self, cell: Cell, why: str) -> None:
        self.outcomes[cell.address] = f"failed: {why}"
        self.leases.release(lease_path(cell))

    @contextlib.contextmanager
    def _guard(self, cell: Cell) -> Iterator[None]:
        """A cell that fails leaves the loop, its mates go on. Memory, the store and a stop concern all of them."""
        try:
            yield
        except IntegrityError as error:
            self._fail(cell, str(error))
        except (StoreError, Interrupted):
            raise
        except Exception as error:
            if _is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise  # after an error of the device nothing works in this process any more
            self.bench.trace(cell, traceback.format_exc())
            self._fail(cell, f"{type(error).__name__}: {first_line(error)}")

    @contextlib.contextmanager
    def _guard_all(self, members: Iterable[Member], what: str) -> Iterator[None]:
        """What members share and cannot do without (an image that cannot be read, say) fails all of them, and no
        others."""
        try:
            yield
        except (StoreError, Interrupted):
            raise
        except Exception as error:
            if _is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            for member in members:
                if member.cell.address not in self.outcomes:
                    self.bench.trace(member.cell, traceback.format_exc())
                    self._fail(member.cell, f"{what}: {type(error).__name__}: {first_line(error)}")


class _Rises:
    """Logits of members on one batch; normalised inputs and trunk outputs are made once for all who need them."""

    def __init__(self, members: Sequence[Member], batch: tuple[Tensor, Tensor, Tensor, Tensor], noise: Noise | None):
        self.x, _, self.offsets, self.flips = batch
        self.noise = noise
        self._inputs: dict[bytes, Tensor] = {}
        self._taps: dict[int, dict[int, Tensor]] = {}
        for trunk in {id(m.trunk): m.trunk for m in members if m.trunk is not None}.values():
            standing = [m for m in members if m.trunk is trunk]
            with _autocast(standing[0]):
                cuts = [m.cell.frozen for m in standing]
                self._taps[id(trunk)] = trunk.taps(self._input(standing[0]), cuts, noise)

    def __call__(self, member: Member) -> Tensor:
        network, n = member.network, member.cell.frozen
        start = self._taps[id(member.trunk)][n] if member.trunk is not None else self._input(member)
        return network.run(start, n, network.depth, self.noise)

    def _input(self, member: Member) -> Tensor:
        normalization = member.network.input
        contiguous = member.cell.recipe.numerics.memory_format == "contiguous"
        key = normalization.key + (b"c" if contiguous else b"")
        if key not in self._inputs:
            x = normalization(self.x, self.offsets, self.flips)
            self._inputs[key] = x.contiguous() if contiguous else x
        return self._inputs[key]


class _Fetch:
    """Batches as tensors; on an accelerator the next one is made while the device works."""

    def __init__(self, stream: Stream, device: torch.device):
        self.stream, self.device = stream, device
        self.pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.ahead: dict[int, Future[list[Tensor]]] = {}

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.pool is None:
            return inputs(self.stream.batch(step), self.device)
        made = self.ahead.pop(step, None) or self.pool.submit(self._made, step)
        self.ahead = {step + 1: self.pool.submit(self._made, step + 1)}
        return moved(made.result(), self.stream.augmentation, self.device)

    def _made(self, step: int) -> list[Tensor]:
        return packed(self.stream.batch(step), self.device)


def _autocast(member: Member) -> contextlib.AbstractContextManager[object]:
    kind = member.cell.recipe.numerics.autocast
    return torch.autocast(member.losses.device.type, torch.bfloat16) if kind == "bfloat16" else contextlib.nullcontext()


def block(cell: Cell, why: str, store: Store, *, lasting: bool) -> Record | None:
    """A cell whose base has no usable weights cannot be trained. `lasting`: it never can be (the base diverged), which
    is recorded; else a later launch may try the base again, and nothing is written."""
    if not lasting:
        return None
    nothing = Result(
        status="blocked",
        steps=0,
        images_seen=0,
        top1_last=None,
        top1_best=None,
        top1_mean10=None,
        top5_last=None,
        loss_last=None,
        frozen_verified=None,
        checkpoint=None,
        checkpoint_sha256=None,
        reason=why,
    )
    record = Record(cell=cell, result=nothing, provenance=provenance.now(0.0, torch.device("cpu"), 0, 0))
    write_record(store, record)
    return record


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(part in text for part in ("out of memory", "can't allocate memory", "status_alloc_failed"))
    )
