"""What a person sees: MLflow's own pages in a real browser, on a real server.

The saved views are in a format that MLflow documents nowhere; this is the test that an MLflow version still reads it.
The screenshots are kept (fixture `pictures`), to be looked at.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raygrid.store import Store
from raygrid.track import Tracker
from raygrid.track.views import link
from tests.track.conftest import MlflowServer, make_plan, train, trials, wait, written

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUIET = 'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'
"""else a panel covers a third of the page"""
PATIENCE_MS = 90_000

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page of a headless Chromium."""
    if not CHROMIUM.exists():
        pytest.skip("Debian's chromium is not installed (apt-get install chromium fonts-liberation)")
    browser = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with browser.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=str(CHROMIUM),
            headless=True,
            args=list(ARGUMENTS),
            viewport={"width": 1600, "height": 900},
        )
        try:
            opened = context.new_page()
            opened.set_default_timeout(PATIENCE_MS)
            opened.add_init_script(QUIET)
            yield opened
        finally:
            context.close()


def curves(page: Any) -> int:
    """Lines with points on them that the charts on the page have drawn."""
    return int(page.evaluate("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace path.js-line').length"))


def drawn(page: Any, least: int) -> None:
    """Wait until so many curves are on the page."""
    count = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace path.js-line').length"
    page.wait_for_function(f"{count} >= {least}", timeout=PATIENCE_MS)


def test_figure_2_and_the_compare_page(server: MlflowServer, store: Store, page: Any, pictures: Path) -> None:
    plan = make_plan("seen", layers="[1, 4, 7]")
    tracker = Tracker(plan, store, server.uri)
    tracker.start()
    for cell in plan.cells[:-4]:
        train(tracker, store, cell)
    wait(lambda: written(tracker))

    page.goto(tracker.link, wait_until="domcontentloaded")  # while the grid runs
    for treatment in plan.counts:
        page.get_by_text(f"Group: {treatment}", exact=True).first.wait_for()
    page.get_by_text("fig2/top1", exact=True).first.wait_for()
    drawn(page, 2 * len(plan.counts))  # two charts are in sight: against n, and learning curves
    page.screenshot(path=pictures / "mlflow-figure2-live.png")

    for cell in plan.cells[-4:]:
        train(tracker, store, cell)
    assert not tracker.close(120)
    experiment = tracker._experiment or ""
    page.goto("about:blank")
    page.goto(tracker.link, wait_until="domcontentloaded")
    drawn(page, 2 * len(plan.counts))
    page.screenshot(path=pictures / "mlflow-figure2.png")

    page.goto("about:blank")
    page.goto(link(server.uri, experiment, "raygrid-figure2-mean"), wait_until="domcontentloaded")
    page.get_by_text("Fig 2 · AnB+", exact=True).first.wait_for()
    drawn(page, len(plan.counts))
    page.screenshot(path=pictures / "mlflow-figure2-mean.png")
    colours = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot .scatterlayer .trace path.js-line')].map(p => p.style.stroke)"
    )
    assert "rgb(200, 16, 46)" in colours, colours  # AnB in the paper's red

    runs = [run for run in trials(server.uri, plan).values() if run.data.params["n"] == "4"]
    chosen = urllib.parse.quote(json.dumps([run.info.run_id for run in runs[:6]]))
    compared = urllib.parse.quote(json.dumps([experiment]))
    page.goto("about:blank")
    page.goto(f"{server.uri}/#/compare-runs?runs={chosen}&experiments={compared}", wait_until="domcontentloaded")
    page.get_by_text("Comparing 6 Runs from 1 Experiment").first.wait_for()
    page.wait_for_selector(".js-plotly-plot")
    page.get_by_text("fine_tune").first.wait_for()
    page.screenshot(path=pictures / "mlflow-compare.png")


def test_the_other_views_open(server: MlflowServer, store: Store, page: Any, pictures: Path) -> None:
    plan = make_plan("views", layers="[3]")
    tracker = Tracker(plan, store, server.uri)
    tracker.start()
    failed = next(cell for cell in plan.cells if cell.treatment == "transfer")
    for cell in plan.cells:
        train(tracker, store, cell, status="diverged" if cell is failed else "ok")
    assert not tracker.close(120)
    experiment = tracker._experiment or ""
    texts = {"trials": "Parallel Coordinates", "failures": failed.title, "differs": "Show differences only"}
    for name, text in texts.items():
        page.goto("about:blank")
        page.goto(link(server.uri, experiment, f"raygrid-{name}"), wait_until="domcontentloaded")
        page.get_by_text(text).first.wait_for()
        page.get_by_text("matching run").first.wait_for()
        page.wait_for_timeout(1500)
        page.screenshot(path=pictures / f"mlflow-{name}.png")
    page.get_by_text("treatment", exact=True).first.wait_for()
