"""Any order of launches, kills, duplicates and damage: what a store ends with depends on the plan alone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from small import content, launch, the_plan

from raygrid.agenda import Agenda
from raygrid.record import find_record, find_records, lease_path, progress_path, record_path, tidy, write_record
from raygrid.store import Leases, Store, host_identity
from raygrid.train import Bench, Interrupted, train_cohort

FEW = """\
name: few
dataset: digits
network: {name: small, width: 0.25}
splits: [{kind: random, seed: 0}]
targets: [B]
treatments: [base, scratch, transfer, transfer+]
layers: [4]
images_per_class: 25
recipe: {epochs: 8, batch_size: 16, lr: 0.05, evaluations: 2, evaluation_images: 30, augmentation: {padding: 0, flip: false}}
execution: {backend: in-process}
"""
"""Five networks of sixty steps."""
EXAMPLES = 25
PLAN = the_plan(FEW)
DEAD = {"host": None, "pid": 2**22 - 3, "started": 0.0, "nonce": "x", "beat": 0}


class Killed(BaseException):
    """As SIGKILL: nothing catches it, nothing is tidied up."""


class Grid(RuleBasedStateMachine):
    """A store, and whatever happens to it. Every rule is one attempt to get the study done, or one accident."""

    expected: dict[str, Any]
    seed: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="raygrid-machine-"))
        shutil.copytree(self.seed, self.folder / "store")
        self.store = Store(str(self.folder / "store"))

    def teardown(self) -> None:
        """In the end a launch that nobody disturbs finishes, and all is as it must be."""
        self.work(None, None, lambda cohort: cohort)
        assert content(self.store, PLAN) == self.expected
        tidy(self.store, PLAN.cells)
        left = [path for path in self.store.list("cells") if path.endswith(("lease.json", "progress.safetensors"))]
        assert not left
        shutil.rmtree(self.folder)

    def work(self, largest: int | None, killed_at: int | None, order: Any) -> None:
        """A launch: the agenda hands out cohorts until all is done, or the process is killed at some call of the
        store."""
        records = find_records(self.store, PLAN.cells)
        agenda = Agenda(PLAN, {a: r.result.status for a, r in records.items()}, largest=largest)
        store = Store(self.store.url)
        calls = [0]
        for name in ("put", "create", "delete"):
            real = getattr(store, name)

            def call(*arguments: Any, real: Any = real) -> Any:
                calls[0] += 1
                if killed_at is not None and calls[0] >= killed_at:
                    raise Killed
                return real(*arguments)

            setattr(store, name, call)
        taken: list[Leases] = []
        init = Leases.__init__

        def noted(self: Leases, *arguments: Any) -> None:
            init(self, *arguments)
            taken.append(self)

        Leases.__init__ = noted  # type: ignore[method-assign]
        try:
            while (cohort := agenda.take()) is not None:
                outcomes = train_cohort(order(list(cohort.cells)), Bench(store, PLAN.facts))
                agenda.finish(cohort, outcomes)
        except Killed:
            for lease in taken:
                for held in lease._held.values():
                    held.over.set()
                lease._held.clear()
            for path in self.store.list("cells"):
                if path.endswith("lease.json"):  # its owner is dead: not this process, which lives
                    self.store.put(path, json.dumps({**DEAD, "host": host_identity()}).encode())
        finally:
            Leases.__init__ = init  # type: ignore[method-assign]

    @rule(at=st.integers(1, 40), largest=st.sampled_from([None, 1, 2]), turned=st.booleans())
    def a_launch_that_is_killed(self, at: int, largest: int | None, turned: bool) -> None:
        self.work(largest, at, lambda cells: cells[::-1] if turned else cells)

    @rule(which=st.integers(0, 4), steps=st.integers(1, 15))
    def a_worker_that_is_stopped(self, which: int, steps: int) -> None:
        cell = PLAN.cells[which]
        if cell.base is None or find_record(self.store, cell.base) is not None:
            left = iter(range(steps))
            try:
                train_cohort([cell], Bench(self.store, PLAN.facts, stop=lambda: next(left, None) is None))
            except Interrupted:
                assert self.store.exists(progress_path(cell))

    @rule(which=st.integers(0, 4))
    def a_duplicate(self, which: int) -> None:
        """Two workers finish one cell: the record that stands first stands."""
        record = find_record(self.store, PLAN.cells[which])
        if record is not None:
            before = self.store.get(record_path(record.cell))
            assert not write_record(
                self.store,
                record.model_copy(update={"provenance": record.provenance.model_copy(update={"host": "other"})}),
            )
            assert self.store.get(record_path(record.cell)) == before

    @rule(which=st.integers(0, 4))
    def a_lease_of_a_dead_process(self, which: int) -> None:
        self.store.put(lease_path(PLAN.cells[which]), json.dumps({**DEAD, "host": host_identity()}).encode())

    @rule(which=st.integers(0, 4), place=st.floats(0, 1))
    def damaged_progress(self, which: int, place: float) -> None:
        data = self.store.find(progress_path(PLAN.cells[which]))
        if data:
            at = int(place * (len(data) - 1))
            self.store.put(progress_path(PLAN.cells[which]), data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])

    @rule(which=st.integers(0, 4))
    def a_record_that_somebody_deletes(self, which: int) -> None:
        """The cell is trained again, and is the same."""
        self.store.delete(record_path(PLAN.cells[which]))

    @invariant()
    def whatever_is_recorded_is_right(self) -> None:
        found = content(self.store, PLAN)
        assert found == {address: self.expected[address] for address in found}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[Grid]:
    folder = tmp_path_factory.mktemp("machine")
    launch(folder, text=FEW)
    store = Store(str(folder / "out" / "store"))
    Grid.expected = content(store, PLAN)
    assert len(Grid.expected) == 5 and all(record["result"]["checkpoint"] for record, _ in Grid.expected.values())
    Grid.seed = folder / "seed"
    shutil.copytree(folder / "out" / "store" / "data", Grid.seed / "data")
    return Grid


@pytest.mark.fault("launches, kills, duplicates and damage in any order (Hypothesis)")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_happens_the_store_ends_the_same(machine: type[Grid], record_property: Any) -> None:
    record_property("faults", EXAMPLES)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=8,
            deadline=None,
            derandomize=True,
            phases=[phase for phase in Phase if phase != Phase.shrink or "RAYGRID_GUARDS" not in os.environ],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
