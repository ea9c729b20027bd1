"""Verdicts on made-up results with known answers, and on the authors' logs."""

from __future__ import annotations

import made_up_studies as made_up
import numpy as np
import pandas as pd
import pytest
from test_analysis_statistics import results_of

from analysis import verdicts
from analysis.claims import CLAIMS
from analysis.results import Results
from analysis.verdicts import CONTRADICTED, SUPPORTED, UNDECIDED, Judged, holm, judge, p_above, p_equal, p_unequal

TWO_SPLITS = (
    "fine-tuning recovers co-adaptation",
    "transfer + fine-tuning beats the reference",
    "fine-tune end to end",
)
EVERYTHING = ("base", "scratch", "base-long", *made_up.COPYING)


def by_key(results: Results) -> dict[str, Judged]:
    return {v.claim.key: v for v in judge(results)}


def test_the_authors_logs(authors: Results) -> None:
    """Golden: what the released networks can and cannot show, each with its reason."""
    found = by_key(authors)
    assert {key: v.verdict for key, v in found.items()} == {
        "first layers are general": SUPPORTED,
        "first layers stand alone": UNDECIDED,
        "co-adaptation in the middle": SUPPORTED,
        "no co-adaptation at the top": UNDECIDED,
        "upper layers are specific": SUPPORTED,
        "specificity dominates at the top": SUPPORTED,
        "fine-tuning recovers co-adaptation": UNDECIDED,
        "transfer + fine-tuning improves generalisation": UNDECIDED,
        "transfer + fine-tuning beats the reference": UNDECIDED,
        "a semantic split loses more": UNDECIDED,
        "a semantic split gains less": UNDECIDED,
        "random filters are far below learned ones": UNDECIDED,
        "do not freeze the last layers": SUPPORTED,
        "fine-tune end to end": UNDECIDED,
    }
    reasons = {key: v.reason for key, v in found.items()}
    assert "no task has both treatments (AnB+ and BnB+)" in reasons["transfer + fine-tuning improves generalisation"]
    assert "no baseB x2 network" in reasons["transfer + fine-tuning improves generalisation"]
    for key in (
        "fine-tuning recovers co-adaptation",
        "transfer + fine-tuning beats the reference",
        "fine-tune end to end",
    ):
        assert "2 splits, a test needs 3" in reasons[key]
    assert "rank 1 of 5" in reasons["a semantic split loses more"]
    assert "no interval" in reasons["a semantic split loses more"]
    assert found["a semantic split loses more"].p is None, "one semantic split has no p-value"
    assert "no AnB+ network" in reasons["a semantic split gains less"]
    assert "1 seed, a test needs 3" in reasons["random filters are far below learned ones"]
    assert found["co-adaptation in the middle"].named == (4, 5)
    assert found["upper layers are specific"].named == (4, 5, 6, 7)
    assert "no scratch, so against baseB" in found["co-adaptation in the middle"].values[0]
    assert "neither shown nor refuted" in reasons["no co-adaptation at the top"]


def test_a_study_like_the_paper_supports_it() -> None:
    """Enough splits and effects as the paper says: everything testable is supported."""
    frame = made_up.study(
        splits=range(8), seeds=range(3), treatments=EVERYTHING, semantic=True, random_filters=True, effect=_as_the_paper
    )
    found = by_key(results_of(frame))
    assert {v.verdict for v in found.values()} == {SUPPORTED}, {k: (v.verdict, v.reason) for k, v in found.items()}
    assert found["a semantic split loses more"].conditional
    assert found["a semantic split loses more"].p is None


def _as_the_paper(treatment: str, n: int, split: str) -> float:
    if treatment in ("base", "scratch", "base-long"):
        return 0.0
    if treatment == "selffer" and n in (1, 2, 6, 7):
        return 0.0
    if treatment == "transfer" and n in (1, 2):
        return 0.0
    if treatment == "selffer+":
        return 0.001
    if treatment == "transfer+":
        return 0.005 if split == "semantic" else 0.015
    return made_up.paper_like(treatment, n, split)


def test_opposite_effects_contradict() -> None:
    opposite = {"selffer": 0.02, "selffer+": -0.02, "transfer": 0.06, "transfer+": -0.03}
    frame = made_up.study(splits=range(8), treatments=EVERYTHING, effect=lambda t, n, s: opposite.get(t, 0.0))
    found = by_key(results_of(frame))
    for key in (
        "first layers are general", "first layers stand alone", "co-adaptation in the middle",
        "upper layers are specific",
        "fine-tuning recovers co-adaptation", "transfer + fine-tuning improves generalisation",
        "do not freeze the last layers", "fine-tune end to end",
    ):  # fmt: skip
        assert found[key].verdict == CONTRADICTED, (key, found[key].reason)


def test_nothing_is_found_where_there_is_nothing() -> None:
    """Without effects directional claims are hardly ever decided (5 % a family), equalities hold."""
    wrong = total = 0
    for seed in range(12):
        frame = made_up.study(
            splits=range(5), layers=(1, 2, 4, 6, 7), treatments=EVERYTHING, effect=made_up.nothing, generator=seed
        )
        found = by_key(results_of(frame))
        family = [v for v in found.values() if v.claim.family == "advice"]
        wrong += any(v.verdict != UNDECIDED for v in family)
        total += 1
        assert found["first layers are general"].verdict == SUPPORTED
    assert wrong / total <= 0.17, f"{wrong} of {total} families"


@pytest.mark.parametrize("splits", [1, 2])
def test_too_few_units_decide_nothing(splits: int) -> None:
    frame = made_up.study(splits=range(splits), treatments=EVERYTHING)
    assert {v.verdict for v in judge(results_of(frame))} == {UNDECIDED}


def test_one_split_with_seeds_is_conditional() -> None:
    frame = made_up.study(splits=(0,), seeds=range(5), treatments=EVERYTHING)
    found = by_key(results_of(frame))["do not freeze the last layers"]
    assert found.verdict == SUPPORTED
    assert found.conditional
    assert "conditional on this split" in found.reason


def test_the_control_decides_what_transfer_plus_means() -> None:
    """AnB+ above base, but BnB+ just as much: the paper's claim is not supported; only its weaker form is."""
    gain = {"selffer+": 0.015, "transfer+": 0.015}
    frame = made_up.study(splits=range(8), treatments=EVERYTHING, effect=lambda t, n, s: gain.get(t, 0.0))
    found = by_key(results_of(frame))
    assert found["transfer + fine-tuning beats the reference"].verdict == SUPPORTED
    assert found["transfer + fine-tuning improves generalisation"].verdict != SUPPORTED
    without = frame[frame["treatment"] != "base-long"]
    missing = by_key(results_of(without))["transfer + fine-tuning improves generalisation"]
    assert missing.verdict == UNDECIDED
    assert "baseB x2" in missing.reason


def test_unbalanced_studies_say_why() -> None:
    frame = made_up.study(splits=range(4), treatments=EVERYTHING)
    only_a = frame[~((frame["treatment"] == "selffer") & (frame["split_seed"] > 1))]
    found = by_key(results_of(only_a))["upper layers are specific"]
    assert found.verdict == UNDECIDED
    assert "2 splits, a test needs 3" in found.reason


def test_an_equality_needs_every_layer() -> None:
    """A mean over layers hides +2 and -2 points; the claim must not."""
    frame = made_up.study(
        splits=range(8), treatments=EVERYTHING,
        effect=lambda t, n, s: {1: 0.02, 2: -0.02}.get(n, 0.0) if t == "transfer" else 0.0,
    )  # fmt: skip
    assert by_key(results_of(frame))["first layers are general"].verdict == CONTRADICTED


def test_p_values_against_scipy() -> None:
    from scipy import stats

    values = [0.003, 0.011, 0.004, 0.009, 0.001]
    assert p_above(values, 0.0) == pytest.approx(stats.ttest_1samp(values, 0.0, alternative="greater").pvalue)
    low = stats.ttest_1samp(values, -0.005, alternative="greater").pvalue
    high = stats.ttest_1samp(values, 0.005, alternative="less").pvalue
    assert p_equal(values, 0.005) == pytest.approx(max(low, high))
    assert p_unequal([0.02] * 3 + [0.021], 0.005) < 0.01
    assert p_equal([0.0, 0.0, 0.0], 0.005) == 0.0
    assert p_above([0.0, 0.0, 0.0], 0.0) == 0.5


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_error_rate_of_tost_is_kept() -> None:
    """At the edge of the margin an equality is declared in at most about 5 % of studies."""
    rng = np.random.default_rng(0)
    declared = sum(p_equal(list(rng.normal(0.005, 0.002, 5)), 0.005) <= 0.05 for _ in range(2000))
    assert declared / 2000 <= 0.065


def test_diverged_networks_are_kept_and_marked() -> None:
    frame = made_up.study(splits=range(4), treatments=EVERYTHING)
    where = (frame["treatment"] == "transfer") & (frame["n"] == 7) & (frame["split_seed"] == 0)
    frame.loc[where, ["status", "top1_last"]] = ["diverged", 0.2]
    found = by_key(results_of(frame))["do not freeze the last layers"]
    assert "†" in found.values[0]


def test_every_claim_has_a_row() -> None:
    table = verdicts.table(judge(results_of(made_up.study(splits=range(3)))))
    assert len(table.rows) == len(CLAIMS) == len({c.key for c in CLAIMS})
    assert {r[2].split(" (")[0] for r in table.rows} <= {SUPPORTED, CONTRADICTED, UNDECIDED}
    assert isinstance(pd.DataFrame(list(table.records)), pd.DataFrame)
