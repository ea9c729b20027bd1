"""What training costs, from stage shapes alone: FLOPs, memory, seconds, and the ideal cost of a whole plan.

A multiply-add is 2 FLOPs. Only weight layers are counted: activation, pooling and normalisation are memory traffic,
which the rates of `DEVICES` contain. The input gradient of layer 1 is never needed, nor that of the first trained
layer above a frozen trunk. Plain numbers: no torch, no files, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from raygrid.architectures import ARCHITECTURES, StageShape, shapes
from raygrid.cell import Cell, DatasetFacts
from raygrid.errors import UserError, closest
from raygrid.study import COPYING, Network, Numerics

# --- one image through one network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageCost:
    """One stage, for one image."""

    forward: int
    """FLOPs"""
    weight_gradient: int
    """FLOPs"""
    input_gradient: int
    """FLOPs; 0 for layer 1"""
    parameters: int
    elements: int
    """values that one forward writes (and one backward reads): the measure of memory traffic"""
    saved: int
    """float32-sized values that autograd keeps for the backward pass"""
    out: int
    """values handed on to the next stage"""
    launches: int
    """kernels of an eager forward pass; forward and backward have three times as many"""


@lru_cache(maxsize=4096)
def _stage_costs(name: str, width: float, dropout: float | None, outputs: int, size: int) -> tuple[StageCost, ...]:
    rates = {} if dropout is None else {"dropout": dropout}
    found = shapes(ARCHITECTURES[name](outputs, width, **rates), size)
    return tuple(_stage_cost(shape, first=number == 0) for number, shape in enumerate(found))


def stage_costs(network: Network, outputs: int, size: int) -> tuple[StageCost, ...]:
    """Costs of every stage for square images of `size` pixels that enter the network (the crop, if there is one)."""
    return _stage_costs(network.name, network.width, network.dropout, outputs, size)


def _stage_cost(shape: StageShape, first: bool) -> StageCost:
    stage = shape.stage
    forward = 2 * shape.weights * shape.weighted[1] * shape.weighted[2]
    weighted = shape.weighted[0] * shape.weighted[1] * shape.weighted[2]
    out = shape.out[0] * shape.out[1] * shape.out[2]
    pooled, lrn = stage.pool is not None, stage.lrn is not None
    dropped = shape.fan_in if stage.dropout else 0
    normed = weighted * (2 if stage.batch_norm else 1)
    return StageCost(
        forward=forward,
        weight_gradient=forward,
        input_gradient=0 if first else forward,
        parameters=shape.parameters,
        elements=normed + (LRN_PASSES * out if lrn else 0),
        # pooling keeps int64 indices; LRN its denominator at several stages of its making
        saved=normed + (3 * out if pooled else 0) + (5 * out if lrn else 0) + 2 * dropped,
        out=out,
        launches=2 + pooled + bool(stage.dropout) + (8 if lrn else 0) + stage.batch_norm,
    )


LRN_PASSES = 16
"""memory traffic of local response normalisation: values written for every value put out (fitted on one CPU core)"""


# --- a whole training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a device has to do; adds up."""

    flops: float = 0.0
    elements: float = 0.0
    """values written, see StageCost"""
    updated: float = 0.0
    """parameters that the optimiser wrote, over all steps"""
    launches: float = 0.0
    """kernel launches of eager execution"""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.elements + other.elements,
            self.updated + other.updated,
            self.launches + other.launches,
        )

    def __sub__(self, other: Work) -> Work:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Work:
        return Work(self.flops * factor, self.elements * factor, self.updated * factor, self.launches * factor)


@dataclass(frozen=True)
class CellCost:
    """The work of one cell's whole training. `skipped` = `own` + `trunk`."""

    full: Work
    """every layer forward and backward, though some are frozen"""
    own: Work
    """the layers above its frozen trunk"""
    trunk: Work
    """forward through its frozen trunk: the part that cells of one source can share"""
    unit: Work
    """one full training of this task, network and recipe; `full` is twice that for base-long"""
    footprint: Footprint
    steps: int

    @property
    def skipped(self) -> Work:
        """Frozen layers forward only."""
        return self.own + self.trunk


@dataclass(frozen=True)
class Footprint:
    """Bytes of device memory that a cell adds to a cohort."""

    member: int
    """weights, gradients and momentum of its trained layers"""
    trunk: int
    """weights of its frozen layers, once for all cells that share them"""
    passing: int
    """what its forward and backward keep; members take turns, so a cohort needs the largest once"""
    tap: int
    """the trunk's output that it reads, kept through the step, and its share of the batch"""


@dataclass
class Meter:
    """Costs of cells, each distinct one computed once. FLOPs of tests are counted unless `evaluate` is false."""

    facts: DatasetFacts
    evaluate: bool = True
    _known: dict[tuple[int | bool, ...], CellCost] = field(default_factory=dict, repr=False)
    _images: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _alive: dict[int, object] = field(default_factory=dict, repr=False)
    """objects known by their id() stay alive, so that no other object can get it"""
    _names: dict[int, str] = field(default_factory=dict, repr=False)

    def __call__(self, cell: Cell) -> CellCost:
        long = cell.treatment == "base-long"
        key = (id(cell.network), id(cell.recipe), id(cell.target), cell.outputs, cell.image_size, cell.frozen, long)
        found = self._known.get(key)
        if found is None:
            self._keep(cell.network, cell.recipe, cell.target)
            found = self._known[key] = self._cost(cell)
        return found

    def trunk_name(self, cell: Cell) -> str | None:
        """What the cell's frozen trunk is: cells of one stream with equal names share one forward through it."""
        if not cell.frozen:
            return None
        if cell.base is not None:
            return cell.base.address
        kind = f"random-{cell.seed} {cell.recipe.normalization}"
        return f"{kind} {self._text(cell.network)} {self._text(cell.recipe.numerics)}"

    def _keep(self, *things: object) -> None:
        self._alive.update((id(thing), thing) for thing in things)

    def _text(self, thing: Network | Numerics) -> str:
        if id(thing) not in self._names:
            self._keep(thing)
            self._names[id(thing)] = thing.model_dump_json()
        return self._names[id(thing)]

    def _cost(self, cell: Cell) -> CellCost:
        recipe, target = cell.recipe, cell.target
        if id(target) not in self._images:
            self._images[id(target)] = target.images(self.facts), target.test_images(self.facts)
        train, test = self._images[id(target)]
        normal = recipe.steps(train)
        steps = normal * cell.stretch
        tested = 0
        if self.evaluate:
            on_the_way = min(recipe.evaluation_images or test, test)
            tested = (min(recipe.evaluations, steps) - 1) * on_the_way + test
        stages = stage_costs(cell.network, cell.outputs, recipe.augmentation.crop or cell.image_size)
        full, unit = (_whole(stages, 0, s, recipe.batch_size, tested) for s in (steps, normal))
        trunk = _forward(stages[: cell.frozen], steps, recipe.batch_size, tested)
        own = _whole(stages, cell.frozen, steps, recipe.batch_size, tested) - trunk
        return CellCost(full, own, trunk, unit, _footprint(stages, cell), steps)


def _forward(stages: Sequence[StageCost], steps: int, batch: int, tested: int) -> Work:
    images = steps * batch + tested
    return Work(
        flops=float(images * sum(s.forward for s in stages)),
        elements=float(images * sum(s.elements for s in stages)),
        launches=(steps + tested / batch) * sum(s.launches for s in stages),
    )


def _whole(stages: Sequence[StageCost], frozen: int, steps: int, batch: int, tested: int) -> Work:
    """A training whose first `frozen` layers only run forward."""
    trained = stages[frozen:]
    flops = sum(s.weight_gradient for s in trained) + sum(s.input_gradient for s in trained[1:])
    backward = Work(
        flops=float(steps * batch * flops),
        elements=float(steps * batch * sum(s.elements for s in trained)),
        updated=float(steps * sum(s.parameters for s in trained)),
        launches=float(steps * (2 * sum(s.launches for s in trained) + 6)),
    )
    return _forward(stages, steps, batch, tested) + backward


# --- device memory ---------------------------------------------------------------------------------------------------


def _footprint(stages: Sequence[StageCost], cell: Cell) -> Footprint:
    batch = cell.recipe.batch_size
    half = cell.recipe.numerics.autocast == "bfloat16"
    frozen, trained = stages[: cell.frozen], stages[cell.frozen :]
    size = cell.recipe.augmentation.crop or cell.image_size
    parameters = sum(s.parameters for s in trained)
    saved = batch * sum(s.saved for s in trained) * (3 if half else 4)
    working = batch * 8 * max(s.elements for s in stages)
    return Footprint(
        member=12 * parameters,
        trunk=4 * sum(s.parameters for s in frozen),
        passing=saved + working + (2 * sum(s.parameters for s in stages) if half else 0),
        tap=batch * 4 * (frozen[-1].out if frozen else 3 * size * size),
    )


def cohort_bytes(cells: Sequence[Cell], meter: Meter, kind: str = "cpu") -> int:
    """Predicted peak memory of a cohort on its device, bytes, with the fixed part that a process takes there."""
    costs = [(meter.trunk_name(cell), meter(cell).footprint) for cell in cells]
    trunks: dict[str, int] = {}
    for name, foot in costs:
        if name is not None:
            trunks[name] = max(trunks.get(name, 0), foot.trunk)
    batch = cells[0].recipe.batch_size * 4 * 3 * (cells[0].recipe.augmentation.crop or cells[0].image_size) ** 2
    members = sum(foot.member + foot.tap for _, foot in costs)
    return device(kind).fixed_bytes + batch + members + sum(trunks.values()) + max(f.passing for _, f in costs)


# --- seconds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """How fast one device kind trains."""

    flops_per_s: float
    """sustained on the weight layers of bf16 autocast"""
    fp32_flops_per_s: float
    """the same without autocast"""
    element_s: float
    """seconds a value written, per forward or backward pass (CPU; in the rate of GPUs)"""
    bytes_per_s: float
    """memory bandwidth, for the optimiser's 26 bytes a trained parameter and step"""
    launch_s: float
    """seconds a kernel launch: on GPUs a step takes no less than its launches, on CPUs they come on top"""
    memory: int
    """bytes; for CPUs what one worker may take by default"""
    fixed_bytes: int
    """what a process takes before its first network"""
    source: str

    def seconds(self, work: Work, autocast: bool = True) -> float:
        """Predicted seconds."""
        rate = self.flops_per_s if autocast else self.fp32_flops_per_s
        busy = work.flops / rate + work.elements * self.element_s + work.updated * 26 / self.bytes_per_s
        launches = work.launches * self.launch_s
        return busy + launches if self.element_s else max(busy, launches)


_GB = 10**9
_MFU = 0.36
"""assumed share of peak: airbench's on an A100 for small convolutions, the best published; 20 % is ffcv's level"""


def _gpu(bf16_peak: float, fp32_peak: float, bandwidth_gb: float, memory_gb: int, note: str = "") -> Device:
    return Device(
        flops_per_s=_MFU * bf16_peak * 1e12,
        fp32_flops_per_s=_MFU * fp32_peak * 1e12,
        element_s=0.0,
        bytes_per_s=bandwidth_gb * _GB,
        launch_s=10e-6,
        memory=int(memory_gb * 0.92) * _GB,
        fixed_bytes=3 * _GB // 2,
        source=f"ASSUMED {_MFU:.0%} of the vendor's peak {bf16_peak:g} (bf16), {fp32_peak:g} (fp32) TFLOP/s{note}",
    )


DEVICES: dict[str, Device] = {
    "cpu": Device(
        flops_per_s=226e9,
        fp32_flops_per_s=121e9,
        element_s=2.2e-9,
        bytes_per_s=12e9,
        launch_s=8e-6,
        memory=3 * _GB,
        fixed_bytes=_GB // 2,
        source="MEASURED, one core of an AMD EPYC with AVX512-BF16, torch 2.14, channels_last, network small of width "
        ".5, 1, 2 at 32 px, batch 64: fits within 15 %",
    ),
    "A100": _gpu(312, 19.5, 1555, 40),
    "A100-80GB": _gpu(312, 19.5, 2039, 80),
    "H100": _gpu(989, 67, 3350, 80),
    "H200": _gpu(989, 67, 4800, 141),
    "L4": _gpu(121, 30, 300, 24),
    "A10G": _gpu(70, 31, 600, 24),
    "T4": _gpu(8.1, 8.1, 320, 16, "; no bf16 units, so fp32"),
    "V100": _gpu(15.7, 15.7, 900, 16, "; no bf16 units, so fp32"),
}
"""Device kind -> rates: the one table of constants. A CPU is one core, which trains one cohort with one thread."""

CONTIGUOUS = replace(
    DEVICES["cpu"],
    flops_per_s=298e9,
    fp32_flops_per_s=138e9,
    element_s=5.3e-9,
    source="as cpu, memory format contiguous",
)


def device(name: str, numerics: Numerics | None = None) -> Device:
    """The device kind of a name; `0.25 L4` is a quarter of one. Raises UserError, with the known ones, where there is
    none."""
    if name == "cpu" and numerics is not None and numerics.memory_format == "contiguous":
        return CONTIGUOUS
    share, _, whole = name.rpartition(" ")
    if whole not in DEVICES:
        raise UserError(f"device kind {whole!r} is not known{closest(whole, DEVICES)}")
    return _part(whole, float(share)) if share else DEVICES[whole]


@cache
def _part(name: str, share: float) -> Device:
    """What a trial gets of a device that others share: its part of all rates and of the memory."""
    whole = DEVICES[name]
    return replace(
        whole,
        flops_per_s=whole.flops_per_s * share,
        fp32_flops_per_s=whole.fp32_flops_per_s * share,
        bytes_per_s=whole.bytes_per_s * share,
        memory=int(whole.memory * share),
    )


def kind_of(gpu: str) -> str | None:
    """The device kind of a GPU's full name (`NVIDIA A100-SXM4-80GB`), or None where it is not known."""
    words = re.split(r"[ -]", gpu)
    if "MIG" in words:  # a slice has its own share of rates and memory
        return None
    found = [kind for kind in DEVICES if all(part in words for part in kind.split("-"))]
    return max(found, key=len, default=None)


def seconds(cells: Sequence[Cell], meter: Meter, kind: str = "cpu") -> float:
    """Predicted seconds of a cohort on one device: its members, each trunk once. Start-up is not in it.

    CPU: within 15 % on the core that was measured (see DEVICES); other cores differ by their speed. GPUs: assumed.
    """
    total = 0.0
    trunks: dict[str, float] = {}
    for cell in cells:
        numerics, cost = cell.recipe.numerics, meter(cell)
        rates, half = device(kind, numerics), numerics.autocast == "bfloat16"
        total += rates.seconds(cost.own, half)
        name = meter.trunk_name(cell)
        if name is not None:
            trunks[name] = max(trunks.get(name, 0.0), rates.seconds(cost.trunk, half))
    return total + sum(trunks.values())


# --- the ideal cost of a plan ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """A plan's cost if trained in a given way."""

    flops: float
    units: float
    """in full trainings of each cell's own task, network and recipe"""


@dataclass(frozen=True)
class Ideal:
    """The least that a plan can cost, rung by rung; every rung is exact (no number changes)."""

    independent: Rung
    """every cell a job of its own that trains its own base, all layers forward and backward"""
    bases_shared: Rung
    """each base trained once"""
    backward_skipped: Rung
    """frozen layers forward only"""
    trunk_shared: Rung
    """and one forward through a frozen trunk for all cells of its source in one stream"""


def ideal(cells: Iterable[Cell], facts: DatasetFacts, evaluate: bool = True) -> Ideal:
    """Cost of the cells at each rung, in FLOPs and in full trainings; tests included unless `evaluate` is false."""
    meter = Meter(facts, evaluate)
    alone, shared, skipped, trunked = [], [], [], []
    trunks: dict[tuple[str, str], tuple[float, float]] = {}
    for cell in cells:
        cost = meter(cell)
        unit = cost.unit.flops
        shared.append((cost.full.flops, unit))
        if cell.treatment in COPYING and cell.base is not None:
            base = meter(cell.base)
            alone.append((base.full.flops, base.unit.flops))
        skipped.append((cost.skipped.flops, unit))
        trunked.append((cost.own.flops, unit))
        name = meter.trunk_name(cell)
        if name is not None:
            key = (cell.stream, name)
            trunks[key] = max(trunks.get(key, (0.0, 1.0)), (cost.trunk.flops, unit))
    trunked.extend(trunks.values())
    return Ideal(_rung(alone + shared), _rung(shared), _rung(skipped), _rung(trunked))


def _rung(parts: Sequence[tuple[float, float]]) -> Rung:
    return Rung(sum(flops for flops, _ in parts), sum(flops / unit for flops, unit in parts))
