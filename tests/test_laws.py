"""The laws of docs/design.md, on real trainings. Each test fails when its law is broken."""

from __future__ import annotations

import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from raygrid import train
from raygrid.cell import difference
from raygrid.checkpoint import decode
from raygrid.data.arrays import open_arrays
from raygrid.data.stream import Noise, Stream
from raygrid.record import deterministic, find_record, find_records, lease_path, progress_path, record_path
from raygrid.store import Leases
from raygrid.study import FROZEN
from raygrid.train import Bench, Interrupted, train_cohort
from tests.worlds import TINY, make_plan, make_world, streams


def same(world, store, cells) -> None:
    """Deterministic part of the records and every checkpoint file equal the undisturbed run's."""
    found = find_records(store, cells)
    assert set(found) == {cell.address for cell in cells}
    for cell in cells:
        expected, record = world.records[cell.address], found[cell.address]
        assert deterministic(record) == deterministic(expected), cell.title
        if expected.result.checkpoint:
            assert store.get(record.result.checkpoint) == world.store.get(expected.result.checkpoint), cell.title


def second_phase(world) -> list:
    return [cell for cell in world.plan.cells if cell.treatment != "base"]


def tensors(world, cell) -> dict:
    return decode(world.store.get(world.records[cell.address].result.checkpoint), cell.title)[0]


def find(world, name: str):
    return next(cell for cell in world.plan.cells if cell.name == name)


# --- law 1: identity by construction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "execution.cohort=1",
        "execution.backend=ray",
        "execution.device=cpu",
        "execution.workers=8",
        "execution.gpu=0.25",
        "name=other",
        "question=why",
        "score=top1_mean10",
    ],
)
def test_how_it_runs_cannot_reach_the_hash(override: str) -> None:
    ten = "recipe.evaluations=10"  # of which one of the scores is the mean
    mine, other = make_plan(overrides=[ten]), make_plan(overrides=[ten, override])
    assert [cell.address for cell in mine.cells] == [cell.address for cell in other.cells]


@pytest.mark.parametrize(
    "override",
    [
        "recipe.epochs=7",
        "recipe.batch_size=32",
        "recipe.lr=0.01",
        "recipe.momentum=0.8",
        "recipe.weight_decay=0.0",
        "recipe.bias_lr=2.0",
        "recipe.bias_decay=0.0",
        "recipe.sgd=caffe",
        "recipe.gradient_clip=null",
        "recipe.schedule.kind=constant",
        "recipe.augmentation.flip=true",
        "recipe.augmentation.padding=2",
        "recipe.augmentation.offsets=caffe",
        "recipe.order=fixed",
        "recipe.outputs=dataset",
        "recipe.evaluations=4",
        "recipe.evaluation_images=null",
        "recipe.numerics.autocast=bfloat16",
        "recipe.numerics.memory_format=contiguous",
        "recipe.numerics.threads=2",
        "network.width=0.5",
        "network.dropout=0.1",
        "images_per_class=40",
        "seeds=[1]",
        "splits=[{kind: random, seed: 1}]",
    ],
)
def test_what_changes_numbers_changes_every_hash(override: str) -> None:
    mine, other = make_plan(), make_plan(overrides=[override])
    assert not {cell.hash for cell in mine.cells} & {cell.hash for cell in other.cells}


def test_a_study_shares_cells_with_another_that_asks_for_the_same() -> None:
    some = {cell.address for cell in make_plan(overrides=["treatments=[transfer]", "layers=[4]"]).cells}
    assert some < {cell.address for cell in make_plan().cells}
    assert len(some) == 2, "A4B and its base"


def test_difference_names_the_field() -> None:
    mine, other = make_plan().cells[0], make_plan(overrides=["recipe.lr=0.01"]).cells[0]
    assert difference(mine, other) == [("recipe.lr", 0.03, 0.01)]


# --- law 2: cohorts never change a number ----------------------------------------------------------------------------


def test_alone_equals_in_a_cohort(world, tmp_path: Path) -> None:
    store = world.fresh(tmp_path)
    for cell in second_phase(world):
        train_cohort([cell], Bench(store, world.plan.facts))
    same(world, store, second_phase(world))


MIXED = (
    TINY
    + """\
grid:
  - {}
  - recipe: {evaluation_images: 30, lr: 0.02, normalization: mean-image, augmentation: {padding: 0}}
  - recipe: {evaluation_images: null, lr: 0.01, augmentation: {padding: 0}}
  - recipe: {epochs: 4, sgd: caffe, bias_lr: 2, schedule: {kind: step, every: 40}, augmentation: {padding: 0}}
  - recipe: {numerics: {memory_format: contiguous}, augmentation: {padding: 0}}
"""
)


def test_mates_of_other_recipes_change_nothing(tmp_path: Path) -> None:
    """What a stream lets differ: tests, normalisation, length, solver, memory format."""
    few = ["recipe.epochs=3", "layers=[1, 7]", "treatments=[base, scratch, transfer, transfer+, random]"]
    world = make_world(tmp_path / "together", MIXED, few)
    groups = streams(world.plan.cells)
    assert max(len({c.recipe for c in group}) for group in groups) >= 4
    alone = world.fresh(tmp_path / "alone", bases=False)
    for group in groups:
        for cell in group:
            train_cohort([cell], Bench(alone, world.plan.facts))
    same(world, alone, world.plan.cells)


def test_any_order_and_any_cut_give_the_same(world, tmp_path: Path) -> None:
    store = world.fresh(tmp_path)
    cells = second_phase(world)
    random.Random(3).shuffle(cells)
    while cells:
        size = random.Random(len(cells)).randint(1, len(cells))
        train_cohort(cells[:size], Bench(store, world.plan.facts))
        del cells[:size]
    same(world, store, second_phase(world))


def test_stopped_anywhere_and_resumed_in_other_cohorts(world, tmp_path: Path) -> None:
    store = world.fresh(tmp_path, bases=False)
    draw = random.Random(7)
    stops = 0
    for _ in range(60):
        left = [c for c in world.plan.cells if not store.exists(record_path(c))]
        if not left:
            break
        ready = [c for c in left if c.base is None or store.exists(record_path(c.base))]
        group = draw.choice(streams(ready))
        group = draw.sample(group, draw.randint(1, len(group)))
        steps = iter(range(draw.randint(1, 90)))
        try:
            train_cohort(group, Bench(store, world.plan.facts, stop=lambda steps=steps: next(steps, None) is None))
        except Interrupted:
            stops += 1
    assert stops > 5
    same(world, store, world.plan.cells)
    assert not [path for path in store.list("cells") if path.endswith(("lease.json", "progress.safetensors"))]


def test_equal_networks_are_equal_files(world) -> None:
    """One metadata key at most, canonical JSON, no time or host."""
    import json

    for record in world.records.values():
        data = world.store.get(record.result.checkpoint)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert set(header["__metadata__"]) == {"raygrid"}
        assert set(json.loads(header["__metadata__"]["raygrid"])) == {"cell", "step"}


# --- law 3: no hidden randomness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "side", "padding"), [(8, None, 1), (32, 27, 0), (32, 40, 4), (9, 9, 0)])
def test_crops_of_an_accelerator_are_the_same_bytes(size: int, side: int | None, padding: int) -> None:
    from raygrid.data import stream
    from raygrid.networks import crop
    from raygrid.study import Augmentation

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (50, size, size, 3), dtype=np.uint8)
    offsets = draw.integers(0, size + 2 * padding - (side or size) + 1, (50, 2))
    flips = draw.random(50) < 0.5
    augmentation = Augmentation(crop=side, padding=padding, flip=True)
    found = crop(*(torch.from_numpy(a) for a in (images, offsets, flips)), augmentation)
    assert np.array_equal(found.numpy(), stream.crop(images, offsets, flips, augmentation))


def test_the_global_generators_are_neither_read_nor_moved(world, tmp_path: Path) -> None:
    store = world.fresh(tmp_path)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    cell = find(world, "A4B+")
    train_cohort([cell], Bench(store, world.plan.facts))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    same(world, store, [cell])


def initial(world, name: str) -> dict:
    """A cell's tensors at step 0."""
    from raygrid.checkpoint import fetch
    from raygrid.data.arrays import statistics
    from raygrid.transplant import assemble

    cell = find(world, name)
    images = open_arrays(world.store, cell.target.data_sha256).train
    rows = images.rows(cell.target.classes, cell.target.images_per_class)
    found = statistics(images, rows, "channel")
    base = None
    if cell.base is not None:
        result = world.records[cell.base.address].result
        base = fetch(world.store, result.checkpoint, result.checkpoint_sha256)
    return assemble(cell, base, lambda: (found["mean"], found["std"])).state_dict()


def equal_layers(one: dict, other: dict, numbers: range) -> bool:
    names = [name for name in one if any(name.startswith(f"stages.{n}.") for n in numbers) and "bias" not in name]
    assert names
    return all(torch.equal(one[name], other[name]) for name in names)


def test_reinitialised_layers_are_the_same_for_every_source_n_and_plus_and_never_the_bases(world) -> None:
    scratch, base = initial(world, "scratchB"), initial(world, "baseB")
    assert not any(equal_layers(scratch, base, range(n, n + 1)) for n in range(1, 9))
    for name in ("B4B", "A4B", "A4B+", "B4B+", "R4B"):
        assert equal_layers(initial(world, name), scratch, range(5, 9)), name
    assert equal_layers(initial(world, "A1B"), scratch, range(2, 9))


def test_random_filters_nest_and_are_not_the_reinitialised_ones(world) -> None:
    deep, shallow, scratch = initial(world, "R7B"), initial(world, "R4B"), initial(world, "scratchB")
    assert equal_layers(deep, shallow, range(1, 5))
    assert not any(equal_layers(deep, scratch, range(n, n + 1)) for n in range(1, 8))


# --- law 4: common random numbers, and no replay ---------------------------------------------------------------------


def stream_of(world, name: str) -> Stream:
    cell = find(world, name)
    return Stream(open_arrays(world.store, cell.target.data_sha256).train, cell)


def test_cells_of_a_task_see_the_same_batches_and_the_base_saw_others(world) -> None:
    mine, other, base = (stream_of(world, name) for name in ("B4B", "A7B+", "baseB"))
    for step in (0, 5, 40):
        assert np.array_equal(mine.batch(step).crops, other.batch(step).crops)
        assert not np.array_equal(mine.batch(step).crops, base.batch(step).crops)


def test_a_batch_depends_on_its_step_alone(world) -> None:
    one, other = stream_of(world, "B4B"), stream_of(world, "B4B")
    for step in range(30):
        one.batch(step)
    assert np.array_equal(one.batch(7).crops, other.batch(7).crops)


def test_every_epoch_has_every_image_once(world) -> None:
    stream = stream_of(world, "B4B")
    count = len(stream)
    seen = np.concatenate([stream._positions(step) for step in range(-(-2 * count // stream.batch_size))])
    for epoch in (seen[:count], seen[count : 2 * count]):
        assert np.array_equal(np.sort(epoch), np.arange(count))
    assert not np.array_equal(seen[:count], seen[count : 2 * count])


def test_dropout_masks_are_the_streams(world) -> None:
    names = stream_of(world, "B4B").names
    assert np.array_equal(Noise(names, 3).uniform(7, (4, 5)), Noise(names, 3).uniform(7, (4, 5)))
    assert not np.array_equal(Noise(names, 3).uniform(7, (4, 5)), Noise(names, 4).uniform(7, (4, 5)))
    assert not np.array_equal(Noise(names, 3).uniform(7, (4, 5)), Noise(names, 3).uniform(8, (4, 5)))


# --- law 5: frozen is frozen -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["small", "small-bn"])
def frozen_world(request, tmp_path_factory):
    """TINY with heavy weight decay, also on a network with batch norms."""
    overrides = [f"network.name={request.param}", "recipe.weight_decay=0.01", "recipe.epochs=2", "layers=[4, 7]"]
    overrides += ["treatments=[selffer, transfer, transfer+, random]"]
    if request.param == "small":  # without batch norm it learns more slowly
        overrides += ["recipe.epochs=6"]
    return make_world(tmp_path_factory.mktemp("frozen"), TINY, overrides)


def test_frozen_tensors_equal_the_bases_bytes_at_the_end(frozen_world) -> None:
    checked = 0
    for cell in frozen_world.plan.cells:
        if cell.treatment in ("selffer", "transfer"):
            mine, base = tensors(frozen_world, cell), tensors(frozen_world, cell.base)
            for name, tensor in mine.items():
                layer = 1 if name.startswith("input") else int(name.split(".")[1])
                if layer <= cell.n:
                    assert torch.equal(tensor, base[name]), (cell.title, name)
                    checked += 1
        expected = True if cell.treatment in FROZEN else None
        assert frozen_world.records[cell.address].result.frozen_verified is expected
    assert checked


def test_fine_tuned_layers_move(frozen_world) -> None:
    cell = find(frozen_world, "A4B+")
    mine, base = tensors(frozen_world, cell), tensors(frozen_world, cell.base)
    assert not torch.equal(mine["stages.1.layer.weight"], base["stages.1.layer.weight"])


def test_a_frozen_tensor_that_moved_is_told(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check looks at the bytes: it cannot say yes to a layer that moved."""
    store = world.fresh(tmp_path)
    cell = find(world, "A4B")
    honest = train._Loop._step

    def moving(self, members, batch, noise):
        honest(self, members, batch, noise)
        with torch.no_grad():
            members[0].network.stage(2).layer.bias.add_(1e-3)

    monkeypatch.setattr(train._Loop, "_step", moving)
    train_cohort([cell], Bench(store, world.plan.facts))
    assert find_record(store, cell).result.frozen_verified is False


def test_dropout_stays_active_on_frozen_layers(world, tmp_path: Path) -> None:
    """n = 7 freezes the layer that drop6 opens: other masks give other numbers."""
    cell = make_plan(overrides=["network.dropout=0.0"]).by_address
    calm = next(c for c in cell.values() if c.name == "A7B")
    assert calm.hash != find(world, "A7B").hash
    network = train._Loop(Bench(world.fresh(tmp_path), world.plan.facts), Leases(world.store))._member(
        find(world, "A7B")
    )
    x = torch.rand(4, 128)[:, : network.network.stage(7).layer.in_features]
    noise = Noise(("task", 0, "retrain"), 0)
    assert not torch.equal(network.network.stage(7)(x, noise), network.network.stage(7)(x, None))


# --- law 6: nothing trains twice, nothing is lost --------------------------------------------------------------------


def test_a_recorded_cell_is_left_alone(world, tmp_path: Path) -> None:
    store = world.fresh(tmp_path)
    cell = find(world, "A4B")
    told: list = []
    bench = Bench(store, world.plan.facts, done=told.append)
    status = world.records[cell.address].result.status
    assert train_cohort([cell], bench) == train_cohort([cell], bench) == {cell.address: status}
    assert len(told) == 1


def test_a_dead_process_gives_its_lease_back_at_once_a_living_one_keeps_it(world, tmp_path: Path) -> None:
    import json

    store = world.fresh(tmp_path)
    mine = Leases(store)
    path = lease_path(find(world, "A4B"))
    text = json.loads(mine._text())
    store.put(path, json.dumps({**text, "pid": 2**22 - 3}).encode())
    assert mine.take(path)
    other = Leases(store)
    assert not other.take(path)
    mine.release(path)
    assert other.take(path)
    other.close()


def test_a_silent_lease_of_another_host_dies_by_the_readers_clock(world, tmp_path, monkeypatch) -> None:
    import json

    from raygrid import store as stores

    store = world.fresh(tmp_path)
    mine = Leases(store)
    path = lease_path(find(world, "A4B"))
    store.put(path, json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "beat": 0}).encode())
    now = [1000.0]
    monkeypatch.setattr(stores.time, "monotonic", lambda: now[0])
    assert not mine.take(path)
    now[0] += 59
    assert not mine.take(path)
    store.put(path, json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0, "beat": 1}).encode())
    now[0] += 30
    assert not mine.take(path), "it beat meanwhile"
    now[0] += 61
    assert mine.take(path)
    mine.close()


# --- law 8: no selection on the outcome ------------------------------------------------------------------------------


@pytest.mark.fault("a loss that is not finite")
def test_a_loss_that_is_not_finite_is_a_result_and_its_mates_finish(world, tmp_path, monkeypatch) -> None:
    store = world.fresh(tmp_path)
    cells = second_phase(world)
    bad = find(world, "A4B+")
    real_step = train._Loop._step

    def step(self, members, batch, noise):
        real_step(self, members, batch, noise)
        for member in members:
            if member.cell.address == bad.address and member.step == 20:
                with torch.no_grad():
                    member.network.stage(8).layer.weight.fill_(float("inf"))

    monkeypatch.setattr(train._Loop, "_step", step)
    outcomes = train_cohort(cells, Bench(store, world.plan.facts))
    assert outcomes[bad.address] == "diverged"
    result = find_record(store, bad).result
    assert (result.status, result.checkpoint, result.top1_last, result.steps) == ("diverged", None, None, 20)
    assert "step 21" in result.reason
    same(world, store, [cell for cell in cells if cell.address != bad.address])


@pytest.mark.fault("a loss stuck at that of guessing")
def test_a_loss_of_guessing_is_diverged_and_keeps_its_score(tmp_path: Path) -> None:
    world = make_world(tmp_path, TINY, ["recipe.lr=1.0e-7", "treatments=[base]", "recipe.epochs=1"])
    for record in world.records.values():
        assert record.result.status == "diverged" and "guessing" in record.result.reason
        assert record.result.top1_last is not None and record.result.checkpoint is not None


# --- failures are contained ------------------------------------------------------------------------------------------


@pytest.mark.fault("a network that fails among its mates")
def test_a_failing_cell_fails_alone(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.fresh(tmp_path)
    cells = second_phase(world)
    bad = find(world, "B4B+")
    real = train.learning_rate

    def failing(recipe, step, *rest):
        import inspect

        member = inspect.currentframe().f_back.f_locals.get("member")
        if member is not None and member.cell.address == bad.address and step == 11:
            raise ZeroDivisionError("made to fail")
        return real(recipe, step, *rest)

    monkeypatch.setattr(train, "learning_rate", failing)
    outcomes = train_cohort(cells, Bench(store, world.plan.facts))
    assert outcomes[bad.address] == "failed: ZeroDivisionError: made to fail"
    assert find_record(store, bad) is None
    same(world, store, [cell for cell in cells if cell.address != bad.address])
    monkeypatch.undo()
    train_cohort(cells, Bench(store, world.plan.facts))
    same(world, store, cells)


@pytest.mark.fault("memory that runs out")
def test_out_of_memory_runs_the_cohort_as_two_halves(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.fresh(tmp_path)
    cells = second_phase(world)
    sizes: list[int] = []
    real = train._Loop._step

    def small_device(self, members, batch, noise):
        sizes.append(len(members))
        if len(members) > 5 and members[0].step == 13:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, members, batch, noise)

    monkeypatch.setattr(train._Loop, "_step", small_device)
    train_cohort(cells, Bench(store, world.plan.facts))
    assert max(sizes) == len(cells) and min(sizes) <= 4
    same(world, store, cells)


@pytest.mark.fault("memory that runs out")
def test_nothing_of_a_cohort_that_ran_out_of_memory_is_kept(world, tmp_path: Path, monkeypatch) -> None:
    """When its halves begin, no weight of the whole is alive: on a GPU they would find the memory still full."""
    store = world.fresh(tmp_path)
    cells = second_phase(world)
    weights: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    real, run = train._Loop._step, train._Loop._run

    def small_device(self, members, batch, noise):
        real(self, members, batch, noise)
        if len(members) > 5:
            weights.extend(weakref.ref(p) for m in members for p in m.network.parameters())
            raise torch.OutOfMemoryError("CUDA out of memory")

    def counted(self, members, stream):
        if weights:
            alive.append(sum(weight() is not None for weight in weights))
        run(self, members, stream)

    monkeypatch.setattr(train._Loop, "_step", small_device)
    monkeypatch.setattr(train._Loop, "_run", counted)
    train_cohort(cells, Bench(store, world.plan.facts))
    assert weights and alive and alive[0] == 0
    same(world, store, cells)


def test_an_error_of_the_device_ends_the_cohort(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it nothing works in that process: the other cells must not be booked as failed."""
    store = world.fresh(tmp_path)

    def broken(self, members, batch, noise):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(train._Loop, "_step", broken)
    with pytest.raises(torch.AcceleratorError):
        train_cohort(second_phase(world), Bench(store, world.plan.facts))


def test_float32_is_float32(world, tmp_path: Path) -> None:
    """`autocast: none` is the paper's arithmetic: no TF32 on GPUs, neither for convolutions nor for matrices."""
    torch.backends.cudnn.allow_tf32 = True
    train_cohort(second_phase(world)[:1], Bench(world.fresh(tmp_path), world.plan.facts))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_progress_of_another_cell_or_damaged_progress_starts_again(world, tmp_path: Path) -> None:
    store = world.fresh(tmp_path)
    mine, other = find(world, "A4B"), find(world, "A1B")
    steps = iter(range(30))
    with pytest.raises(Interrupted):
        train_cohort([other], Bench(store, world.plan.facts, stop=lambda: next(steps, None) is None))
    store.put(progress_path(mine), store.get(progress_path(other)))
    train_cohort([mine], Bench(store, world.plan.facts))
    store.put(progress_path(other), b"\x80\x04cposix\nsystem\n")
    train_cohort([other], Bench(store, world.plan.facts))
    same(world, store, [mine, other])


def test_a_copy_of_a_cell_has_an_identity_of_its_own() -> None:
    cell = make_plan().cells[0]
    assert cell.hash and cell.address
    assert cell.model_copy(update={"seed": 5}).hash != cell.hash
