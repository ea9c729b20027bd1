"""The cost model against torch's own counter, and against the closed forms of the paper's grid."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raygrid.architectures import ARCHITECTURES, shapes
from raygrid.cell import Cell, DatasetFacts
from raygrid.cost import DEVICES, Meter, Work, cohort_bytes, device, ideal, kind_of, seconds, stage_costs
from raygrid.errors import UserError
from raygrid.plan import Plan, plan
from raygrid.preview import note_actual
from raygrid.prices import load_prices, node_types, quotes, rate
from raygrid.study import Network, Study

ROOT = Path(__file__).resolve().parent.parent

# --- networks to count on --------------------------------------------------------------------------------------------


def build(name: str, outputs: int, width: float, size: int) -> nn.ModuleList:
    """The stages of a network as torch modules; only what costs or shapes anything."""
    stages = nn.ModuleList()
    for shape in shapes(ARCHITECTURES[name](outputs, width), size):
        stage = shape.stage
        parts: list[nn.Module] = []
        if stage.dropout:
            parts.append(nn.Dropout(stage.dropout))
        if stage.kind == "conv":
            parts.append(
                nn.Conv2d(shape.fan_in, stage.out, stage.kernel, stage.stride, stage.padding, groups=stage.groups)
            )
        else:
            parts += [nn.Flatten(), nn.Linear(shape.fan_in, stage.out)]
        if stage.batch_norm:
            parts.append(nn.BatchNorm2d(stage.out) if stage.kind == "conv" else nn.BatchNorm1d(stage.out))
        if stage.relu:
            parts.append(nn.ReLU())
        if stage.pool:
            parts.append(nn.MaxPool2d(stage.pool.kernel, stage.pool.stride, ceil_mode=True))
        if stage.lrn:
            parts.append(nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0))
        stages.append(nn.Sequential(*parts))
    return stages


def run(stages: nn.ModuleList, x: torch.Tensor, frozen: int) -> None:
    """One forward and backward with the first `frozen` stages frozen."""
    for number, stage in enumerate(stages):
        stage.requires_grad_(number >= frozen)
        x = stage(x)
    x.sum().backward()


def facts(classes: int = 1000, size: int = 256) -> DatasetFacts:
    return DatasetFacts(
        name="some",
        sha256="0" * 64,
        classes=tuple(f"c{i}" for i in range(classes)),
        groups=tuple("natural" if i < classes // 2 else "man-made" for i in range(classes)),
        train=(256,) * classes,
        test=(50,) * classes,
        image_size=size,
    )


def caffenet(rest: str, network: str = "caffenet", crop: int = 227, recipe: str = "") -> Plan:
    study = Study.parse(
        f"""
name: t
dataset: some
network: {network}
recipe: {{iterations: 1000, batch_size: 256, augmentation: {{crop: {crop}, padding: 0}}{recipe}}}
{rest}
"""
    )
    return plan(study, facts())


FOUR = "splits: [{kind: random, seed: 0}, {kind: random, seed: 1}, {kind: random, seed: 2}, {kind: random, seed: 3}]\n"
CORE = FOUR + "treatments: [base, selffer, selffer+, transfer, transfer+]\n"


# --- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "forward", "training", "parameters"),
    [("caffenet", 227, 1445, 4123, 58.9e6), ("alexnet", 224, 1424, 4132, 59.1e6)],
)
def test_a_training_image_costs_what_the_closed_forms_say(
    name: str, size: int, forward: int, training: int, parameters: float
) -> None:
    costs = stage_costs(Network(name=name), 500, size)  # type: ignore[arg-type]
    assert sum(c.forward for c in costs) / 1e6 == pytest.approx(forward, abs=0.6)
    total = sum(c.forward + c.weight_gradient + c.input_gradient for c in costs)
    assert total / 1e6 == pytest.approx(training, abs=0.6)
    assert sum(c.parameters for c in costs) == pytest.approx(parameters, rel=1e-3)


def test_caffenet_has_the_parameters_of_the_snapshots() -> None:
    assert sum(c.parameters for c in stage_costs(Network(name="caffenet"), 1000, 227)) == 60_965_224


@pytest.mark.parametrize("name", ["small", "small-bn", "alexnet"])
@pytest.mark.parametrize("frozen", [0, 1, 3, 7])
def test_flops_equal_those_that_torch_counts(name: str, frozen: int) -> None:
    size, batch, width = (32, 4, 0.5) if name != "alexnet" else (96, 2, 0.125)
    stages = build(name, 10, width, size)
    with FlopCounterMode(display=False) as counter:
        run(stages, torch.zeros(batch, 3, size, size), frozen)
    costs = stage_costs(Network(name=name, width=width), 10, size)  # type: ignore[arg-type]
    trained = costs[frozen:]
    backward = sum(c.weight_gradient for c in trained) + sum(c.input_gradient for c in trained[1:])
    assert counter.get_total_flops() == batch * (sum(c.forward for c in costs) + backward)
    assert sum(p.numel() for p in stages.parameters()) == sum(c.parameters for c in costs)


@pytest.mark.parametrize(("name", "size", "width"), [("small", 32, 1.0), ("small-bn", 32, 1.0), ("alexnet", 96, 0.25)])
def test_activations_kept_for_the_backward_pass_are_those_that_autograd_keeps(
    name: str, size: int, width: float
) -> None:
    stages = build(name, 10, width, size)
    own = {p.untyped_storage().data_ptr() for p in stages.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            alive.append(tensor)
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(16, 3, size, size)
    own.add(x.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(stages, x, 0)
    costs = stage_costs(Network(name=name, width=width), 10, size)  # type: ignore[arg-type]
    assert 16 * 4 * sum(c.saved for c in costs) == pytest.approx(sum(kept.values()), rel=0.1)


# --- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "nets", "rungs"),
    [
        (CORE, 232, (456, 232, 177.1, 154.8)),
        (CORE.replace(FOUR, "splits: [{kind: random, seed: 0}]\n"), 58, (114, 58, 44.3, 38.7)),
        (FOUR + "treatments: [base, selffer, transfer]\n", 120, (232, 120, 65.1, 42.8)),
        (
            "grid:\n"
            "  - {splits: [{kind: random, seed: 0}, {kind: random, seed: 1}, {kind: random, seed: 2}, "
            "{kind: random, seed: 3}], treatments: [selffer, selffer+, transfer, transfer+]}\n"
            "  - {splits: [{kind: semantic}], treatments: [base, transfer]}\n"
            "  - {splits: [{kind: all}], targets: [all], treatments: [random]}\n",
            255,
            (493, 255, 189.9, 163.4),
        ),
    ],
)
def test_grids_cost_what_the_closed_forms_say_rung_by_rung(
    rest: str, nets: int, rungs: tuple[float, float, float, float]
) -> None:
    planned = caffenet(rest)
    found = ideal(planned.cells, planned.facts, evaluate=False)
    assert len(planned.cells) == nets
    assert found.independent.units == pytest.approx(rungs[0], abs=0.05)
    assert found.bases_shared.units == pytest.approx(rungs[1], abs=0.05)
    assert found.backward_skipped.units == pytest.approx(rungs[2], abs=0.06)
    assert found.trunk_shared.units == pytest.approx(rungs[3], abs=0.06)


@pytest.mark.parametrize(
    ("network", "crop", "skipped", "shared"), [("caffenet", 227, 3.57, 2.18), ("alexnet", 224, 3.65, 2.36)]
)
@pytest.mark.parametrize("treatment", ["selffer", "random"])
def test_a_frozen_sweep_costs_what_the_closed_forms_say(
    network: str, crop: int, skipped: float, shared: float, treatment: str
) -> None:
    rest = f"splits: [{{kind: random, seed: 0}}]\ntargets: [A]\ntreatments: [{treatment}]\n"
    planned = caffenet(rest, network, crop)
    sweep = [cell for cell in planned.cells if cell.treatment == treatment]
    found = ideal(sweep, planned.facts, evaluate=False)
    assert found.bases_shared.units == pytest.approx(7.0)
    assert found.backward_skipped.units == pytest.approx(skipped, abs=0.01)
    assert found.trunk_shared.units == pytest.approx(shared, abs=0.01)


def test_skipping_the_backward_pass_saves_what_the_table_says() -> None:
    planned = caffenet("splits: [{kind: random, seed: 0}]\ntargets: [A]\ntreatments: [selffer]\n")
    meter = Meter(planned.facts, evaluate=False)
    costs = [meter(cell) for cell in planned.cells if cell.frozen]
    skip = [c.skipped.flops / c.full.flops for c in costs]
    suffix = [c.own.flops / c.full.flops for c in costs]
    assert skip == pytest.approx([0.840, 0.659, 0.532, 0.442, 0.387, 0.361, 0.351], abs=6e-4)
    assert suffix == pytest.approx([0.789, 0.499, 0.300, 0.155, 0.064, 0.019, 0.002], abs=6e-4)


def test_tests_are_counted_forward_only_and_the_last_uses_all_images() -> None:
    one = "splits: [{kind: random, seed: 0}]\ntargets: [A]\ntreatments: [base]\n"
    planned = caffenet(one, recipe=", evaluations: 5, evaluation_images: 100")
    cell = planned.cells[0]
    forward = sum(c.forward for c in stage_costs(cell.network, cell.outputs, 227))
    extra = Meter(planned.facts)(cell).full.flops - Meter(planned.facts, evaluate=False)(cell).full.flops
    assert extra == forward * (4 * 100 + 500 * 50)


def test_base_long_costs_two_trainings() -> None:
    planned = caffenet("splits: [{kind: random, seed: 0}]\ntargets: [A]\ntreatments: [base-long]\n")
    assert ideal(planned.cells, planned.facts, evaluate=False).bases_shared.units == pytest.approx(2.0)


# --- seconds and memory ----------------------------------------------------------------------------------------------


def small(width: float, numerics: str) -> tuple[Cell, Meter]:
    study = Study.parse(
        f"""
name: t
dataset: some
network: {{name: small, width: {width}}}
splits: [{{kind: all}}]
targets: [all]
treatments: [base]
recipe: {{iterations: 40, batch_size: 64, numerics: {{{numerics}}}}}
"""
    )
    planned = plan(study, facts(10, 32))
    return planned.cells[0], Meter(planned.facts, evaluate=False)


@pytest.mark.parametrize(
    ("width", "measured"), [(0.5, (1.25, 0.88, 0.76, 0.56)), (1.0, (2.62, 2.06, 2.06, 1.26))]
)  # CPU seconds for 2,560 images, one thread, batch 64, on an AMD EPYC with AVX512-BF16
def test_predicted_seconds_are_within_a_fifth_of_those_measured(width: float, measured: tuple[float, ...]) -> None:
    ways = [(m, a) for m in ("contiguous", "channels_last") for a in ("none", "bfloat16")]
    for (memory_format, autocast), found in zip(ways, measured, strict=True):
        cell, meter = small(width, f"memory_format: {memory_format}, autocast: {autocast}")
        assert seconds([cell], meter) == pytest.approx(found, rel=0.2)


def test_a_cohort_takes_as_long_as_its_members_with_each_trunk_once() -> None:
    planned = caffenet("splits: [{kind: random, seed: 0}]\ntargets: [A]\ntreatments: [selffer, selffer+]\n")
    meter = Meter(planned.facts)
    cells = [cell for cell in planned.cells if cell.phase == "retrain"]
    alone = sum(seconds([cell], meter, "A100") for cell in cells)
    trunk = [DEVICES["A100"].seconds(meter(c).trunk, False) for c in cells if c.frozen]
    together = seconds(cells, meter, "A100")
    assert together == pytest.approx(alone - sum(trunk) + max(trunk), rel=1e-6)
    assert together < alone


def test_the_papers_whole_target_cohort_fits_a_gpu_of_40_gb() -> None:
    planned = caffenet(CORE)
    meter = Meter(planned.facts)
    first = next(cell for cell in planned.cells if cell.phase == "retrain")
    cohort = [cell for cell in planned.cells if cell.stream == first.stream]
    assert len(cohort) == 28
    assert 14e9 < cohort_bytes(cohort, meter, "A100") < 40e9


def test_memory_grows_with_the_cohort_but_activations_count_once() -> None:
    planned = caffenet(CORE)
    meter = Meter(planned.facts)
    first = next(cell for cell in planned.cells if cell.treatment == "selffer+")
    mates = [cell for cell in planned.cells if cell.stream == first.stream and cell.treatment == "selffer+"]
    one, two = cohort_bytes(mates[:1], meter), cohort_bytes(mates[:2], meter)
    foot = meter(first).footprint
    assert two - one == foot.member + foot.tap
    assert foot.member == 12 * sum(c.parameters for c in stage_costs(first.network, first.outputs, 227))


def test_a_trial_on_a_part_of_a_gpu_has_that_part_of_its_speed_and_memory() -> None:
    whole, quarter = device("L4"), device("0.25 L4")
    assert quarter.memory == whole.memory // 4
    work = Work(flops=1e15)
    assert quarter.seconds(work) == pytest.approx(4 * whole.seconds(work))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
    ],
)
def test_a_gpu_is_known_by_its_full_name(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_a_cluster_that_starts_from_no_worker_knows_its_gpus_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else cohorts would have no bound of memory and no predicted time."""
    from raygrid import grid
    from raygrid.study import Execution

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert grid._coming() is None
    (tmp_path / "ray_bootstrap_config.yaml").write_text((ROOT / "clusters" / "aws.yaml").read_text())
    assert grid._coming() == "L4"
    cluster = grid.Cluster(1, 4, 0, 36, 8, local=False, gpu=grid._coming())
    assert cluster.kind(Execution()) == "L4" and cluster.devices(Execution(), 1) == 8
    shared = Execution(gpu=0.25)
    assert cluster.kind(shared) == "0.25 L4" and cluster.devices(shared, 1) == 32


def test_an_unknown_device_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'A1000' is not known \(did you mean 'A100'\?.*H100"):
        device("A1000")


# --- dollars ---------------------------------------------------------------------------------------------------------

CLUSTER = """
max_workers: 4
provider: {type: aws, region: us-east-1}
head_node_type: head
available_node_types:
  head: {node_config: {InstanceType: m7i.xlarge}, resources: {CPU: 0}}
  gpu:
    min_workers: 0
    max_workers: 8
    node_config: {InstanceType: g6.12xlarge, InstanceMarketOptions: {MarketType: spot}}
"""


def test_a_plan_is_priced_for_the_worker_nodes_of_a_cluster_file_with_its_head(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    prices = load_prices()
    head, gpu = node_types(path, prices)
    assert (head.kind, head.nodes, head.spot) == ("cpu", 1, False)
    assert (gpu.kind, gpu.devices, gpu.nodes, gpu.spot) == ("L4", 4, 4, True)
    [quote] = quotes(caffenet(CORE), path, prices)
    row = prices["aws", "g6.12xlarge"]
    assert quote.devices == 16
    assert quote.usd == pytest.approx(quote.hours * (4 * (row.spot or 0) + prices["aws", "m7i.xlarge"].on_demand))
    assert 0.2 < quote.hours < 0.5


def test_prices_are_dated_complete_and_the_user_overrides_them(tmp_path: Path) -> None:
    prices = load_prices()
    assert {provider for provider, _ in prices} == {"aws", "gcp"}
    assert all(p.date and p.source and 0 < (p.spot or p.on_demand) <= p.on_demand for p in prices.values())
    mine = tmp_path / "mine.csv"
    header = "provider,instance_type,gpus,gpu,vcpus,usd_per_hour_on_demand,usd_per_hour_spot,date,source\n"
    mine.write_text(header + "aws,g6.xlarge,1,L4,4,0.5,,2026-11-01,our contract\n")
    assert load_prices(mine)["aws", "g6.xlarge"].on_demand == 0.5
    assert load_prices(mine)["aws", "g5.xlarge"] == prices["aws", "g5.xlarge"]
    mine.write_text(header + "aws,g6.xlarge,one,L4,4,0.5,,2026-11-01,our contract\n")
    with pytest.raises(UserError, match="line 2"):
        load_prices(mine)
    mine.write_text("provider,instance_type\n")
    with pytest.raises(UserError, match="no column gpus"):
        load_prices(mine)


def test_gcp_accelerators_are_added_to_their_machine(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """
provider: {type: gcp}
head_node_type: head
max_workers: 3
available_node_types:
  head:
    node_config:
      machineType: n1-standard-8
      guestAccelerators:
        - {acceleratorType: projects/p/zones/z/acceleratorTypes/nvidia-tesla-t4, acceleratorCount: 2}
      scheduling: [{preemptible: true}]
"""
    )
    prices = load_prices()
    [node] = node_types(path, prices)
    assert (node.kind, node.devices, node.spot) == ("T4", 2, True)
    spots = [prices["gcp", name].spot or 0 for name in ("n1-standard-8", "nvidia-tesla-t4")]
    assert node.usd_per_hour == pytest.approx(spots[0] + 2 * spots[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("g6.12xlarge", "g6.13xlarge"), r"no price for aws 'g6.13xlarge' \(did you mean 'g6.12xlarge'"),
        (("type: aws", "type: azure"), "provider 'azure' has no prices"),
        (("available_node_types", "nodes"), "expected the keys provider.type and available_node_types"),
        (("provider: {", "provider: {{"), "cannot be read"),
    ],
)
def test_a_wrong_cluster_file_is_one_clear_message(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER.replace(*change))
    with pytest.raises(UserError, match=message):
        node_types(path)


@pytest.mark.parametrize(
    ("device", "low", "high"),
    [
        ("NVIDIA H100 80GB HBM3", ("aws", "p5.48xlarge"), ("gcp", "a3-highgpu-8g")),
        ("NVIDIA A100-SXM4-80GB", ("aws", "p4de.24xlarge"), ("gcp", "a2-ultragpu-1g")),
        ("NVIDIA A100-SXM4-40GB", ("aws", "p4d.24xlarge"), ("gcp", "a2-highgpu-8g")),
        ("Tesla T4", ("aws", "g4dn.xlarge"), ("aws", "g4dn.12xlarge")),  # gcp's attached T4 is no whole machine
        ("NVIDIA L40S", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("AMD EPYC", None, None),
    ],
)
def test_an_hour_of_a_device_has_the_tables_price_or_none(device: str, low: Any, high: Any) -> None:
    found, prices = rate(device), load_prices()
    if low is None:
        assert found is None
        return
    assert found is not None
    assert found.low == pytest.approx(prices[low].on_demand / prices[low].gpus)
    assert found.high == pytest.approx(prices[high].on_demand / prices[high].gpus)
    assert found.of == f"{' '.join(low)} to {' '.join(high)}"
    assert found.date == prices[low].date


def test_on_the_head_of_a_cluster_its_own_node_types_give_the_price(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    row = load_prices()["aws", "g6.12xlarge"]
    found = rate("NVIDIA L4", path)
    assert found is not None
    assert found.low == found.high == pytest.approx((row.spot or 0) / 4)
    assert found.of == "aws g6.12xlarge (spot)"
    assert rate("NVIDIA H100 80GB HBM3", path) is None, "this cluster has none"
    path.write_text(CLUSTER.replace("g6.12xlarge", "g9.unheard-of"))
    assert rate("NVIDIA L4", path) is None


def test_what_a_run_took_stands_beside_what_was_predicted(tmp_path: Path) -> None:
    """A quarter of a GPU a trial is a quarter of its price; two threads are two cores."""

    def record(device: str, seconds: float, threads: int = 1) -> Any:
        numerics = SimpleNamespace(recipe=SimpleNamespace(numerics=SimpleNamespace(threads=threads)))
        return SimpleNamespace(provenance=SimpleNamespace(device=device, duration_s=seconds), cell=numerics)

    made = [record("NVIDIA L4", 400.0), record("NVIDIA L4", 200.0), record("AMD EPYC", 10.0, 2)]
    (tmp_path / "plan.json").write_text('{"predicted_seconds": 500, "gpus_per_trial": 0.25}')
    note_actual(tmp_path, 550.0, {str(i): r for i, r in enumerate(made)}, "http://here:5000")
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert (kept["predicted_seconds"], kept["training_seconds"], kept["wall_seconds"]) == (500, 610, 550)
    assert kept["machines"]["AMD EPYC"] == {"device_seconds": 20, "usd_per_hour": None}
    assert kept["machines"]["NVIDIA L4"]["device_seconds"] == 150
    assert kept["machines"]["NVIDIA L4"]["usd_per_hour"]["date"] == "2025-06"
