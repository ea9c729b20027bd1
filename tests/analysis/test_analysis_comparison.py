"""Ours beside the authors': what stands in the third column is what stands in the first minus the second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import made_up_studies as made_up
import pandas as pd
import pytest

from analysis import comparison, style
from analysis.results import Results, read


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Random and semantic splits, random filters, one of them diverged; scores of the last test, 4 classes a half."""
    frame = made_up.study(splits=range(4), semantic=True, random_filters=True, classes=4)
    frame.loc[(frame["treatment"] == "random") & (frame["n"] == 1), "status"] = "diverged"
    frame.loc[(frame["treatment"] == "transfer") & (frame["n"] == 5) & (frame["split_seed"] == 2), "status"] = (
        "diverged"
    )
    return read(made_up.folder(tmp_path_factory.mktemp("ours"), frame))


def line(ax: Any, treatment: str) -> dict[float, float]:
    """One line of a panel: y by n."""
    color = style.MARKS[treatment].color
    drawn = [a for a in ax.lines if a.get_color() == color and a.get_linestyle() != "None" and len(a.get_xdata()) > 2]
    assert len(drawn) == 1, (treatment, len(drawn))
    return dict(zip(map(float, drawn[0].get_xdata()), map(float, drawn[0].get_ydata()), strict=True))


def crossed(ax: Any) -> set[tuple[float, float]]:
    return {
        (round(float(x), 6), round(float(y), 6))
        for a in ax.lines
        if a.get_marker() == "x"
        for x, y in zip(a.get_xdata(), a.get_ydata(), strict=True)
    }


ROWS = (("selffer", "selffer+", "transfer", "transfer+"), ("transfer", "semantic", "random"))


def test_the_third_column_is_the_first_minus_the_second(ours: Results, authors: Results) -> None:
    axes = comparison.draw(ours, authors).axes
    assert len(axes) == 6
    for row, treatments in enumerate(ROWS):
        for treatment in treatments:
            one, two, gap = (line(ax, treatment) for ax in axes[3 * row : 3 * row + 3])
            assert one[0] == two[0] == gap[0] == 0.0, "every line starts at its base"
            assert gap == pytest.approx({n: one[n] - two[n] for n in gap}, abs=1e-9)
            assert set(gap) == {0, 1, 2, 3, 4, 5, 6, 7}


def test_the_first_two_columns_share_their_axis(ours: Results, authors: Results) -> None:
    axes = comparison.draw(ours, authors).axes
    for first, second in (axes[0:2], axes[3:5]):
        assert first.get_ylim() == second.get_ylim()
        assert first.get_shared_y_axes().joined(first, second)
    assert all(ax.get_xlabel() and ax.get_xlim() == axes[0].get_xlim() for ax in axes)


def test_authors_against_themselves_differ_nowhere(authors: Results) -> None:
    for row in comparison.rows(authors, authors):
        gaps = comparison.differences(row.ours, row.theirs)
        assert {n for m in gaps.values() for n in m} == set(range(1, 8))
        assert all(e.mean == 0 for m in gaps.values() for e in m.values())
    for table in comparison.tables(authors, authors)[:2]:
        said = [cell.rstrip("†") for r in table.rows if r[0].endswith("difference") for cell in r[1:] if cell]
        assert said and set(said) == {"+0.00"}
    terms = " ".join(comparison.terms(authors, authors))
    labels = [ax.get_xlabel() for ax in comparison.draw(authors, authors).axes]
    gone = "random filters leave the frame: -57.5 at n = 3, diverged"
    assert [gone in label for label in labels] == [False, False, False, True, True, False], "as in the paper"
    assert "Chance" not in terms and terms.count("the mean of the ten best tests") == 2


def test_diverged_networks_are_crossed_out(ours: Results, authors: Results) -> None:
    """Ours in the first column, the authors' random filters in the second, either in the third; and in the tables."""
    axes = comparison.draw(ours, authors).axes
    for i, row in enumerate(comparison.rows(ours, authors)):
        columns = (row.ours, row.theirs, comparison.differences(row.ours, row.theirs))
        for lines, ax in zip(columns, axes[3 * i : 3 * i + 3], strict=True):
            dead = {(n, round(100 * e.mean, 6)) for m in lines.values() for n, e in m.items() if e.diverged}
            assert crossed(ax) == dead
        here = {n for m in row.ours.values() for n, e in m.items() if e.diverged}
        assert here == ({5} if row.title == "Figure 2" else {1, 5})
    two, three, _ = comparison.tables(ours, authors)
    daggers = {(r[0], n) for t in (two, three) for r in t.rows for n, cell in enumerate(r[1:], 1) if "†" in cell}
    assert {
        ("AnB ours", 5),
        ("AnB difference", 5),
        ("random filters authors", 3),
        ("random filters ours", 1),
    } <= daggers
    assert all(any(note.startswith("†") for note in t.notes) for t in (two, three))


def test_only_the_base_stands_at_n_0(ours: Results, authors: Results) -> None:
    for ax in comparison.draw(ours, authors).axes:
        there = [a for a in ax.lines if a.get_linestyle() == "None" and 0.0 in list(a.get_xdata())]
        assert [a.get_marker() for a in there] == [style.MARKS["base"].marker]
        assert there[0].get_markerfacecolor() == "white"


def test_says_on_which_terms_the_two_stand_beside_each_other(ours: Results, authors: Results) -> None:
    """Units, intervals, scores and chance; the numbers of both figures in tables."""
    fig = comparison.draw(ours, authors)
    text = " ".join(" ".join(t.get_text() for ax in fig.axes for t in ax.texts).split())
    for words in (
        "95 % Student-t interval",
        "share no task, so their difference has no interval and no test",
        "here the last test (top1_last), there the mean of the ten best tests (top1_mean10)",
        "in Figure 2 25 % here, 0.2 % there; for random filters 12.5 % here, 0.1 % there",
    ):
        assert words in text
    assert all("percentage points" in ax.get_ylabel() for ax in (*fig.axes[::3], *fig.axes[2::3]))
    tables = comparison.tables(ours, authors)
    assert [t.title.split(",")[0] for t in tables] == ["Figure 2", "Figure 3", "Table 1"]
    assert [r[0] for r in tables[1].rows][:3] == [
        "random splits ours",
        "random splits authors",
        "random splits difference",
    ]
    published = next(r for r in tables[1].rows if r[0] == "man-made/natural authors")
    assert published[7] == "-25.01 (1)"


def test_a_study_without_figure3_or_some_treatments_has_one_row(tmp_path: Path, authors: Results) -> None:
    few = made_up.study(splits=(0,), layers=(1, 2, 3), depth=4, treatments=("base", "transfer"), classes=5)
    results = read(made_up.folder(tmp_path, few.drop(columns="classes")))
    assert len(comparison.draw(results, authors).axes) == 3
    terms = " ".join(comparison.terms(results, authors))
    assert "a network of 4 here, of 8 there" in terms and "unknown here" in terms
    assert not re.search("nan", " ".join(c for t in comparison.tables(results, authors) for r in t.rows for c in r))
    none = read(made_up.folder(tmp_path / "none", pd.DataFrame(few[few["treatment"] != "base"])))
    assert comparison.reason_against(none)
