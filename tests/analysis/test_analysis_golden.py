"""The authors' own numbers, to the digit: if these fail, the analysis does not compute what the paper computed."""

from __future__ import annotations

import math

import pytest

from analysis import decomposition, figure2, figure3, reference, scope, supplement, table1
from analysis.contrasts import contrast
from analysis.results import Results

TO = 1e-5


def test_reference_holds_every_logged_network(authors: Results) -> None:
    frame = authors.frame
    assert len(frame) == 148
    assert authors.score == "top1_mean10"
    assert frame["source_run"].is_unique
    counts = frame.groupby("treatment").size().to_dict()
    assert counts == {"base": 23, "random": 7, "selffer": 28, "selffer+": 10, "transfer": 70, "transfer+": 10}


def test_letters_of_the_semantic_split(authors: Results) -> None:
    """A is natural, as in the authors' folders: the natural half is the easier one."""
    base = authors.frame[(authors.frame["split"] == "semantic") & (authors.frame["treatment"] == "base")]
    scores = dict(zip(base["target"], base["score"], strict=True))
    assert scores["A"] == pytest.approx(0.6533991, abs=TO)
    assert scores["B"] == pytest.approx(0.5372440, abs=TO)


def test_diverged_runs_are_flagged_by_the_loss(authors: Results) -> None:
    dead = set(authors.frame.loc[authors.frame["status"] == "diverged", "source_run"])
    assert dead == {"nolearn_1_3", "nolearn_1_7"} | {f"reduced-{k:04d}" for k in (5, 10, 25, 50, 100)}


def test_every_published_point_is_a_network(authors: Results, published: list[dict[str, str]]) -> None:
    scores = dict(zip(authors.frame["source_run"], authors.frame["score"], strict=True))
    points = [p for p in published if p["run"]]
    assert len(points) == 112 + 16 + 8 + 12
    for point in points:
        assert scores[point["run"]] == pytest.approx(float(point["top1"]), abs=TO), point


def test_figure2_lines(authors: Results, published: list[dict[str, str]]) -> None:
    lines = figure2.lines(scope.main(authors))
    names = {"baseB": "base", "BnB": "selffer", "BnB+": "selffer+", "AnB": "transfer", "AnB+": "transfer+"}
    points = [p for p in published if p["figure"] == "2-bottom"]
    assert len(points) == 29
    for point in points:
        mine = lines[names[point["treatment"]]][int(point["n"])]
        assert mine.mean == pytest.approx(float(point["top1"]), abs=TO), point


def test_figure3_relative_curves(authors: Results, published: list[dict[str, str]]) -> None:
    mine = {c.look: c.relative for c in figure3.curves(authors)}
    looks = {("random", "AnB"): "transfer", ("natman", "AnB"): "semantic", ("all1000", "random-frozen"): "random"}
    points = [p for p in published if p["figure"] == "3-bottom" and p["n"] != "0"]
    assert len(points) == 21
    for point in points:
        found = mine[looks[point["split"], point["treatment"]]][int(point["n"])]
        assert found.mean == pytest.approx(float(point["top1"]), abs=TO), point


def test_figure3_keeps_the_diverged_random_filters(authors: Results) -> None:
    random = {c.look: c.relative for c in figure3.curves(authors)}["random"]
    assert [n for n, e in random.items() if e.diverged] == [3, 7]
    assert random[3].mean == pytest.approx(-0.5751914, abs=TO)


def test_table1_pooled_digit_for_digit(authors: Results) -> None:
    pooled = table1.tables(scope.main(authors), 8)[0]
    assert [[cell.split(" ")[0].lstrip("+") for cell in row] for row in pooled.rows] == [
        ["1-7", "1.6", "1.4"],
        ["3-7", "1.8", "1.4"],
        ["5-7", "2.1", "1.7"],
    ]
    assert all("not identified" in row[2] for row in pooled.rows), "BnB+ shares no task with AnB+"
    assert all("not identified" not in row[1] for row in pooled.rows)


def test_table1_by_own_base_is_marked(authors: Results) -> None:
    """The golden test of law 9: the published control comparison has no task with both treatments."""
    own = table1.tables(scope.main(authors), 8)[1]
    assert [row[1].split(" ")[0] for row in own.rows] == ["+0.97", "+1.17", "+1.16"]
    assert [row[2].split(" ")[0] for row in own.rows] == ["+0.97", "+1.10", "+1.01"]
    assert [row[3].split(" ")[0] for row in own.rows] == ["-0.00", "+0.06", "+0.15"]
    assert all("not identified" in row[3] for row in own.rows)
    assert any("no task has both treatments" in note and "not decided" in note for note in own.notes)
    difference = [r for r in own.records if r["comparison"] == "(AnB+ - baseB) - (BnB+ - baseB)"]
    assert [r["identified"] for r in difference] == [False] * 3
    assert [r["verdict"] for r in difference] == ["not decided"] * 3


def test_table1_paired_prints_no_number_without_a_shared_task(authors: Results) -> None:
    paired = table1.tables(scope.main(authors), 8)[2]
    for row in paired.rows:
        assert row[1].startswith("not identified: no scratch network")
        assert row[3].startswith("not identified: no task has both treatments")


def test_specificity_on_the_targets_that_have_both(authors: Results) -> None:
    found = contrast(scope.main(authors), {"transfer": 1, "selffer": -1})
    estimates = [found.at([n]) for n in range(1, 8)]
    assert [f"{100 * e.mean:+.2f}" for e in estimates] == [
        "+0.15", "-0.01", "-0.14", "-0.62", "-1.68", "-3.90", "-8.24",
    ]  # fmt: skip
    assert all((e.units, e.tasks, e.kind) == (4, 4, "split") for e in estimates)
    table = decomposition.table([scope.main(authors)])
    assert all(len(row[-1].split("; ")) == 4 for row in table.rows), "the four points are shown"
    assert [row[-1] for row in table.rows][2] == "-0.54; +0.06; -0.04; -0.04"


def test_decomposition_names_its_fallback(authors: Results) -> None:
    """The authors have no scratch networks, so co-adaptation is against base, and says so."""
    table = decomposition.table([scope.main(authors)])
    assert any("no scratch" in note and "baseB" in note for note in table.notes)
    found = decomposition.decompose(scope.main(authors)).parts["co-adaptation"]
    assert found.fallback == "base"
    assert f"{100 * found.at([5]).mean:+.2f}" == "+2.97"


def test_settings_do_not_mix(authors: Results) -> None:
    """The short runs on fewer images share treatment, target and n with netbase; they are not averaged with it."""
    whole = scope.whole(authors)
    assert whole is not None
    assert list(whole.frame.loc[whole.frame["treatment"] == "base", "source_run"]) == ["netbase"]
    assert scope.left_out(authors) == [], "the short runs stand in the supplement's figure"


def test_supplement_is_the_published_curve(authors: Results) -> None:
    """Accuracy by images per class, as the authors' notebook prints it."""
    printed = {
        1300: 0.55176, 1000: 0.54094, 750: 0.51470, 500: 0.47568, 250: 0.38428, 100: 0.00111, 50: 0.00111,
        25: 0.00108, 10: 0.00107, 5: 0.00108, 2: 0.00445, 1: 0.00380,
    }  # fmt: skip
    mine = supplement.means(authors)
    assert sorted(mine) == sorted(printed)
    for images, accuracy in printed.items():
        assert mine[images] == pytest.approx(accuracy, abs=TO), images
    assert supplement.chance(authors) == pytest.approx(0.001)
    drawn = supplement.networks(authors)
    assert "netbase" not in set(drawn["source_run"]), "450,000 iterations: it differs in more than images per class"
    assert set(drawn.loc[drawn["status"] == "diverged", "images_per_class"]) == {5, 10, 25, 50, 100}


def test_preserved_layers_are_the_notebooks_values(authors: Results, published: list[dict[str, str]]) -> None:
    """All 40; and the halves that they are taken to be of are those of the nearest logged networks, by far."""
    names = {"BnB": "selffer", "AnB": "transfer"}
    values = {
        (f"{names[p['treatment'][:3]]}{p['treatment'][3:]}", int(p["n"])): float(p["top1"])
        for p in published
        if p["figure"] == "preserved"
    }
    assert len(values) == 40
    mine = {(t, n): value for t, line in reference.PRESERVED.items() for n, value in enumerate(line, 1)}
    assert mine == pytest.approx(values, abs=1e-6)
    logged = authors.frame[authors.frame["split"] == "random"]
    for plain, nearest in reference.PRESERVED_TARGET.items():
        own = logged[logged["treatment"] == plain]
        gaps = (own["score"] - [values[plain, n] for n in own["n"]]).abs()
        means = gaps.groupby([own["split_seed"], own["target"]]).mean().sort_values()
        (split, half), *_ = means.index
        assert f"half{split:.0f}{half}" == nearest
        assert 3 * means.iloc[0] < means.iloc[1]


def test_reference_is_what_its_generator_writes(tmp_path, authors: Results) -> None:
    """From a table of logs in the authors' words to our columns."""
    frame = reference.from_logs(_two_logs(tmp_path / "logs.csv"))
    assert list(frame["cell"]) == ["yosinski2014-published/half0A"]
    ours = authors.frame.set_index("source_run").loc["half0A"]
    row = frame.iloc[0]
    for column in ("split", "target", "treatment", "n", "status", "classes", "recipe", "device"):
        assert row[column] == ours[column], column
    assert math.isclose(float(row["top1_mean10"]), ours["score"])


def _two_logs(path):
    head = (
        "run,experiment,split,split_seed,source,target,treatment,n,frozen,log,top1_mean_of_10_best,top1_best,best_iter,"
        "top1_last,last_iter,n_val_tests,val_loss_min,val_loss_last,train_loss_last100_mean,own_base_run,"
        "diff_vs_own_base,sec_per_iter,train_set,val_set\n"
    )
    path.write_text(
        head + "half0A,base,random,0,,A,base,0,,yes,0.6151000,0.615240,304000,0.614559,450000,450,1.67673,1.74482,"
        "0.45755,half0A,+0.0,1.764,half0A_train,half0A_valid\n"
        "transfer-ft1A1A_1_1,selffer,random,1,A,A,BnB+,1,no,no (no log),,,,,,,,,,,,,,\n"
    )
    return path
