"""The authors' own numbers, to the digit: if these fail, the analysis does not compute what the paper computed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import pytest
from scipy import stats

from analysis import decomposition, figure2, figure3, reference, scope, supplement, table1
from analysis.claims import CLAIMS
from analysis.contrasts import contrast
from analysis.results import Results
from analysis.units import Estimate, quantile
from analysis.verdicts import SUPPORTED, UNDECIDED, Judged, judge

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


# --- the claims ------------------------------------------------------------------------------------------------------
# What the authors' logs can and cannot show: every verdict with its reason and estimates, word for word, and every p
# and interval behind them, computed here anew by scipy from reference.csv, without any code of the analysis.

FROZEN = "after Holm over the family 'frozen'"
NO_SCRATCH = "no scratch, so against baseB"
NO_SHARED = "not identified{} no task has both treatments (AnB+ and BnB+)"
NO_LONG = "not identified{} no baseB x2 network with a score"
DECIDED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "first layers are general": (
        SUPPORTED,
        f"p = 0.026 {FROZEN}; by themselves: n = 1, 2",
        ("AnB - BnB at n = 1, 2: +0.07 [-0.03, +0.17] (4 splits); each +0.15, -0.01",),
    ),
    "first layers stand alone": (
        UNDECIDED,
        f"p = 0.85 {FROZEN}: neither shown nor refuted",
        (f"BnB - baseB at n = 1, 2: +0.19 [-0.30, +0.68] (4 splits); each +0.35, +0.03; {NO_SCRATCH}",),
    ),
    "co-adaptation in the middle": (
        SUPPORTED,
        f"p = 0.00077 {FROZEN}; by themselves: n = 4, 5",
        (f"BnB - baseB at n = 3-5: -1.68 [-1.92, -1.44] (4 splits); {NO_SCRATCH}",),
    ),
    "no co-adaptation at the top": (
        UNDECIDED,
        f"p = 0.85 {FROZEN}: neither shown nor refuted",
        (f"BnB - baseB at n = 6, 7: -0.22 [-0.43, -0.01] (4 splits); each -0.45, +0.00; {NO_SCRATCH}",),
    ),
    "upper layers are specific": (
        SUPPORTED,
        f"p = 0.00028 {FROZEN}; by themselves: n = 4-7",
        ("AnB - BnB at n = 4-7: -3.61 [-3.95, -3.27] (4 splits)",),
    ),
    "specificity dominates at the top": (
        SUPPORTED,
        f"p = 0.00026 {FROZEN}; by themselves: n = 6, 7",
        (f"baseB - 2 BnB + AnB at n = 6, 7: -5.85 [-6.35, -5.35] (4 splits); {NO_SCRATCH}",),
    ),
    "fine-tuning recovers co-adaptation": (
        UNDECIDED,
        "BnB+ - BnB: 2 splits, a test needs 3; BnB+ - baseB: 2 splits, a test needs 3; "
        "p = 1.00 after Holm over the family 'fine-tuned': neither shown nor refuted",
        (
            f"BnB - baseB at n = 3-5: -1.68 [-1.92, -1.44] (4 splits); {NO_SCRATCH}",
            "BnB+ - BnB at n = 3, 5: +2.62 (2 splits)",
            f"BnB+ - baseB at n = 3, 5, 6: +1.05 (2 splits); {NO_SCRATCH}",
        ),
    ),
    "transfer + fine-tuning improves generalisation": (
        UNDECIDED,
        f"AnB+ - baseB: 2 splits, a test needs 3; AnB+ - BnB+: {NO_SHARED.format(',')}; "
        f"AnB+ - baseB x2: {NO_LONG.format(',')}",
        (
            f"AnB+ - baseB at n = 2-4: +0.99 (2 splits); {NO_SCRATCH}",
            f"AnB+ - BnB+: {NO_SHARED.format(':')}",
            f"AnB+ - baseB x2: {NO_LONG.format(':')}",
        ),
    ),
    "transfer + fine-tuning beats the reference": (
        UNDECIDED,
        "AnB+ - baseB: 2 splits, a test needs 3",
        (f"AnB+ - baseB at n = 2-4: +0.99 (2 splits); {NO_SCRATCH}",),
    ),
    "a semantic split loses more": (
        SUPPORTED,
        "-10.48 points against the mean of 4 random splits; rank 1 of 5 from below, with the random splits; one more "
        "random split would lie within 0.47 points of their mean (95 %); not on equal terms (other class counts or "
        "setting) (for this split)",
        (
            "AnB - baseB at n = 4-7, the semantic split: -15.46 (1 seed, conditional on this split)",
            "AnB - baseB at n = 4-7, 4 random splits: -4.99 [-5.20, -4.78] (4 splits)",
        ),
    ),
    "a semantic split gains less": (
        UNDECIDED,
        "AnB+ - baseB on the semantic split: not identified, no AnB+ network with a score",
        (),
    ),
    "random filters are far below learned ones": (
        UNDECIDED,
        "random - baseB: 1 seed, a test needs 3",
        ("random - baseB at n = 1-7: -43.44† (1 seed, conditional on this split)",),
    ),
    "distant features beat random ones": (
        UNDECIDED,
        "AnB - random: not identified, no random network with a score",
        ("AnB - random: not identified: no random network with a score",),
    ),
    "do not freeze the last layers": (
        SUPPORTED,
        "p = < 0.0001 after Holm over the family 'advice'; by themselves: n = 7",
        (f"AnB - baseB at n = 7: -8.26 [-8.57, -7.95] (4 splits); {NO_SCRATCH}",),
    ),
    "fine-tune end to end": (
        UNDECIDED,
        "AnB+ - AnB: 2 splits, a test needs 3",
        ("AnB+ - AnB at n = 2-4: +2.40 (2 splits)",),
    ),
}
CONDITIONAL = {"a semantic split loses more", "random filters are far below learned ones"}
NAMED = {
    "first layers are general": (1, 2),
    "co-adaptation in the middle": (4, 5),
    "upper layers are specific": (4, 5, 6, 7),
    "specificity dominates at the top": (6, 7),
    "do not freeze the last layers": (7,),
}


@pytest.fixture(scope="module")
def judged(authors: Results) -> dict[str, Judged]:
    return {v.claim.key: v for v in judge(authors)}


def test_every_claims_verdict_on_the_authors_logs(judged: dict[str, Judged]) -> None:
    assert {k: (v.verdict, v.reason, v.values) for k, v in judged.items()} == DECIDED
    assert {k for k, v in judged.items() if v.conditional} == CONDITIONAL
    assert {k: v.named for k, v in judged.items() if v.named} == NAMED


Scores = Mapping[tuple[str, str, str, int], float]


@pytest.fixture(scope="module")
def logged() -> Scores:
    """Accuracies of the full-length networks by (split, target, treatment, n), in fractions."""
    with reference.PATH.open(newline="") as file:
        return {
            (row["split"] + row["split_seed"], row["target"], row["treatment"], int(row["n"])): float(
                row["top1_mean10"]
            )
            for row in csv.DictReader(file)
            if not row["images_per_class"]
        }


def by_unit(
    logged: Scores, weights: Mapping[str, float], layers: Sequence[int], kind: str = "random"
) -> dict[str, float]:
    """The mean over the layers and over the halves that have all of it, by split."""

    def value(unit: str, half: str) -> float:
        return fmean(
            math.fsum(w * logged[unit, half, t, 0 if t == "base" else n] for t, w in weights.items()) for n in layers
        )

    found: dict[str, list[float]] = {}
    for unit, half in dict.fromkeys((unit, half) for unit, half, *_ in logged if unit.startswith(kind)):
        if all((unit, half, t, 0 if t == "base" else n) in logged for t in weights for n in layers):
            found.setdefault(unit, []).append(value(unit, half))
    return {unit: fmean(values) for unit, values in sorted(found.items())}


FROM = {"BnB - baseB": {"selffer": 1, "base": -1}, "AnB - BnB": {"transfer": 1, "selffer": -1}}
TESTED: dict[str, tuple[Mapping[str, float], tuple[int, ...], bool]] = {
    "first layers are general": (FROM["AnB - BnB"], (1, 2), True),
    "first layers stand alone": (FROM["BnB - baseB"], (1, 2), True),
    "co-adaptation in the middle": (FROM["BnB - baseB"], (3, 4, 5), False),
    "no co-adaptation at the top": (FROM["BnB - baseB"], (6, 7), True),
    "upper layers are specific": (FROM["AnB - BnB"], (4, 5, 6, 7), False),
    "specificity dominates at the top": ({"base": 1, "selffer": -2, "transfer": 1}, (6, 7), False),
    "do not freeze the last layers": ({"transfer": 1, "base": -1}, (7,), False),
}
"""the claims with a test: the difference, its layers, and whether it is an equality within half a point"""


def p_of_equality(each: Sequence[Sequence[float]]) -> float:
    """Every layer within the margin by two one-sided t-tests; against it, any layer beyond (Bonferroni over sides and
    layers). The smaller, doubled."""
    inside, beyond = [], []
    for values in each:
        above, below = (
            [stats.ttest_1samp(values, side * 0.005, alternative=way).pvalue for side in (-1, 1)]
            for way in ("greater", "less")
        )
        inside.append(max(above[0], below[1]))
        beyond.append(2 * min(below[0], above[1]))
    return min(1.0, 2 * min(max(inside), len(each) * min(beyond)))


def test_every_p_on_the_authors_logs(judged: dict[str, Judged], logged: Scores) -> None:
    """To 1e-6. A direction is an ordinary two-sided t-test of the splits' means over its layers."""
    ps: dict[str, float] = {}
    for key, (weights, layers, equality) in TESTED.items():
        if equality:
            ps[key] = p_of_equality([list(by_unit(logged, weights, [n]).values()) for n in layers])
        else:
            ps[key] = float(stats.ttest_1samp(list(by_unit(logged, weights, layers).values()), 0.0).pvalue)
    assert {k for k, v in judged.items() if v.p is not None} == {*ps, "fine-tuning recovers co-adaptation"}
    for key, p in ps.items():
        assert judged[key].p == pytest.approx(p, abs=1e-6, rel=1e-6), key
        family = [q for k, q in ps.items() if judged[k].claim.family == judged[key].claim.family]
        holm = max(sum(q >= other for q in family) * other for other in family if other <= p)
        assert judged[key].adjusted == pytest.approx(min(1.0, holm), abs=1e-6, rel=1e-6), key
    # two of its three parts have no test, so nothing speaks for it; the first part, three times, hardly against it
    first = list(by_unit(logged, FROM["BnB - baseB"], (3, 4, 5)).values())
    against = 3 * stats.ttest_1samp(first, 0.0, alternative="greater").pvalue
    assert judged["fine-tuning recovers co-adaptation"].p == min(1.0, 2 * against) == 1.0


def same(found: Estimate, units: Mapping[str, float]) -> None:
    """Units, mean and 95 % Student-t interval, to 1e-6."""
    assert list(found.names) == (list(units) if found.kind == "split" else ["seed 0"])
    assert found.values == pytest.approx(list(units.values()), abs=1e-6)
    if len(units) > 2:
        low, high = stats.ttest_1samp(list(units.values()), 0.0).confidence_interval(0.95)
        assert found.interval == pytest.approx((low, high), abs=1e-6)
    else:
        assert found.interval is None


ESTIMATED: tuple[tuple[Mapping[str, float], tuple[int, ...]], ...] = (
    *((weights, layers) for weights, layers, _ in TESTED.values()),
    ({"selffer+": 1, "selffer": -1}, (3, 5)),
    ({"selffer+": 1, "base": -1}, (3, 5, 6)),
    ({"transfer+": 1, "base": -1}, (2, 3, 4)),
    ({"transfer+": 1, "transfer": -1}, (2, 3, 4)),
)
"""the differences of all parts that have a number, each at the layers that its text names"""


def test_every_interval_on_the_authors_logs(authors: Results, judged: dict[str, Judged], logged: Scores) -> None:
    """To 1e-6, from the splits' own values; and the estimates' texts have these numbers, rounded."""
    said = [text for v in judged.values() for text in v.values]
    for weights, layers in ESTIMATED:
        units = by_unit(logged, weights, layers)
        found = contrast(scope.main(authors), weights)
        same(found.over(layers), units)
        number = f": {100 * fmean(units.values()):+.2f}"
        interval = found.over(layers).interval
        number += f" [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]" if interval else ""
        assert any(text.startswith(found.name) and f"{number} ({len(units)} splits)" in text for text in said), said
    whole = scope.whole(authors)
    assert whole is not None
    filters = by_unit(logged, {"random": 1, "base": -1}, range(1, 8), "all")
    same(contrast(whole, {"random": 1, "base": -1}).over(range(1, 8)), filters)
    assert (
        judged["random filters are far below learned ones"]
        .values[0]
        .split("†")[0]
        .endswith(f"{100 * filters['all']:+.2f}")
    )


def test_the_semantic_splits_place_among_the_random_ones(
    authors: Results, judged: dict[str, Judged], logged: Scores
) -> None:
    """Gap, rank, and the 95 % prediction interval for one more random split."""
    weights, layers = {"transfer": 1, "base": -1}, (4, 5, 6, 7)
    here, there = by_unit(logged, weights, layers, "semantic"), by_unit(logged, weights, layers)
    other = scope.other(authors)
    assert other is not None
    same(contrast(other, weights).over(layers), here)
    same(contrast(scope.main(authors), weights).over(layers), there)
    values, gap = list(there.values()), here["semantic"] - fmean(there.values())
    reach = stats.t.ppf(0.975, 3) * stats.tstd(values) * math.sqrt(1 + 1 / 4)
    assert quantile(3) == pytest.approx(stats.t.ppf(0.975, 3), abs=1e-6)
    found = judged["a semantic split loses more"]
    assert found.p is None, "one semantic split has no p-value"
    assert gap < -reach and all(here["semantic"] < value for value in values)
    assert found.reason.startswith(f"{100 * gap:+.2f} points against") and "rank 1 of 5" in found.reason
    assert f"lie within {100 * reach:.2f} points of their mean" in found.reason
    assert [c.key for c in CLAIMS] == list(DECIDED)
