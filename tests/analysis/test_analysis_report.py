"""Files as people get them: rendered figures, LaTeX that compiles, a page that opens in a real browser, offline."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import made_up_studies as made_up
import pandas as pd
import pytest

import analysis
from analysis import figure2, reference, scope, style, summary
from analysis.report import spent
from analysis.results import read

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> analysis.Written:
    """The report of a made-up study in the shape of the default one, with history, plan and a diverged cell."""
    frame = made_up.demo()
    dead = (frame["treatment"] == "random") & (frame["n"] == 7)
    frame.loc[dead, "status"] = "diverged"
    folder = made_up.folder(tmp_path_factory.mktemp("study"), frame)
    plan = {"question": "How deep?", "predicted_seconds": 400, "predicted_on": "2 L4", "wall_seconds": 420}
    price = {"low": 0.8, "high": 1.0, "of": "a to b", "date": "2025-06"}
    plan["machines"] = {"NVIDIA L4": {"device_seconds": 7200, "usd_per_hour": price}, "cpu": {"device_seconds": 60}}
    plan |= {"study": "made-up", "mlflow": "http://somewhere:5000"}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "study.yaml").write_text("name: made-up\nquestion: How deep?\n")
    return analysis.write(folder, overlay="published")


@pytest.fixture(scope="module")
def page(demo: analysis.Written) -> str:
    return (demo.out / "report.html").read_text(encoding="utf-8")


def test_every_promised_file_is_there(demo: analysis.Written) -> None:
    names = {p.name for p in demo.paths}
    figures = {f"{f}.{kind}" for f in ("figure2", "figure2_paired", "figure3") for kind in ("png", "svg")}
    tables = {f"{t}.{kind}" for t in ("table1", "decomposition") for kind in ("md", "tex", "csv")}
    assert figures | tables | {"claims.md", "claims.csv", "summary.md", "report.html"} <= names
    assert all(p.stat().st_size > 0 for p in demo.paths)


def test_says_where_mlflow_has_each_network(page: str) -> None:
    assert "http://somewhere:5000, experiment raygrid/made-up" in page and "raygrid.cell" in page


def test_figures_are_the_same_bytes_twice(demo: analysis.Written, tmp_path: Path) -> None:
    """Same data, same SVG: no date, no random ids."""
    results = read(demo.out.parent)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        style.save(figure2.draw(scope.main(results), results.depth, []), tmp_path / folder, "figure2")
    for kind in ("svg", "png"):
        assert (tmp_path / "a" / f"figure2.{kind}").read_bytes() == (tmp_path / "b" / f"figure2.{kind}").read_bytes()
    assert "<dc:date>" not in (tmp_path / "a" / "figure2.svg").read_text()


def test_page_is_small_whole_and_offline(page: str) -> None:
    assert len(page.encode()) < 1_000_000
    fetched = re.findall(r'(?:src|href|url\()\s*=?\s*["\']?(https?:|//)', page)
    assert not fetched, "nothing is fetched from a network"
    assert "@import" not in page
    assert not re.search(r"<link(?![^>]*data:)[^>]*>", page)
    for words in (
        "How deep?",
        "What is missing or diverged",
        "How it was made",
        "predicted time",
        "+5 %",
        "Beside the paper",
    ):
        assert words in page


def test_page_says_what_the_run_took_and_cost(page: str, tmp_path: Path) -> None:
    """Device-seconds, predicted beside actual, dollars where the price is known, and words where it is not."""
    for words in (
        "7,200 (2.0 h) on NVIDIA L4; 60 (60 s) on cpu",
        "6.7 min on 2 L4",
        "7.0 min (+5 % against predicted)",
        "1.60 to 2.00 USD: 2.00 hours of NVIDIA L4 at 0.80 to 1.00 USD (a to b, prices of 2025-06)",
        "no price for this machine (cpu)",
    ):
        assert words in page
    bare = dict(spent(read(made_up.folder(tmp_path, made_up.study(splits=(0,))))))
    assert bare == {
        "device-seconds of all networks": "720 (12.0 min) on cpu",
        "cost": "no price for this machine (cpu)",
    }


def test_an_unfinished_study_says_that_its_verdicts_are_interim(tmp_path: Path) -> None:
    """Wherever they stand; a finished one, or one whose plan is unknown, does not."""
    frame = made_up.study(splits=(0, 1, 2))
    plans = {
        "finished": {"cells": list(frame["cell"])},
        "counted": {"networks": len(frame)},
        "unknown": {},
        "unfinished": {"cells": [*frame["cell"], "one", "more"], "networks": len(frame) + 2},
        "short": {"networks": len(frame) + 2},
    }
    for name, plan in plans.items():
        folder = made_up.folder(tmp_path / name, frame, with_history=False)
        (folder / "plan.json").write_text(json.dumps(plan))
        written = analysis.write(folder)
        said = f"Interim: {len(frame)} of {len(frame) + 2} networks."
        interim = name in ("unfinished", "short")
        for file in ("summary.md", "claims.md", "report.html"):
            text = (written.out / file).read_text()
            assert (said in text) is interim and ("Interim" in text) is interim, (name, file)
        assert (said in written.summary) is interim
        marks = pd.read_csv(written.out / "claims.csv")["interim"]
        assert len(marks) and (marks == interim).all(), name
    results = read(tmp_path / "short")
    ax = figure2.draw(scope.main(results), results.depth, [], notes=[summary.interim(results)]).axes[1]
    assert any(said in " ".join(t.get_text().split()) for t in ax.texts)


def test_the_dagger_is_explained_under_every_table_that_has_one(tmp_path: Path) -> None:
    """In Markdown and on the page: one note, beginning with it."""
    frame = made_up.study(splits=(0, 1, 2), semantic=True, random_filters=True)
    frame.loc[frame["treatment"].isin(["transfer", "random"]) & (frame["n"] == 5), "status"] = "diverged"
    out = analysis.write(made_up.folder(tmp_path, frame)).out
    for file in ("summary", "claims", "decomposition", "table1"):
        for part in (out / f"{file}.md").read_text().split("\n### "):
            rows = [line for line in part.splitlines() if line.startswith("|")]
            notes = [line for line in part.splitlines() if line.startswith("- †")]
            assert len(notes) == any("†" in row for row in rows), (file, part[:60])
    page = (out / "report.html").read_text()
    tables = re.findall(r"<table(?! id).*?</table></div>\s*(?:<ul class=\"notes\">.*?</ul>)?", page, re.DOTALL)
    marked = [t for t in tables if "†" in t.partition("</table>")[0]]
    assert len(marked) >= 4
    assert all(t.count("<li>†") == 1 for t in marked), [t[:200] for t in marked if t.count("<li>†") != 1]


def filters_on(*places: str) -> pd.DataFrame:
    """A made-up study of 4 random splits, the semantic one and all classes, with random filters in these places only."""
    treatments = ("base", "random", "transfer")
    frame = made_up.study(splits=range(4), layers=(1, 4), treatments=treatments, semantic=True, random_filters=True)
    whole = frame[(frame["split"] == "semantic") & (frame["target"] == "A") & (frame["treatment"] != "transfer")]
    whole = whole.assign(split="all", target="all", classes=10, cell="all/" + whole["cell"])
    frame = pd.concat([frame, whole], ignore_index=True)
    place = frame["split"] + frame["split_seed"].map(lambda s: "" if s != s else f"{s:g}")
    return frame[(frame["treatment"] != "random") | place.isin(places)]


@pytest.mark.parametrize(
    ("places", "note", "units"),
    [
        (("random2",), "1 random split", 1),
        (("random0", "random2", "random3"), "3 random splits", 3),
        (("semantic",), "the semantic split", 1),
        (("all",), "the whole data set", 1),
    ],
)
def test_the_table_of_means_says_where_random_filters_stand(
    tmp_path: Path, places: tuple[str, ...], note: str, units: int
) -> None:
    """The splits that have them, not the study's; as many as stand in its brackets, and called seeds where they are."""
    results = read(made_up.folder(tmp_path, filters_on(*places)))
    table = summary.summarise(results).table
    (row,) = (row for row in table.rows if row[0] == "random")
    assert f"Random filters: {note}." in table.notes
    assert [cell[-3:] for cell in row[1:] if cell] == [f"({units})"] * 2
    assert {r["splits"] for r in table.records if r["treatment"] == "random"} == {note}
    alone = units == 1
    assert ("(seeds or splits)" in table.notes[0]) is alone
    assert any("conditional on this split" in said for said in table.notes) is alone


def test_random_filters_of_several_places_have_a_row_each(tmp_path: Path) -> None:
    """None is left out, and none is pooled with another."""
    frame = filters_on("random0", "random1", "semantic", "all")
    table = summary.summarise(read(made_up.folder(tmp_path, frame))).table
    places = {"2 random splits": "random", "the semantic split": "semantic", "the whole data set": "all"}
    assert [row[0] for row in table.rows][-3:] == [f"random, {where}" for where in places]
    assert not any("Random filters" in note for note in table.notes)
    for row, split in zip(table.rows[-3:], places.values(), strict=True):
        own = frame[(frame["treatment"] == "random") & (frame["split"] == split) & (frame["n"] == 4)]
        assert row[5].startswith(f"{100 * own['top1_last'].mean():.2f} (")


def test_networks_are_listed_without_the_folders_that_all_share(tmp_path: Path) -> None:
    """The folders are said once; where checkpoints lie elsewhere, each says its place."""
    frame = made_up.demo()
    frame["cell"] = "data/small/" + frame["cell"]
    frame["checkpoint_uri"] = "s3://bucket/cells/" + frame["cell"] + "/checkpoint-00.safetensors"
    text = (analysis.write(made_up.folder(tmp_path / "one", frame)).out / "report.html").read_text()
    assert "Networks under <code>data/small/</code>. Checkpoints under <code>s3://bucket/cells/</code>" in text
    assert "<td><code>checkpoint-00.safetensors</code>" in text
    assert "<td><code>random0/A/base/0/seed0</code>" in text
    frame.loc[0, "checkpoint_uri"] = "s3://other/checkpoint-00.safetensors"
    text = (analysis.write(made_up.folder(tmp_path / "two", frame)).out / "report.html").read_text()
    assert "Checkpoints under" not in text
    assert "<td><code>s3://other/checkpoint-00.safetensors</code>" in text


def test_pictures_have_alt_texts_and_ids_are_unique(page: str) -> None:
    svgs = re.findall(r"<svg\b[^>]*>", page)
    assert len(svgs) + len(re.findall(r"<img\b", page)) == 5
    assert all('role="img"' in s and len(re.search(r'aria-label="([^"]*)"', s)[1]) > 40 for s in svgs)  # type: ignore[index]
    assert all(re.search(r'alt="[^"]{40,}"', i) for i in re.findall(r"<img\b[^>]*>", page))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(ids), sorted(used - set(ids))[:5]


def test_page_is_well_formed(page: str) -> None:
    """Every opened element that needs it is closed, in order."""
    void = {"meta", "link", "br", "img", "input", "path", "use", "rect", "image"}
    optional = {"td", "th", "li", "dt", "dd"}

    class Check(HTMLParser):
        stack: ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in void and tag not in optional:
                self.stack.append(tag)

        def handle_startendtag(self, tag, attrs):
            return

        def handle_endtag(self, tag):
            if tag not in void and tag not in optional:
                assert self.stack, tag
                assert self.stack.pop() == tag, tag

    check = Check()
    check.feed(page)
    assert check.stack == []


HOSTILE = [
    "<script>alert(1)</script></script><script>alert(2)</script>",
    "</svg></title></style></pre>--><img src=x onerror=alert(3)>",
    "\"><img src=x onerror=alert(4)> ' onload='alert(5)",
    r"$\frac$ {{ 7 * 7 }} {% raw %} &lt;b&gt; $x^$",
]


def page_that_says(word: str, folder: Path) -> str:
    """The page of a study whose names, classes, cells, machines, reasons and sentences are this word."""
    frame = made_up.demo().assign(study=word, dataset=word, network=word, recipe=word, device=word, commit=word)
    frame = frame.assign(reason=word, checkpoint_uri=word, cell=frame["cell"] + word)
    frame.loc[frame["split"] == "semantic", "split"] = word
    made_up.folder(folder, frame)
    price = {"low": 1.0, "high": 2.0, "of": word, "date": word}
    plan = {"question": word, "predicted_seconds": 1, "predicted_on": word}
    plan["machines"] = {word: {"device_seconds": 1, "usd_per_hour": price}}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "study.yaml").write_text(f"name: {json.dumps(word)}\nclasses: {{A: [{json.dumps(word)}]}}\n")
    return (analysis.write(folder).out / "report.html").read_text(encoding="utf-8")


def elements(text: str) -> list[tuple[str, set[str]]]:
    """Tags and their attributes; of drawings, which differ with their words, only what may not be in them."""
    drawn = {"svg", "g", "path", "use", "defs", "rect", "clippath", "image"}
    found: list[tuple[str, set[str]]] = []

    class Seen(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in drawn:
                found.append((tag, {name for name, _ in attrs}))

    Seen().feed(text)
    return found


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, set[str]]]:
    return elements(page_that_says("kind", tmp_path_factory.mktemp("harmless")))


@pytest.mark.parametrize("evil", HOSTILE)
def test_what_a_study_says_is_text_wherever_it_stands(evil: str, tmp_path: Path, harmless: list[Any]) -> None:
    """It makes no element and no attribute: those of the page are the same as with a harmless word."""
    text = page_that_says(evil, tmp_path)
    assert elements(text) == harmless
    assert sum(tag == "script" for tag, _ in harmless) == 1
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r"=\"[^\"]*\"", "", text)), "no handler in any element"
    assert html.escape(evil, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")


@pytest.mark.browser
def test_opens_in_a_real_browser(demo: analysis.Written, pictures: Path, need: Callable[[bool, str], None]) -> None:
    """Desk and phone, light and dark, and on paper: no error, no request but the file, nothing wider than the screen;
    sorting and filtering work. Screenshots are kept (fixture `pictures`)."""
    need(importlib.util.find_spec("playwright") is not None, "playwright is not installed: pip install playwright")
    need(Path(CHROMIUM).exists(), f"no {CHROMIUM}: install Debian's chromium")
    from playwright import sync_api as playwright

    errors: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, width, scheme in (("desk", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab = context.new_page()
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto((demo.out / "report.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
            back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (back == "rgb(255, 255, 255)") is (scheme == "light")
            card = tab.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
            assert card == "rgb(255, 255, 255)", "figures stand on white, also in the dark"
            tab.screenshot(path=pictures / f"report-{name}.png")
            if name == "desk":
                head = tab.locator("#cells th", has_text="top-1 %").locator("button")
                head.click()
                column = "[...document.querySelectorAll('#cells tbody tr')].map(r => r.cells[7].textContent)"
                values = [float(v) for v in tab.evaluate(column) if v]
                assert values == sorted(values)
                head.click()
                values = [float(v) for v in tab.evaluate(column) if v]
                assert values == sorted(values, reverse=True)
                tab.fill("#filter", "diverged")
                shown = tab.evaluate("[...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden).length")
                assert shown == 1
                tab.click("details summary")
                assert tab.locator("details svg").first.is_visible()
                printed = tab.pdf(path=pictures / "printed.pdf", format="A4")
                pages = len(re.findall(rb"/Type */Page\b", printed))
                assert 5 < pages < 25, "one network a line, not three a page"
            context.close()
        browser.close()
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests), requests


def test_latex_tables_compile(tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    """All tables that a study can have, with their marks, in one document with the real booktabs: no error, and no
    table wider than the page."""
    need(shutil.which("pdflatex") is not None, "no pdflatex: install Debian's texlive-latex-base")
    found = subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, text=True).stdout.strip()
    need(bool(found), "no booktabs: install Debian's texlive-latex-recommended")
    analysis.write(reference.PATH, tmp_path / "authors")
    frame = made_up.study(splits=(0,), layers=(1, 4), treatments=("base", "selffer", "transfer"))
    kept = frame[frame["n"] > 0].assign(
        treatment=lambda f: f["treatment"] + "-preserve1", cell=lambda f: f["cell"] + "p"
    )
    analysis.write(made_up.folder(tmp_path / "kept", pd.concat([frame, kept])), tmp_path / "kept")
    inputs = sorted(p.relative_to(tmp_path).with_suffix("") for p in tmp_path.glob("*/*.tex"))
    assert {p.name for p in inputs} == {"table1", "decomposition", "preserved"}
    document = (
        r"\documentclass{article}\usepackage[landscape,margin=1cm]{geometry}\usepackage{booktabs}\begin{document}"
        + "".join(rf"\input{{{p}}}\clearpage " for p in inputs)
        + r"\end{document}"
    )
    (tmp_path / "all.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    log = done.stdout
    assert done.returncode == 0, log[-2000:]
    assert re.sub(r"\s", "", found) in re.sub(r"\s", "", log), "the package itself, not a stand-in"
    assert not re.findall(r"Overfull \\hbox.*", log)
    assert (tmp_path / "all.pdf").stat().st_size > 10_000


def test_csv_tables_read_back(demo: analysis.Written) -> None:
    table = pd.read_csv(demo.out / "table1.csv")
    assert set(table["form"]) == {"pooled", "own base", "paired"}
    parts = pd.read_csv(demo.out / "decomposition.csv")
    assert {"points", "low", "high", "units", "unit", "identified"} <= set(parts.columns)
    assert parts.loc[~parts["identified"], "points"].isna().all()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from analysis.__main__ import main

    frame = made_up.study(splits=(0,), layers=(1, 2, 3), depth=4, treatments=("base", "transfer"))
    frame.to_csv(tmp_path / "mine.csv", index=False)
    assert main([str(tmp_path / "mine.csv"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "report.html" in said
    assert "not drawn: figure3" in said
    assert (tmp_path / "out" / "figure2.png").exists()
