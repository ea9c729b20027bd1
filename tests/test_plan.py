"""The laws of planning: what is trained, once, in which order, and how near the schedule comes to its bound."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plan_scale import input_limits
from raygrid.agenda import Pricing, load
from raygrid.cell import HASH_LENGTH, Cell, DatasetFacts, digest
from raygrid.cost import DEVICES, Meter, cohort_bytes, ideal
from raygrid.errors import StudyError
from raygrid.plan import Agenda, Cohort, Plan, explain, plan, simulate
from raygrid.simulation import Bound
from raygrid.study import Study

ALL = "[base, scratch, selffer, selffer+, transfer, transfer+, random, base-long]"
PAPER = "[base, selffer, selffer+, transfer, transfer+]"


def facts(classes: int = 10, size: int = 32) -> DatasetFacts:
    return DatasetFacts(
        name="some",
        sha256="0" * 64,
        classes=tuple(f"c{i}" for i in range(classes)),
        groups=tuple("natural" if i < classes // 2 else "man-made" for i in range(classes)),
        train=(100,) * classes,
        test=(20,) * classes,
        image_size=size,
    )


def study(splits: int = 1, treatments: str = PAPER, rest: str = "", recipe: str = "epochs: 2") -> Study:
    listed = ", ".join(f"{{kind: random, seed: {i}}}" for i in range(splits))
    return Study.parse(
        f"name: t\ndataset: some\nsplits: [{listed}]\ntreatments: {treatments}\nrecipe: {{{recipe}}}\n{rest}"
    )


def balanced(splits: int = 4) -> Plan:
    recipe = "iterations: 450000, batch_size: 256, augmentation: {crop: 227, padding: 0}, evaluations: 450"
    return plan(study(splits, recipe=recipe, rest="network: caffenet\n"), facts(1000, 256))


def addresses(planned: Plan) -> list[str]:
    return [cell.address for cell in planned.cells]


# --- what is trained -------------------------------------------------------------------------------------------------


def test_a_balanced_split_of_an_eight_layer_network_is_58_networks_and_2_from_scratch() -> None:
    counts = plan(study(), facts()).counts
    assert counts == {"base": 2, "selffer": 14, "selffer+": 14, "transfer": 14, "transfer+": 14}
    assert sum(plan(study(treatments=PAPER[:-1] + ", scratch]"), facts()).counts.values()) == 60


def test_bases_that_others_need_are_planned_though_not_listed() -> None:
    planned = plan(study(treatments="[transfer]"), facts())
    assert planned.counts == {"base": 2, "transfer": 14}
    assert len(planned.cells) + sum(c.base is not None for c in planned.cells) == 16 + 14, "each with a base of its own"


def test_blocks_that_overlap_train_nothing_twice_and_their_order_is_irrelevant() -> None:
    blocks = [
        "{treatments: [selffer, transfer], layers: [1, 2, 3]}",
        "{treatments: [transfer, transfer+], layers: [2, 3, 4]}",
        "{treatments: [base, selffer], seeds: [0, 1], layers: [3]}",
    ]
    one = plan(study(2, rest="grid:\n" + "".join(f"  - {b}\n" for b in blocks)), facts())
    other = plan(study(2, rest="grid:\n" + "".join(f"  - {b}\n" for b in reversed(blocks))), facts())
    assert len(set(addresses(one))) == len(one.cells)
    assert sorted(addresses(one)) == sorted(addresses(other))
    # by hand, of each of 4 halves: 2 bases; selffer n = 1, 2, 3 and 3 again of seed 1; transfer 1..4; transfer+ 2..4
    assert len(one.cells) == 4 * (2 + 4 + 4 + 3)


@pytest.mark.parametrize(
    "execution", ["cohort: 1", "workers: 7", "device: cpu", "gpu: 0.25", "backend: in-process", "retries: 0"]
)
def test_where_and_how_a_cell_runs_never_changes_its_identity(execution: str) -> None:
    plain = plan(study(treatments=ALL), facts())
    moved = plan(study(treatments=ALL, rest=f"execution: {{{execution}}}\n"), facts())
    assert addresses(plain) == addresses(moved)
    assert [cell.stream for cell in plain.cells] == [cell.stream for cell in moved.cells]


def test_the_shared_parts_of_hashes_give_what_the_definition_gives() -> None:
    rest = (
        "seeds: [0, 1]\ngrid:\n  - {}\n  - {images_per_class: 5, recipe: {lr: 0.1, numerics: {autocast: bfloat16}}}\n"
    )
    for cell in plan(study(2, treatments=ALL, rest=rest), facts()).cells:
        recipe = cell.recipe
        fresh = Cell.model_validate_json(cell.model_dump_json())
        assert cell.hash == fresh.hash == digest(cell.identity, HASH_LENGTH)
        assert cell.address == fresh.address
        assert cell.target.id == digest(cell.target.identity, HASH_LENGTH)
        assert (cell.base and cell.base.address) == (fresh.base and fresh.base.address)
        assert cell.stream == fresh.stream
        assert cell.stream == digest(
            {
                "task": cell.target.identity,
                "seed": cell.seed,
                "phase": cell.phase,
                "image_size": cell.image_size,
                "batch_size": recipe.batch_size,
                "order": recipe.order,
                "augmentation": recipe.augmentation.model_dump(mode="json"),
                "threads": recipe.numerics.threads,
            },
            HASH_LENGTH,
        )


def test_more_images_than_any_class_has_are_refused_with_the_class_that_has_most() -> None:
    uneven = facts().model_copy(update={"train": (90, 10, *(50,) * 8)})
    assert plan(study(rest="images_per_class: 50\n"), uneven).cells
    with pytest.raises(StudyError, match=r"100 is more than any class .* has \('c\d' has most: (90|50)\)"):
        plan(study(rest="images_per_class: 100\n"), uneven)


# --- the agenda ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Some:
    """Cells without a study."""

    cells: tuple[Cell, ...]
    facts: DatasetFacts


GRID = plan(study(2, treatments=ALL, rest="seeds: [0, 1]\nlayers: [1, 3, 7]\n"), facts())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 40),
    largest=st.sampled_from([None, 1, 3, 10]),
    tight=st.booleans(),
    known=st.sets(st.integers(0, len(GRID.cells) - 1), max_size=20),
)
def test_whatever_happens_every_cell_is_handed_out_once_and_never_before_its_base(
    seed: int, workers: int, largest: int | None, tight: bool, known: set[int]
) -> None:
    chance = random.Random(seed)
    meter = Meter(GRID.facts)
    memory = DEVICES["cpu"].fixed_bytes + 20_000_000 if tight else None
    status = {GRID.cells[i].address: chance.choice(["ok", "diverged"]) for i in known}
    before = set(status)
    agenda = Agenda(GRID, status, workers, largest, "cpu" if tight else None, memory, meter)
    running: list[Cohort] = []
    failures = 0
    while not agenda.over:
        cohort = agenda.take() if len(running) < workers else None
        if cohort is not None:
            check(cohort, status, running, largest)
            if memory and len(cohort.cells) > 1:
                assert cohort_bytes(cohort.cells, meter) <= memory + 3 * 64 * 4 * 32 * 32
            running.append(cohort)
            continue
        assert running, "the agenda hands out nothing, nothing runs, and it says that something is left"
        ended = running.pop(chance.randrange(len(running)))
        outcomes = {}
        for cell in ended.cells:
            outcome = chance.choice(["ok", "ok", "ok", "diverged", "lost" if failures < 30 else "ok"])
            failures += outcome == "lost"
            if outcome != "lost":
                outcomes[cell.address] = outcome
        agenda.finish(ended, outcomes)
        assert not set(outcomes) & set(status), "trained twice"
        status |= outcomes
    blocked = {cell.address for cell in agenda.blocked}
    assert len(blocked) == len(agenda.blocked) and not blocked & set(status)
    assert blocked | set(status) == set(addresses(GRID))
    for cell in GRID.cells:
        if cell.base is not None and cell.address not in before:
            assert (cell.address in blocked) == (status[cell.base.address] != "ok")


def check(cohort: Cohort, status: Mapping[str, str], running: list[Cohort], largest: int | None) -> None:
    """What every cohort must be like when it is handed out."""
    assert 1 <= len(cohort.cells) <= (largest or len(GRID.cells))
    assert len({cell.stream for cell in cohort.cells}) == 1
    busy = {cell.address for other in running for cell in other.cells}
    for cell in cohort.cells:
        assert cell.address not in status and cell.address not in busy
        assert cell.base is None or status[cell.base.address] == "ok"


def test_cells_whose_base_is_nowhere_are_blocked_and_not_waited_for() -> None:
    planned = plan(study(), facts())
    orphans = Some(tuple(cell for cell in planned.cells if cell.base is not None), planned.facts)
    agenda = Agenda(orphans, {})
    assert agenda.over and agenda.take() is None
    assert len(agenda.blocked) == 56


def test_what_another_launch_trains_is_handed_out_again_when_nothing_else_can_be() -> None:
    agenda = Agenda(plan(study(), facts()), {}, workers=2)
    first, second = agenda.take(), agenda.take()
    assert first and second and agenda.take() is None
    agenda.finish(first, {})
    again = agenda.take()
    assert again and again.cells == first.cells and again.again and not first.again

    planned = plan(study(), facts())
    agenda = Agenda(planned, {cell.address: "ok" for cell in planned.cells if cell.treatment == "base"}, largest=7)
    theirs = agenda.take()
    assert theirs
    agenda.finish(theirs, {})
    seen: set[str] = set()
    while cohort := agenda.take():
        seen |= {cell.address for cell in cohort.cells}
        if cohort.again:
            break
        agenda.finish(cohort, dict.fromkeys((cell.address for cell in cohort.cells), "ok"))
    assert len(seen) == len(planned.cells) - 2 and cohort and set(cohort.cells) == set(theirs.cells)


def test_a_whole_stream_is_worth_waiting_for_a_base_about_to_end() -> None:
    planned = plan(study(), facts())
    agenda = Agenda(planned, {}, workers=2)
    first, second = agenda.take(), agenda.take()
    assert first and second
    agenda.finish(first, {first.cells[0].address: "ok"})
    assert agenda.take() is None, "the other base has run as long and ends at any moment"
    agenda.finish(second, {second.cells[0].address: "ok"})
    cohort = agenda.take()
    assert cohort and len(cohort.cells) == 28


def test_a_small_cohort_keeps_cells_of_one_trunk_together() -> None:
    planned = plan(study(), facts())
    done = {cell.address: "ok" for cell in planned.cells if cell.treatment == "base" or cell.treatment.endswith("+")}
    cohort = Agenda(planned, done, largest=7).take()
    assert cohort and len(cohort.cells) == 7
    assert len({cell.base.address for cell in cohort.cells if cell.base}) == 1


# --- the schedule ----------------------------------------------------------------------------------------------------

BALANCED = balanced()


def test_on_one_device_the_makespan_is_the_ideal_with_trunks_shared() -> None:
    for planned in (BALANCED, GRID):
        played = simulate(planned, 1)
        assert played.makespan == pytest.approx(ideal(planned.cells, planned.facts).trunk_shared.flops)
        assert played.busy == pytest.approx(1.0)
        assert played.ratio == pytest.approx(1.0)


def test_alone_in_cohorts_of_one_the_makespan_is_the_ideal_with_the_backward_skipped() -> None:
    played = simulate(GRID, 1, largest=1)
    assert played.makespan == pytest.approx(ideal(GRID.cells, GRID.facts).backward_skipped.flops)
    assert len(played.cohorts) == len(GRID.cells)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_the_balanced_grid_takes_16_input_passes_where_devices_divide_its_targets(devices: int) -> None:
    played = simulate(BALANCED, devices)
    assert played.input_passes == len(played.cohorts) == 16
    assert played.ratio == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("devices", "passes", "fewest"), [(3, 18, 18), (5, 20, 19), (6, 20, 20), (7, 23, 20)])
def test_where_they_do_not_few_streams_are_cut(devices: int, passes: int, fewest: int) -> None:
    played = simulate(BALANCED, devices)
    assert played.input_passes <= passes
    # 16 would be 8 whole streams, two on one device, and far from the bound; fewer than these are so too
    limits = input_limits(BALANCED, Meter(BALANCED.facts), devices, played.bound.best)
    assert limits["ratio_if_streams_are_whole"] > 1.08 and limits["fewest_passes_within_goal"] == fewest


@pytest.mark.parametrize("devices", [3, 5, 6, 7, 9, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128])
def test_the_makespan_of_the_balanced_grid_is_near_its_bound(devices: int) -> None:
    played = simulate(BALANCED, devices)
    assert played.ratio * (1 + 1e-9) >= 1
    assert played.ratio <= (1.05 if devices <= 8 else 1.15)
    cells = [cell.address for cohort in played.cohorts for cell in cohort.cells]
    assert sorted(cells) == sorted(addresses(BALANCED))


@pytest.mark.parametrize("devices", [2, 8, 16])
def test_the_schedule_stays_near_its_bound_when_cohorts_take_longer_or_shorter_than_predicted(devices: int) -> None:
    played = simulate(BALANCED, devices, spread=0.05)
    assert played.ratio <= 1.1
    assert played.input_passes <= 30


@settings(max_examples=25, deadline=None)
@given(devices=st.integers(1, 60), largest=st.sampled_from([None, 1, 5]), kind=st.sampled_from([None, "cpu", "H100"]))
def test_no_schedule_beats_its_bound(devices: int, largest: int | None, kind: str | None) -> None:
    played = simulate(GRID, devices, largest=largest, kind=kind)
    assert played.makespan >= played.bound.best * (1 - 1e-9)


def test_the_bound_is_that_of_the_closed_forms() -> None:
    unit = ideal(BALANCED.cells, BALANCED.facts).bases_shared.flops / 232
    on_one: Bound = simulate(BALANCED, 1).bound
    on_64: Bound = simulate(BALANCED, 64).bound
    assert on_64.critical_path / unit == pytest.approx(2.0)
    assert on_64.work == pytest.approx((on_one.work + 56 * unit) / 64)  # 56 devices idle while 8 bases run
    assert on_64.crowding / unit > 3.0  # of the 65 longest cells, all fine-tuned, two share a device after the bases


def test_a_load_counts_each_trunk_once_in_any_order() -> None:
    price = Pricing(Meter(BALANCED.facts))
    frozen = [price(cell) for cell in BALANCED.cells if cell.treatment == "selffer"][:7]
    assert load(frozen).cost == pytest.approx(load(frozen[::-1]).cost)
    assert load(frozen).cost == pytest.approx(sum(e.own for e in frozen) + max(e.trunk for e in frozen))


# --- for people ------------------------------------------------------------------------------------------------------


def test_the_summary_says_what_the_plan_comes_to() -> None:
    found = BALANCED.summary(devices=8, kind="H100")
    assert (found.cells, found.input_passes, found.cohorts) == (232, 16, 16)
    assert len(BALANCED.cells) + sum(c.base is not None for c in BALANCED.cells) == 232 + 224
    assert found.largest_cohort == 28 and 10e9 < found.peak_bytes < 80e9


def test_the_summary_of_a_begun_plan_is_about_what_is_left() -> None:
    whole = BALANCED.summary(devices=8, kind="H100")
    done = {cell.address: "ok" for cell in BALANCED.cells if not cell.treatment.startswith("transfer")}
    rest = BALANCED.summary(devices=8, kind="H100", done=done)
    assert rest.existing == len(done) and rest.cells == 232
    assert rest.cohorts == 8 and rest.seconds < 0.5 * whole.seconds


def test_a_cell_is_explained_by_the_nearest_existing_one() -> None:
    old = plan(study(2), facts())
    new = plan(study(2, recipe="epochs: 2, lr: 0.5"), facts())
    cell = next(c for c in new.cells if c.treatment == "transfer" and c.n == 3)
    found = explain(cell, old.cells)
    assert found is not None
    nearest, differences = found
    assert nearest.name == cell.name and nearest.target == cell.target
    assert differences == [("recipe.lr", 0.5, 0.02)]
    assert explain(cell, []) is None
