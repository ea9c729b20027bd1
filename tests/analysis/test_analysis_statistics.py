"""Law 9: like with like, the split is the unit, intervals that hold what they promise, no number without its units."""

from __future__ import annotations

import math

import made_up_studies as made_up
import numpy as np
import pytest

from analysis import decomposition, scope, table1
from analysis.contrasts import contrast
from analysis.results import Results, check
from analysis.units import Pairs, estimate, interval


def results_of(frame, tmp_path=None) -> Results:
    checked, score, notes = check(frame, "made-up")
    depth = int(checked["layers"].max()) if len(checked) and checked["layers"].notna().any() else 8
    from pathlib import Path

    return Results(checked, score, Path("made-up.parquet"), depth, tuple(notes))


@pytest.mark.parametrize("units", range(3, 11))
def test_intervals_cover_the_truth(units: int) -> None:
    """Simulated differences of 3 to 10 splits (mean of two halves and two seeds each): at least 93 % of intervals hold
    the true mean. A bootstrap over cells fails this at 3 to 5 splits."""
    rng = np.random.default_rng(units)
    runs, truth = 3000, 0.01
    of_split = rng.normal(truth, 0.004, (runs, units))
    halves = of_split[:, :, None] + rng.normal(0, 0.003, (runs, units, 2))
    seeds = halves[:, :, :, None] + rng.normal(0, 0.002, (runs, units, 2, 2))
    values = seeds.mean(axis=(2, 3))
    hit = sum(low <= truth <= high for low, high in (interval(list(map(float, v))) for v in values))  # type: ignore[misc]
    assert hit / runs >= 0.93, f"{units} units: {hit / runs:.3f}"


def test_coverage_through_the_whole_pairing() -> None:
    """The same from tables of cells with strong split effects and missing networks: pairing removes the split level."""
    hits = trials = 0
    for seed in range(25):
        frame = made_up.study(
            splits=range(4), layers=(1, 2), treatments=("base", "scratch", "transfer"), generator=seed,
            split_noise=0.03, noise=0.004, effect=lambda t, n, s: -0.01 if t == "transfer" else 0.0,
        )  # fmt: skip
        frame = frame.drop(frame[(frame["treatment"] == "transfer") & (frame["split_seed"] == 1)].index[0])
        found = contrast(scope.main(results_of(frame)), {"transfer": 1, "scratch": -1})
        for n in (1, 2):
            low, high = found.at([n]).interval or (math.nan, math.nan)
            hits += low <= -0.01 <= high
            trials += 1
    assert hits / trials >= 0.88, hits / trials


@pytest.mark.parametrize("splits", [4, 6, 8])
def test_intervals_of_means_over_layers_cover_where_layers_are_missing(splits: int) -> None:
    """n = 3 loses three points and is on three splits only: units that average other n are not mixed."""
    hits, trials = 0, 150
    for generator in range(trials):
        frame = made_up.study(
            splits=range(splits), layers=(1, 2, 3), treatments=("base", "transfer"), generator=generator, noise=0.003,
            effect=lambda t, n, s: -0.03 if (t, n) == ("transfer", 3) else 0.0,
        )  # fmt: skip
        few = frame[~((frame["n"] == 3) & (frame["split_seed"] > 2))]
        found = contrast(scope.main(results_of(few)), {"transfer": 1, "base": -1})
        chosen = found.covered((1, 2, 3))
        truth = -0.03 / 3 if 3 in chosen else 0.0
        low, high = found.over(chosen).interval or (math.nan, math.nan)
        hits += low <= truth <= high
    assert hits / trials >= 0.9, hits / trials


def test_a_seed_without_a_half_is_no_unit() -> None:
    """One split: halves are two tasks, and a seed that lacks one would estimate another quantity."""
    frame = made_up.study(
        splits=(0,), seeds=range(4), layers=(1,), treatments=("base", "transfer"), noise=1e-6,
        effect=lambda t, n, s: -0.05 if t == "transfer" else 0.0,
    )  # fmt: skip
    frame.loc[(frame["treatment"] == "transfer") & (frame["target"] == "A"), "top1_last"] -= 0.1
    few = frame[~((frame["treatment"] == "transfer") & (frame["target"] == "A") & (frame["seed"] == 3))]
    found = contrast(scope.main(results_of(few)), {"transfer": 1, "base": -1}).at([1])
    assert found.units == 3
    assert found.values == pytest.approx([-0.1] * 3, abs=1e-4)


def test_the_unit_is_the_split_not_the_cell() -> None:
    """Two halves and three seeds a split: 3 splits are 3 units, whatever the number of networks."""
    frame = made_up.study(splits=range(3), seeds=range(3), layers=(1,))
    found = contrast(scope.main(results_of(frame)), {"transfer": 1, "scratch": -1}).at([1])
    assert (found.units, found.kind, found.cells, found.tasks) == (3, "split", 18, 6)
    assert not found.conditional


def test_halves_weigh_the_same_whatever_their_seeds() -> None:
    pairs = Pairs(
        np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2, 0, 0]), ("r0", "r1"), ("A", "B", "C")
    )
    values = np.array([[1.0], [1.0], [1.0], [0.0], [0.5]])
    assert estimate(pairs, values, values > 2).values == (0.5, 0.5)


def test_one_split_is_conditional_and_its_unit_the_seed() -> None:
    frame = made_up.study(splits=(0,), seeds=range(4), layers=(1,))
    found = contrast(scope.main(results_of(frame)), {"transfer": 1, "scratch": -1}).at([1])
    assert (found.units, found.kind, found.conditional) == (4, "seed", True)
    assert "conditional on this split" in found.who


@pytest.mark.parametrize(("splits", "has"), [(2, False), (3, True)])
def test_intervals_from_three_units_up(splits: int, has: bool) -> None:
    frame = made_up.study(splits=range(splits), layers=(1,))
    found = contrast(scope.main(results_of(frame)), {"transfer": 1, "scratch": -1}).at([1])
    assert (found.interval is not None) is has


def test_pairs_share_task_and_seed() -> None:
    """A seed without its reference does not count, even though another seed has one."""
    frame = made_up.study(splits=(0, 1, 2), seeds=(0, 1), layers=(1,))
    frame = frame.drop(frame[(frame["treatment"] == "scratch") & (frame["seed"] == 1)].index)
    found = contrast(scope.main(results_of(frame)), {"transfer": 1, "scratch": -1})
    assert set(found.pairs.seed[np.isfinite(found.values).any(axis=1)]) == {0}


def test_unmatched_targets_are_not_identified() -> None:
    """The authors' case made up: selffer+ on A halves only, transfer+ on B halves only."""
    frame = made_up.study(splits=range(3), seeds=(0,))
    lost = ((frame["treatment"] == "selffer+") & (frame["target"] == "B")) | (
        (frame["treatment"] == "transfer+") & (frame["target"] == "A")
    )
    results = results_of(frame[~lost])
    found = contrast(scope.main(results), {"transfer+": 1, "selffer+": -1})
    assert not found.identified
    assert found.reason == "no task has both treatments (AnB+ and BnB+)"
    assert not found.at(range(1, 8)).units
    pooled, own, paired = table1.tables(scope.main(results), 8)
    assert all("not identified" in row[2] for row in pooled.rows)
    assert all("not identified" in row[3] for row in own.rows)
    assert all(row[3].startswith("not identified") for row in paired.rows)


def test_reasons_tell_tasks_seeds_and_layers_apart() -> None:
    frame = made_up.study(splits=range(3), seeds=(0, 1), layers=(1, 2))
    other_seed = frame[~((frame["treatment"] == "transfer") & (frame["seed"] == 0))]
    other_seed = other_seed[~((other_seed["treatment"] == "scratch") & (other_seed["seed"] == 1))]
    found = contrast(scope.main(results_of(other_seed)), {"transfer": 1, "scratch": -1})
    assert found.reason.startswith("no seed of a shared task")
    other_n = frame[~((frame["treatment"] == "transfer") & (frame["n"] == 1))]
    other_n = other_n[~((other_n["treatment"] == "selffer") & (other_n["n"] == 2))]
    found = contrast(scope.main(results_of(other_n)), {"transfer": 1, "selffer": -1})
    assert found.reason.startswith("no n of a shared task and seed")


def test_decomposition_adds_up() -> None:
    """On a complete study co-adaptation and specificity sum to the whole loss, and find what was put in."""
    frame = made_up.study(splits=range(6), noise=0.0005)
    found = decomposition.decompose(scope.main(results_of(frame)))
    for n in found.layers:
        parts = {name: part.at([n]).mean for name, part in found.parts.items()}
        assert parts["co-adaptation"] + parts["specificity"] == pytest.approx(parts["both"], abs=1e-12)
        true = made_up.paper_like("scratch", n, "random") - made_up.paper_like("selffer", n, "random")
        assert parts["co-adaptation"] == pytest.approx(true, abs=0.002)
    assert found.parts["co-adaptation"].fallback == ""


def test_a_half_shared_by_two_splits_brings_its_base() -> None:
    """Explicit lists may share a half; its base is trained once, under one split's name."""
    frame = made_up.study(splits=(0, 1), layers=(1, 2))
    frame["split"] = frame["split_seed"].map({0: "animals-tools", 1: "animals-plants"})
    frame["split_seed"] = None
    frame["task"] = frame["split"] + frame["target"]
    frame.loc[frame["target"] == "A", "task"] = "animals"
    twice = (
        (frame["split"] == "animals-plants") & (frame["target"] == "A") & frame["treatment"].isin(["base", "scratch"])
    )
    results = results_of(frame[~twice])
    for population in (scope.main(results), scope.other(results)):
        assert population is not None
        found = contrast(population, {"transfer": 1, "base": -1})
        assert found.at([1, 2]).tasks == 2, population.title


def test_settings_never_mix() -> None:
    """A second recipe on the same splits is left out, and named."""
    frame = made_up.study(splits=range(3), layers=(1, 2, 3))
    second = made_up.study(splits=range(3), layers=(1,), level=0.9)
    second["recipe"], second["cell"] = "r2", "r2/" + second["cell"]
    import pandas as pd

    results = results_of(pd.concat([frame, second]))
    assert scope.main(results).frame["recipe"].unique().tolist() == ["r1"]
    assert any("r2" in line for line in scope.left_out(results))


def test_more_n_on_one_split_do_not_enter_the_mean_over_layers() -> None:
    """As in the default study: every n on one split only. Means over layers use the n that all splits have."""
    results = results_of(made_up.demo())
    found = contrast(scope.main(results), {"transfer+": 1, "scratch": -1})
    assert found.covered(range(1, 8)) == (1, 3, 5, 7)
