"""The paper's profile: its network, its solver, its images, its plan; each held against the definition.

References are written anew here in numpy, from the definitions of Caffe, and share no code with raygrid.
"""

from __future__ import annotations

import csv
import math
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raygrid.architectures import Pool, Stage, StageShape, alexnet, caffenet, caffenet_32, shapes
from raygrid.data.known import facts
from raygrid.data.stream import Noise, Stream, TestSet, crop
from raygrid.errors import StudyError
from raygrid.networks import Normalization, StagedNetwork, StageModule
from raygrid.optimize import Optimizer, learning_rate
from raygrid.plan import Plan, plan
from raygrid.prices import load_prices, quotes
from raygrid.study import Augmentation, Recipe, Schedule, Study, bundled_studies
from raygrid.transplant import assemble, freeze, initialise
from tests.worlds import TINY, World, make_plan, make_world

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


def study(name: str, *overrides: str) -> Study:
    return Study.load(bundled_studies()[name], overrides)


def planned(name: str, *overrides: str) -> Plan:
    found = study(name, *overrides)
    return plan(found, facts(found.dataset))


@pytest.fixture(scope="module")
def published() -> Plan:
    return planned("yosinski2014")


@pytest.fixture(scope="module")
def balanced() -> Plan:
    return planned("yosinski2014-balanced")


# --- CaffeNet --------------------------------------------------------------------------------------------------------

LAYERS = (
    # weighted, handed on, parameters, std, bias
    ((96, 55, 55), (96, 27, 27), 34_944, 0.01, 0),
    ((256, 27, 27), (256, 13, 13), 307_456, 0.01, 1),
    ((384, 13, 13), (384, 13, 13), 885_120, 0.01, 0),
    ((384, 13, 13), (384, 13, 13), 663_936, 0.01, 1),
    ((256, 13, 13), (256, 6, 6), 442_624, 0.01, 1),
    ((4096, 1, 1), (4096, 1, 1), 37_752_832, 0.005, 1),
    ((4096, 1, 1), (4096, 1, 1), 16_781_312, 0.005, 1),
    ((1000, 1, 1), (1000, 1, 1), 4_097_000, 0.01, 0),
)
"""facts of half0A/imagenet_train.prototxt"""


def test_caffenet_has_the_papers_shapes_and_parameters() -> None:
    found = shapes(caffenet(1000), 227)
    assert [(s.weighted, s.out, s.parameters) for s in found] == [layer[:3] for layer in LAYERS]
    assert sum(s.parameters for s in found) == 60_965_224
    assert found[5].fan_in == 9216
    assert [s.stage.groups for s in found] == [1, 2, 1, 2, 2, 1, 1, 1]
    assert [s.stage.dropout for s in found] == [0, 0, 0, 0, 0, 0, 0.5, 0.5]  # drop6 opens stage 7
    assert [s.stage.lrn for s in found] == ["after-pool"] * 2 + [None] * 6


def test_caffenets_modules_are_what_its_shapes_say() -> None:
    with torch.device("meta"):
        network = StagedNetwork(shapes(caffenet(1000), 227), Normalization(torch.zeros(3), torch.ones(3)))
        x = torch.zeros(2, 3, 227, 227)
    assert sum(p.numel() for p in network.parameters()) == 60_965_224
    for number, layer in enumerate(LAYERS, start=1):
        x = network.run(x, number - 1, number, None)
        assert tuple(x.shape[1:]) == (layer[1] if x.dim() > 2 else layer[1][:1])


@pytest.mark.parametrize("number", range(1, 9))
def test_caffenets_initial_values(number: int) -> None:
    module = StageModule(number, shapes(caffenet(1000), 227)[number - 1])
    initialise(module, 1234 + number)
    std, bias = LAYERS[number - 1][3:]
    weight = module.layer.weight.detach()
    assert torch.all(module.layer.bias == bias)
    assert float(weight.std()) == pytest.approx(std, rel=0.02)
    assert abs(float(weight.mean())) < 5 * std / math.sqrt(weight.numel())
    beyond = float((weight.abs() > 2 * std).float().mean())
    assert beyond == pytest.approx(0.0455, abs=0.005)  # normal, not uniform


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    """Grouped convolution by its definition: [C, H, W] -> [O, H', W']."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    outputs, each, kernel, _ = weight.shape
    side = (x.shape[1] - kernel) // stride + 1
    out = np.zeros((outputs, side, side))
    for o in range(outputs):
        group = o // (outputs // groups)
        seen = x[group * each : (group + 1) * each]
        for i in range(side):
            for j in range(side):
                window = seen[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                out[o, i, j] = (window * weight[o]).sum() + bias[o]
    return out


def pool(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Caffe's max pooling: the size is rounded up, and what sticks out is cut off."""
    side = math.ceil((x.shape[1] - kernel) / stride) + 1
    out = np.empty((len(x), side, side))
    for i in range(side):
        for j in range(side):
            out[:, i, j] = x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel].max(axis=(1, 2))
    return out


def lrn(x: np.ndarray) -> np.ndarray:
    """Caffe's LRN across channels: x / (1 + 1e-4 / 5 * sum of squares of 5 neighbours) ** .75."""
    out = np.empty_like(x)
    for c in range(len(x)):
        near = x[max(0, c - 2) : c + 3]
        out[c] = x[c] / (1 + 1e-4 / 5 * (near**2).sum(axis=0)) ** 0.75
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_stage_is_grouped_convolution_relu_pool_lrn_in_this_order(memory_format: torch.memory_format) -> None:
    stage = Stage("conv", 12, 5, padding=2, groups=2, pool=Pool(3, 2), lrn="after-pool", std=0.2, bias=1)
    shape = shapes((stage,), 10, channels=6)[0]  # the last window of the pool sticks out
    module = StageModule(2, shape)
    initialise(module, 1)
    x = torch.randn(2, 6, 10, 10, generator=torch.Generator().manual_seed(1)) * 60  # large, so that LRN matters
    with torch.no_grad():
        found = module.to(memory_format=memory_format)(x.to(memory_format=memory_format), None).double().numpy()
    weight, bias = (p.detach().double().numpy() for p in (module.layer.weight, module.layer.bias))
    relu = [np.maximum(conv(image, weight, bias, 1, 2, 2), 0) for image in x.double().numpy()]
    expected = np.stack([lrn(pool(image, 3, 2)) for image in relu])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    other = np.stack([pool(lrn(image), 3, 2) for image in relu])
    assert np.abs(found - other).max() > 1, "the AlexNet paper's order would not be told apart"


def test_alexnet_computes_what_torchvisions_does() -> None:
    from torchvision.models import alexnet as torchvisions

    theirs = torchvisions(weights=None, num_classes=10).eval()
    ours = StagedNetwork(shapes(alexnet(10), 224), Normalization(torch.zeros(3), torch.ones(3)))
    layers = [m for m in theirs.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for number, layer in enumerate(layers, start=1):
            ours.stage(number).layer.load_state_dict(layer.state_dict())
        x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(ours.run(x, 0, 8, None), theirs(x))


@pytest.mark.parametrize("width", [0.1, 0.5, 2.0])
def test_at_any_width_what_initial_weights_add_up_to_is_as_large(width: float) -> None:
    """Standard deviation times root of the inputs, which is 1 layer's factor on the size of its signal."""

    def gains(stages: tuple[Stage, ...], size: int) -> list[float]:
        return [s.stage.std * math.sqrt(s.weights / s.weighted[0]) for s in shapes(stages, size)]

    assert gains(caffenet(1000, width), 227) == pytest.approx(gains(caffenet(1000), 227), rel=0.05)
    small, doubled = gains(caffenet_32(1000, width), 27), [1, 2, 2, 2, 2, 2, 2, 1]
    assert small == pytest.approx([a * b for a, b in zip(gains(caffenet(1000), 227), doubled, strict=True)], rel=0.05)


# --- the solver ------------------------------------------------------------------------------------------------------


def steps_of(recipe: Recipe, rates: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A weight and a bias after these learning rates, by raygrid's optimiser."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    bias = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = Optimizer([weight, bias], recipe)
    for step, rate in enumerate(rates):
        weight.grad = torch.tensor([[math.sin(step + 1), 0.3]], dtype=torch.float64)
        bias.grad = torch.tensor([math.cos(step)], dtype=torch.float64)
        optimizer.step(rate)
    return weight.detach().numpy(), bias.detach().numpy()


PAPERS = {"momentum": 0.9, "weight_decay": 0.05, "bias_lr": 2, "bias_decay": 0, "gradient_clip": None}
DROP = [0.1] * 12 + [0.01] * 12


def test_the_solver_is_caffes_over_a_drop_of_the_rate() -> None:
    recipe = Recipe(iterations=1, sgd="caffe", **PAPERS)
    w, b, vw, vb = np.array([[1.0, -2.0]]), np.array([0.5]), 0.0, 0.0
    for step, rate in enumerate(DROP):
        vw = 0.9 * vw + rate * (np.array([[math.sin(step + 1), 0.3]]) + 0.05 * w)
        vb = 0.9 * vb + 2 * rate * math.cos(step)  # twice the rate, no decay
        w, b = w - vw, b - vb
    weight, bias = steps_of(recipe, DROP)
    np.testing.assert_allclose(weight, w, rtol=1e-12)
    np.testing.assert_allclose(bias, b, rtol=1e-12)


def test_torchs_solver_differs_after_the_drop_and_only_then() -> None:
    caffe, torchs = (Recipe(iterations=1, sgd=sgd, **PAPERS) for sgd in ("caffe", "torch"))
    np.testing.assert_allclose(steps_of(caffe, DROP[:12])[0], steps_of(torchs, DROP[:12])[0], rtol=1e-12)
    assert np.abs(steps_of(caffe, DROP[:13])[0] - steps_of(torchs, DROP[:13])[0]).max() > 0.01


def test_the_papers_schedules(published: Plan) -> None:
    long, short = published.study.blocks[0].recipe, published.study.blocks[6].recipe
    assert [learning_rate(long, s, 450_000) for s in (0, 99_999, 100_000, 199_999, 300_000, 449_999)] == pytest.approx(
        [0.01, 0.01, 1e-3, 1e-3, 1e-5, 1e-6], rel=1e-12
    )
    assert [learning_rate(short, s, 200_000) for s in (0, 63_999, 64_000, 128_000, 192_000)] == pytest.approx(
        [0.0125, 0.0125, 0.00125, 0.000125, 0.0000125], rel=1e-12
    )


def test_base_long_stretches_the_schedule(balanced: Plan) -> None:
    """Twice the steps at each rate: else its second half would stand still, and it would be no control."""
    long = next(c for c in balanced.cells if c.treatment == "base-long")
    total = long.steps(balanced.facts)
    assert total == 900_000
    rates = [learning_rate(long.recipe, step, total, long.stretch) for step in (0, 199_999, 200_000, 450_000, 899_999)]
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-4, 1e-6], rel=1e-12)


def test_a_drop_given_as_a_fraction_falls_on_its_step() -> None:
    recipe = Recipe(epochs=3, lr=1, schedule=Schedule(kind="step", every=0.1))
    for total in (10, 90, 1110, 2147):
        rates = [round(-math.log10(learning_rate(recipe, step, total))) for step in range(total)]
        assert rates == [min(9, math.floor(step * 10 / total + 1e-9)) for step in range(total)]


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 30, 100, 1009])
def test_one_cycle_equals_torchs(total: int) -> None:
    recipe = Recipe(epochs=1, lr=0.3)
    if total < 4:  # torch's warm-up would have no step, and it divides by zero
        assert all(0 < learning_rate(recipe, s, total) <= 0.3 for s in range(total))
        return
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.3, total_steps=total, cycle_momentum=False)
    for step in range(total):
        assert learning_rate(recipe, step, total) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        sgd.step()
        if step + 1 < total:
            theirs.step()


# --- the images ------------------------------------------------------------------------------------------------------


def test_the_mean_image_is_cropped_and_mirrored_with_the_image() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    mean = draw.random((12, 12, 3)) * 255
    offsets = np.array([[0, 0], [0, 4], [4, 0], [4, 4], [1, 3], [2, 2]])
    flips = np.array([False, True, True, False, True, False])
    crops = crop(images, offsets, flips, Augmentation(crop=8, padding=0))
    normalize = Normalization(torch.as_tensor(mean), torch.ones(3))
    found = normalize(torch.from_numpy(crops), torch.from_numpy(offsets), torch.from_numpy(flips)).numpy()
    whole = images - mean
    for i, ((top, left), flip) in enumerate(zip(offsets, flips, strict=True)):
        expected = whole[i, top : top + 8, left : left + 8]
        expected = expected[:, ::-1] if flip else expected
        np.testing.assert_allclose(found[i], expected.transpose(2, 0, 1), atol=1e-4)


def test_channel_normalisation_is_mean_and_deviation_of_each_channel() -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    mean, std = np.array([100.0, 120.0, 90.0]), np.array([50.0, 60.0, 70.0])
    none = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    found = Normalization(torch.as_tensor(mean), torch.as_tensor(std))(torch.from_numpy(images), *none).numpy()
    np.testing.assert_allclose(found, ((images - mean) / std).transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


class Pictures:
    """Images of 256 pixels whose first pixel's red is the image's number; stands for a memory-mapped part."""

    size = 256

    def __init__(self, count: int):
        self.labels = np.zeros(count, dtype=np.int64)

    def rows(self, classes: object, k: object) -> np.ndarray:
        return np.arange(len(self.labels))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        images = np.zeros((len(rows), 256, 256, 3), dtype=np.uint8)
        images[:, :, :, 0] = np.arange(256)[None, :, None]
        images[:, :, :, 1] = np.arange(256)[None, None, :]
        images[:, :, :, 2] = rows[:, None, None]
        return images


def test_images_are_cropped_to_227_anywhere_in_training_and_at_14_14_in_tests(published: Plan) -> None:
    cell = published.cells[0]
    test = TestSet(Pictures(3), cell).batches(None)[0]
    assert test.crops.shape == (3, 227, 227, 3)
    assert np.all(test.crops[:, 0, 0, :2] == 14) and not test.flips_B.any()
    batch = Stream(Pictures(40), cell).batch(5)
    assert batch.crops.shape == (256, 227, 227, 3)
    edge = np.where(batch.flips_B, batch.crops[:, 0, -1, 1], batch.crops[:, 0, 0, 1])
    np.testing.assert_array_equal(np.stack([batch.crops[:, 0, 0, 0], edge], 1), batch.offsets_B2)
    assert batch.offsets_B2.min() == 0 and batch.offsets_B2.max() == 28, "Caffe of 2014: rand() % (256 - 227)"
    assert 90 < batch.flips_B.sum() < 166


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_the_papers_order_is_the_same_in_every_epoch(published: Plan, order: str) -> None:
    cell = published.cells[0].model_copy(
        update={"recipe": Recipe(iterations=9, batch_size=10, order=order, augmentation=Augmentation(padding=0))}
    )
    stream = Stream(Pictures(20), cell)
    seen = [np.concatenate([stream.batch(2 * e + i).crops[:, 0, 0, 2] for i in (0, 1)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in seen)
    assert (seen[0].tolist() == seen[1].tolist() == seen[2].tolist()) == (order == "fixed")
    assert seen[0].tolist() != sorted(seen[0])


# --- the plans -------------------------------------------------------------------------------------------------------


def test_the_published_plan_is_the_170_networks_that_were_configured(published: Plan) -> None:
    assert published.counts == {
        "base": 8 + 2 + 1 + 12, "selffer": 28, "selffer+": 14, "transfer": 56 + 14, "transfer+": 28, "random": 7,
    }  # fmt: skip
    ours = Counter(
        (c.target.split, c.target.split_seed, c.source.half if c.source else None, c.target.half, c.treatment, c.n,
         c.target.images_per_class)
        for c in published.cells
    )  # fmt: skip
    assert sum(ours.values()) == len(ours) == 170
    with (ROOT / "analysis" / "reference.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))

    def whole(text: str) -> int | None:
        return int(float(text)) if text else None

    theirs = {
        (r["split"], whole(r["split_seed"]), r["source"] or None, r["target"], r["treatment"], int(r["n"]),
         whole(r["images_per_class"]))
        for r in rows
    }  # fmt: skip
    assert len(theirs) == 148 and theirs <= set(ours)
    left = Counter(key[4] for key in set(ours) - theirs)
    assert left == {"selffer+": 4, "transfer+": 18}, "the 22 fine-tuned networks without logs"


def test_the_published_recipe_is_the_papers(published: Plan) -> None:
    assert published.study.score == "top1_mean10"
    for cell in published.cells:
        recipe, few = cell.recipe, cell.target.images_per_class is not None
        assert cell.outputs == 1000 and (cell.base is None or cell.base.outputs == 1000)
        assert recipe.evaluations * 1000 == recipe.iterations == (200_000 if few else 450_000)
        assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (256, 0.9, 5e-4)
        assert (recipe.bias_lr, recipe.bias_decay, recipe.sgd, recipe.gradient_clip) == (2, 0, "caffe", None)
        assert (recipe.normalization, recipe.order, recipe.outputs) == ("mean-image", "fixed", "dataset")
        assert recipe.evaluation_images is None
    sizes = {c.target.label: len(c.target.classes) for c in published.cells}
    assert sizes["semantic/A"] == 449 and sizes["semantic/B"] == 551  # A natural, B man-made
    assert all(sizes[f"random{s}/{half}"] == 500 for s in range(4) for half in "AB")


def test_the_balanced_plan_is_balanced(balanced: Plan) -> None:
    """Every half, every treatment, every n, every seed: so every comparison is on the same task."""
    found = Counter(
        (c.target.label, c.seed) for c in balanced.cells if c.target.half != "all" and not c.preserved
    )  # fmt: skip
    halves = [f"{split}/{half}" for split in ("semantic", *(f"random{s}" for s in range(8))) for half in "AB"]
    assert found == {(half, seed): 3 + 5 * 7 for half in halves for seed in range(3)}
    preserved = Counter((c.target.label, c.series, c.n) for c in balanced.cells if c.preserved)
    assert preserved == {
        (half, f"{treatment}-preserve{k}", n): 1
        for half in halves if "random" in half
        for treatment in ("selffer", "transfer") for k in (1, 2) for n in range(1, 9 - k)
    }  # fmt: skip
    assert [c.target.images_per_class for c in balanced.cells].count(None) == len(balanced.cells) - 36


def made_up_results(of: Plan, folder: Path) -> Path:
    """Results of the whole plan in export's own columns; scores follow the paper's claims (`as_the_paper`)."""
    import pyarrow.parquet as pq

    from raygrid.export import results_table
    from raygrid.record import Provenance, Record, Result
    from raygrid.store import Store
    from tests.analysis.made_up_studies import as_the_paper

    generator = np.random.default_rng(0)
    level: dict[object, float] = {}
    records = {}
    facts_of_all = {"steps": 1, "images_seen": 1, "top5_last": None, "loss_last": 1.0, "checkpoint": None}
    where = {"started": "", "ended": "", "duration_s": 1.0, "host": "", "device": "", "instruction_set": ""}
    provenance = Provenance(**where, torch="", python="", raygrid_version="", commit=None)
    for cell in of.cells:
        task = level.setdefault(cell.target.label, 0.62 + generator.normal(0, 0.006))
        own = level.setdefault((cell.target.label, cell.seed), task + generator.normal(0, 0.001))
        score = own + as_the_paper(cell.treatment, cell.n, cell.target.split) + generator.normal(0, 0.001)
        result = Result(
            **facts_of_all, status="ok", top1_last=score, top1_best=score, top1_mean10=score, checkpoint_sha256=None,
            frozen_verified=True if cell.frozen else None,
        )  # fmt: skip
        records[cell.address] = Record.model_construct(cell=cell, result=result, provenance=provenance)
    folder.mkdir()
    pq.write_table(results_table(of, records, Store(str(folder))), folder / "results.parquet")
    return folder


def test_the_balanced_plan_decides_every_claim(balanced: Plan, tmp_path: Path) -> None:
    """Each is identified on its networks; and where everything is as the paper says, each is supported."""
    from analysis import verdicts
    from analysis.results import read

    found = verdicts.judge(read(made_up_results(balanced, tmp_path / "results")))
    for judged in found:
        assert not any("not identified" in said for said in (judged.reason, *judged.values)), (judged.claim.key, judged)
        assert judged.verdict == verdicts.SUPPORTED, (judged.claim.key, judged.reason)
        assert (judged.p is None) == (judged.claim.semantic is not None), judged.claim.key
    units = {judged.claim.key: judged.values for judged in found}
    assert "(8 splits)" in units["random filters are far below learned ones"][0]
    assert "(3 seeds, conditional on this split)" in units["distant features beat random ones"][0]


@pytest.mark.parametrize("name", ["yosinski2014", "yosinski2014-balanced", "yosinski2014-small", "cifar10-balanced"])
def test_a_study_says_what_its_plan_comes_to(name: str) -> None:
    text = " ".join(line.lstrip("# ") for line in bundled_studies()[name].read_text().splitlines() if line[:1] == "#")
    begun = time.process_time()
    found = planned(name)
    networks, counts = re.search(r"(\d+) networks: ((?:\d+ [a-z0-9+-]+(?:, )?)+)", text).groups()
    assert int(networks) == len(found.cells)
    assert {k: int(n) for n, k in re.findall(r"(\d+) ([a-z0-9+-]+)", counts)} == found.counts
    summary = found.summary(devices=1, kind="H100")
    assert re.search(r"([0-9.e+]+) FLOP", text).group(1) == f"{summary.ideal.trunk_shared.flops:.3g}"
    for hours, kind in re.findall(r"([0-9,.]+)(?: hours)? on one (H100|A100)", text):
        predicted = found.summary(devices=1, kind=kind).seconds / 3600
        assert float(hours.replace(",", "")) == pytest.approx(predicted, rel=0.01)
    priced = re.search(r"([0-9,]+) USD and ([0-9,]+) hours on (\d+) (\w+)", text)
    assert (priced is not None) == ("Price" in text), "a price is dollars, and the command that gives them"
    if priced:
        assert f"Price (`python -m raygrid.launch {name} --dry-run --cluster clusters/aws.yaml`" in text
        (quote,) = quotes(found, ROOT / "clusters" / "aws.yaml", load_prices())
        said = [float(number.replace(",", "")) for number in priced.groups()[:3]]
        assert said == pytest.approx([quote.usd, quote.hours, quote.devices], rel=0.01)
        assert quote.node.kind == priced[4] and quote.node.spot and f"spot, prices of {quote.node.date}" in text
    assert time.process_time() - begun < 5


def test_the_small_profile_has_the_published_ones_parts(published: Plan) -> None:
    small = planned("yosinski2014-small")
    same = (
        "momentum",
        "weight_decay",
        "bias_lr",
        "bias_decay",
        "sgd",
        "gradient_clip",
        "normalization",
        "order",
        "outputs",
    )
    for key in same:
        assert {getattr(b.recipe, key) for b in small.study.blocks} == {getattr(published.cells[0].recipe, key)}
    assert small.study.score == published.study.score

    def counts(of: Plan) -> Counter[tuple[object, ...]]:
        return Counter(
            (
                c.target.split,
                c.target.split_seed,
                c.target.half,
                c.source.half if c.source else None,
                c.treatment,
                c.n,
                c.target.images_per_class is None,
            )
            for c in of.cells
            if not c.preserved
        )

    assert counts(small) == counts(published) and counts(small).total() == 170
    assert {c.series for c in small.cells} - {c.series for c in published.cells} == {
        f"{treatment}-preserve{k}" for treatment in ("selffer", "transfer") for k in (1, 2)
    }  # fmt: skip
    theirs, ours = caffenet(1000), caffenet_32(1000)
    kept = ("kind", "out", "groups", "pool", "lrn", "relu", "dropout", "bias")
    assert [[getattr(s, k) for k in kept] for s in theirs] == [[getattr(s, k) for k in kept] for s in ours]


# --- preserved layers and equal splits -------------------------------------------------------------------------------

FEW = """\
name: few
dataset: icons40
network: small
splits: [{kind: random, seed: 0}]
treatments: [selffer, transfer]
recipe: {epochs: 1}
"""


@pytest.mark.parametrize(
    ("outputs", "k", "last"), [("task", 1, 6), ("task", 2, 5), ("dataset", 1, 7), ("dataset", 2, 6)]
)
def test_preserved_layers_stop_below_the_head_unless_all_heads_are_alike(outputs: str, k: int, last: int) -> None:
    found = make_plan(FEW, [f"preserve={k}", f"recipe.outputs={outputs}"])
    assert found.counts == {"base": 2, f"selffer-preserve{k}": 2 * last, f"transfer-preserve{k}": 2 * last}
    assert sorted({c.n for c in found.cells}) == list(range(last + 1))
    with pytest.raises(StudyError, match=rf"small has 8 layers.*n can be 1 to {last}"):
        make_plan(FEW, [f"preserve={k}", f"recipe.outputs={outputs}", f"layers=[{last + 1}]"])


def test_preserve_is_for_frozen_copies_only() -> None:
    with pytest.raises(StudyError, match=r"preserve: .*selffer and transfer only \(found base, transfer\+\)"):
        make_plan(FEW, ["preserve=1", "treatments=[base, transfer, transfer+]"])
    with pytest.raises(StudyError, match="none of them can be frozen"):
        make_plan(FEW, ["preserve=8"])


def test_preserved_layers_are_identity_and_have_a_name_of_their_own() -> None:
    plain, one = (make_plan(FEW, [f"preserve={k}", "layers=[3]"]).cells[-1] for k in (0, 1))
    assert (plain.name, one.name, plain.series, one.series) == (
        "A3B",
        "A3B-preserve1",
        "transfer",
        "transfer-preserve1",
    )
    assert plain.hash != one.hash and plain.base == one.base and plain.stream == one.stream
    assert one.name in one.address


def test_preserved_layers_are_copied_and_learn() -> None:
    cell = next(c for c in make_plan(FEW, ["preserve=2", "layers=[3]"]).cells if c.name == "A3B-preserve2")
    zeros = np.zeros(3), np.ones(3)
    base = {n: t.clone() for n, t in assemble(cell.base, None, lambda: zeros).state_dict().items()}
    network = assemble(cell, base, lambda: zeros)
    fresh = assemble(cell.model_copy(update={"preserved": 0}), base, lambda: zeros)
    for number in range(1, 9):
        stage, name = network.stage(number), f"stages.{number}.layer.weight"
        assert torch.equal(stage.layer.weight, base[name]) == (number <= 5)
        assert stage.layer.weight.requires_grad == (number > 3)
        assert torch.equal(stage.layer.weight, fresh.stage(number).layer.weight) == (number not in (4, 5))


@pytest.mark.parametrize("seeds", [(0, 1), (1, 0)])
def test_random_splits_that_divide_alike_are_refused_by_name(seeds: tuple[int, int]) -> None:
    splits = ", ".join(f"{{kind: random, seed: {s}, exclude: [cat, deer]}}" for s in seeds)
    text = FEW.replace("icons40", "cifar10")
    with pytest.raises(StudyError, match=r"random0 and random1|random1 and random0") as caught:
        make_plan(text, [f"splits=[{splits}]"])
    assert "same two halves" in str(caught.value) and "leave one out" in str(caught.value)
    assert len(make_plan(text, [f"splits=[{splits.replace('seed: 1', 'seed: 2')}]"]).cells) > 0


def test_halves_with_their_letters_exchanged_are_the_same_split() -> None:
    known = facts(Study.parse(FEW.replace("icons40", "digits")).dataset)
    four = known.model_copy(
        update={"classes": known.classes[:4], "groups": (None,) * 4, "train": (9,) * 4, "test": (9,) * 4}
    )
    with pytest.raises(StudyError, match="random0 and random4 give the same two halves"):  # 23 | 01 and 01 | 23
        splits = "{kind: random, seed: 0}, {kind: random, seed: 4}"
        plan(Study.parse(FEW, [f"splits=[{splits}]"]), four)


def test_one_name_stands_for_one_division() -> None:
    grid = "[{splits: [{kind: random, seed: 0}]}, {splits: [{kind: random, seed: 0, rule: yosinski2014}]}]"
    with pytest.raises(StudyError, match="both called random0"):
        make_plan(FEW, [f"grid={grid}"])
    assert make_plan(FEW, ["grid=[{seeds: [0]}, {seeds: [1]}]"]).counts["base"] == 4


# --- dropout on frozen layers ----------------------------------------------------------------------------------------


def test_dropout_opens_stages_7_and_8_and_stays_active_where_they_are_frozen() -> None:
    network = StagedNetwork(shapes(caffenet_32(10, 0.1), 27), Normalization(torch.zeros(3), torch.ones(3)))
    for number in range(1, 9):
        initialise(network.stage(number), number)
    freeze(network, 7)
    x = torch.randn(4, 3, 27, 27, generator=torch.Generator().manual_seed(0)) * 50
    with torch.no_grad():
        six = [network.run(x, 0, 6, noise) for noise in (None, Noise(("t", 0, "retrain"), 1))]
        seven = [network.run(six[0], 6, 7, Noise(("t", 0, "retrain"), step)) for step in (1, 1, 2)]
    assert torch.equal(*six), "nothing is dropped in layers 1 to 6"
    assert torch.equal(seven[0], seven[1]) and not torch.equal(seven[0], seven[2])


# --- from end to end -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small profile with a tenth of its steps."""
    text = bundled_studies()["yosinski2014-small"].read_text()
    quick = ["iterations=24", "batch_size=12", "evaluations=11", "evaluation_images=20", "schedule.every=18"]
    overrides = [f"recipe.{item}" for item in quick] + [
        "grid[6].recipe.iterations=18",
        "grid[6].recipe.schedule.every=14",
    ]
    return make_world(tmp_path_factory.mktemp("small"), text, overrides)


def test_the_small_profile_runs_from_end_to_end(trained: World) -> None:
    assert len(trained.records) == len(trained.plan.cells) == 178
    for record in trained.records.values():
        cell, result = record.cell, record.result
        assert result.status in ("ok", "diverged") and result.checkpoint is not None
        assert result.steps == cell.recipe.iterations and len(result.history) == 11
        assert result.frozen_verified is (True if cell.frozen else None)
        ten = sorted(result.history.top1, reverse=True)[:10]
        assert result.top1_mean10 == pytest.approx(sum(ten) / 10, abs=1e-12)


def tensors(world: World, cell: object) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(world.store.get(world.records[cell.address].result.checkpoint))


def test_heads_have_the_whole_data_sets_outputs(trained: World) -> None:
    for cell in trained.plan.cells:
        assert len(tensors(trained, cell)["stages.8.layer.bias"]) == 40
    assert {len(c.target.classes) for c in trained.plan.cells} == {20, 40}


def test_the_base_sets_mean_image_goes_with_layer_1(trained: World) -> None:
    """A transfer network subtracts the mean of the images that its base was trained on, not of its own."""
    from raygrid.data.arrays import open_arrays

    arrays = open_arrays(trained.store, trained.plan.facts.sha256, None).train

    def mean_image(task: object) -> np.ndarray:
        return arrays.gather(arrays.rows(task.classes, task.images_per_class)).astype(np.float64).mean(axis=0)

    for cell in trained.plan.cells:
        origin = cell.source or cell.target
        found = tensors(trained, cell)["input.mean"].numpy()
        np.testing.assert_allclose(found, mean_image(origin), rtol=1e-6, atol=1e-4)
        if cell.treatment.startswith("transfer"):
            assert np.abs(found - mean_image(cell.target)).max() > 1


def test_preserved_layers_moved_from_their_base_and_frozen_ones_did_not(trained: World) -> None:
    for cell in trained.plan.cells:
        if cell.preserved:
            own, base = tensors(trained, cell), tensors(trained, cell.base)
            for number in range(1, 9):
                same = torch.equal(own[f"stages.{number}.layer.weight"], base[f"stages.{number}.layer.weight"])
                assert same == (number <= cell.n)


def test_results_never_pool_preserved_networks_with_others(trained: World, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from raygrid.display import Board
    from raygrid.export import export
    from raygrid.grid import trial_config
    from raygrid.track.projection import Figures, params

    path, _ = export(trained.plan, trained.records, trained.store, tmp_path)
    rows = pq.read_table(path).to_pylist()
    assert Counter(r["treatment"] for r in rows) == trained.plan.counts
    assert {r["score"] for r in rows} == {"top1_mean10"}
    lines = {curve.treatment for curve in Figures(trained.plan).curves}
    assert lines == set(trained.plan.counts)
    assert {params(c)["treatment"] for c in trained.plan.cells} == set(trained.plan.counts)
    assert list(Board(trained.plan).matrix().columns[0].cells) == list(trained.plan.counts)
    assert {trial_config(c).get("preserve", 0) for c in trained.plan.cells} == {0, 1, 2}


def test_the_small_profile_makes_the_papers_report(trained: World, tmp_path: Path) -> None:
    import analysis
    from raygrid.export import export

    export(trained.plan, trained.records, trained.store, tmp_path)
    written = analysis.write(tmp_path)
    names = {path.name for path in written.paths}
    for figure in ("figure2", "figure2_paired", "figure3", "supplement", "preserved", "comparison"):
        assert {f"{figure}.svg", f"{figure}.png"} <= names, written.skipped
        assert all((written.out / f"{figure}.{kind}").stat().st_size > 1000 for kind in ("svg", "png"))
    assert {"preserved.md", "table1.md", "claims.md", "summary.md", "report.html"} <= names
    page = (written.out / "report.html").read_text()
    for title in ("Figure 2", "Figure 3", "Supplement", "Preserved layers", "Side by side"):
        assert title in page
    assert not written.skipped


def test_a_network_that_was_stopped_has_no_mean_of_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's score of a network that died is not the mean of its best moments; whoever reads it can do without."""
    import pyarrow.parquet as pq

    import analysis
    from raygrid import train
    from raygrid.export import export
    from raygrid.track.projection import finals, score

    real_step = train._Loop._step

    def step(self: object, members: object, *rest: object) -> None:
        real_step(self, members, *rest)
        for member in members:
            if member.cell.name == "A4B" and member.step == member.tests[10]:
                with torch.no_grad():
                    member.network.stage(8).layer.weight.fill_(float("inf"))

    monkeypatch.setattr(train._Loop, "_step", step)
    overrides = ["score=top1_mean10", "recipe.evaluations=12", "treatments=[base, transfer]", "recipe.epochs=1"]
    world = make_world(tmp_path / "store", TINY, overrides)
    (dead,) = (record for record in world.records.values() if record.cell.name == "A4B")
    result = dead.result
    assert result.status == "diverged" and "not finite" in result.reason and len(result.history) == 11
    assert (result.top1_last, result.top1_mean10) == (None, None) and result.top1_best is not None
    assert all(r.result.top1_mean10 for r in world.records.values() if r is not dead)
    assert score(dead, "top1_mean10") is None
    assert not any(point.key.startswith("final/") for point in finals(dead, "top1_mean10"))
    path, _ = export(world.plan, world.records, world.store, tmp_path / "results")
    (row,) = (row for row in pq.read_table(path).to_pylist() if row["top1_last"] is None)
    assert (row["status"], row["top1_mean10"]) == ("diverged", None)
    analysis.write(tmp_path / "results")


def test_shapes_are_named_in_errors() -> None:
    with pytest.raises(ValueError, match="layer 5 has nothing left to see of images of 54 x 54"):
        shapes(caffenet(1000), 54)
    assert isinstance(shapes(caffenet(1000), 55)[0], StageShape)
