"""What a person sees while the grid runs, and what a log keeps of it."""

from __future__ import annotations

import io

from rich.console import Console

from raygrid.display import Board, Display
from raygrid.plan import Cohort, Plan
from raygrid.record import Record
from tests.worlds import World


def shown(display: Display) -> str:
    """The live part as text."""
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    console.print(display._render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[" in text, "in colour"
    return "".join(part.partition("m")[2] if i else part for i, part in enumerate(text.split("\x1b[")))


def display_of(plan: Plan, terminal: bool) -> Display:
    console = Console(file=io.StringIO(), width=140, force_terminal=terminal)
    return Display(Board(plan), console, devices=2, predicted_s=90.0)


def test_the_matrix_fills_as_accuracies_come(world: World) -> None:
    plan: Plan = world.plan  # type: ignore[assignment]
    display = display_of(plan, terminal=True)
    base, transfer = (next(c for c in plan.cells if c.name == name) for name in ("baseB", "A4B"))
    assert "about 1 min 30 s in all" in shown(display) and "0/2 devices busy" in shown(display)

    cohort = Cohort((base,))
    display.started(cohort, "here")
    display.board.live[base.address] = (3, None)  # in training, and never tested
    assert "... 0/2" in shown(display) and "0.000" not in shown(display)
    display.logged(base, 10, {"test/top1": 0.4321, "perf/images_per_s": 1234.0})
    text = shown(display)
    row = next(line for line in text.splitlines() if " base " in line)
    assert "~0.432 0/2" in row, text
    assert "1/2 devices busy" in text and "1,234 images/s" in text
    assert f"now: {base.title}" in text

    record: Record = world.records[base.address]
    display.recorded(record)
    display.ended(cohort)
    text = shown(display)
    assert f"{record.result.top1_last:.3f} 1/2" in text and "0/2 devices busy" in text
    assert f"1/{len(plan.cells)} networks, about " in text and " left" in text

    display.log = "somewhere/failures.log"
    display.failed(transfer, "ZeroDivisionError: made up")
    text = shown(display)
    assert f"! {transfer.title}: failed: ZeroDivisionError: made up (more in somewhere/failures.log)" in text
    assert "1/1!" in next(line for line in text.splitlines() if " transfer " in line)


def test_a_cohort_that_another_launch_trains_frees_its_device(world: World) -> None:
    display = display_of(world.plan, terminal=True)  # type: ignore[arg-type]
    cohort = Cohort(tuple(world.plan.cells[:1]))  # type: ignore[attr-defined]
    display.started(cohort, "here")
    display.ended(cohort)
    assert "0/2 devices busy" in shown(display)


def test_a_log_gets_one_line_a_network(world: World) -> None:
    plan: Plan = world.plan  # type: ignore[assignment]
    display = display_of(plan, terminal=False)
    with display:
        for cell in plan.cells:
            display.logged(cell, 5, {"test/top1": 0.5})
            display.recorded(world.records[cell.address])
    lines = display.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == len(plan.cells) and not any("\x1b" in line for line in lines)
    for cell, line in zip(plan.cells, lines, strict=True):
        assert cell.title in line
        assert line.startswith("done" if world.records[cell.address].result.status == "ok" else "FAILED")
