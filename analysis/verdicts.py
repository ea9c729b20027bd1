"""Supported, contradicted or not decided: how a claim is judged.

The rule, fixed before the results:
1. Every part is estimated on paired differences; the unit is the split, or the seed where there is one split (then
   the verdict is "conditional on this split"). Fewer than 3 units, units without any scatter, or no shared task: not
   decided, with the reason.
2. A direction is tested by t on the mean over the part's layers; units that lack one of the layers averaged are left
   out, and the layers are those that leave most (`Contrast.covered`). An equality is tested by two one-sided t-tests
   at every layer; the layers jointly take the worst p. A layer of its group that cannot be tested, or where a network
   diverged, leaves it open. Each part has a p for the claim and a p against it (for an equality: that some layer lies
   beyond the margin, Bonferroni over its layers).
3. All parts must hold: the p for a claim is the largest of its parts, the p against it the smallest times their
   number. One part that cannot be estimated leaves the claim undecided, unless another part contradicts it.
4. For or against, whichever is smaller, is the claim's p (doubled, at most 1: two sides were looked at). Holm over the
   claims of one family that have a p. Adjusted p <= 0.05: supported, or contradicted; else not decided.
5. Layers are named after the joint test only: those whose own test passes Holm within the claim, at the same level.
6. One semantic split is one unit: no p-value. Its difference to the mean of the random splits is held against their
   scatter: a 95 % prediction interval for one more random split. Below it, and lowest of all, supported; above it, and
   highest of all, contradicted; else, or with fewer than 3 random splits, not decided. Its rank is given, and with 3
   seeds a Welch interval, conditional on this split, which says how well the difference is known, not how rare it is.
7. Networks that diverged keep their score, and the verdict says so. Those that have none (diverged early, or blocked by
   a base that did) must not change it: everything is judged again with chance in their place, and what differs is not
   decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analysis import scope as scopes
from analysis.claims import CLAIMS, Claim, Part, Semantic
from analysis.contrasts import Contrast, contrast
from analysis.tables import DAGGER, Table, points, with_units
from analysis.units import EMPTY, FEWEST, Estimate, deviation, quantile
from analysis.vocabulary import SHORT, count, layers, span

if TYPE_CHECKING:
    from analysis.results import Results
    from analysis.scope import Scope

LEVEL = 0.05
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not decided"


@dataclass(frozen=True)
class Judged:
    """One claim's verdict."""

    claim: Claim
    verdict: str
    reason: str
    p: float | None = None
    """for or against, two-sided, before Holm; None where the claim cannot be tested"""
    adjusted: float | None = None
    """after Holm over the family"""
    favours: bool = False
    """whether `p` speaks for the claim"""
    conditional: bool = False
    diverged: int = 0
    """pairs behind the estimates that include a diverged network"""
    named: tuple[int, ...] = ()
    """layers that hold by themselves, after the joint test"""
    values: tuple[str, ...] = ()
    """each part's estimate"""


@dataclass(frozen=True)
class _Tested:
    part: Part
    found: Contrast
    estimate: Estimate
    layers: tuple[int, ...]
    p_for: float | None = None
    p_against: float | None = None
    why: str = ""


def judge(results: Results, claims: Sequence[Claim] = CLAIMS) -> list[Judged]:
    """A verdict on every claim, Holm-adjusted within families (rules 1 to 7)."""
    found = _judge(results, claims)
    filled, lost = _with_chance(results)
    if not lost:
        return found
    return [_agreed(one, other, lost) for one, other in zip(found, _judge(filled, claims), strict=True)]


def _with_chance(results: Results) -> tuple[Results, int]:
    """Rule 7: the results with chance for networks that diverged or were blocked without a score, and how many."""
    frame = results.frame.copy()
    lost = frame["score"].isna() & frame["status"].isin(["diverged", "blocked"])
    frame.loc[lost, "score"] = (1 / frame.loc[lost, "classes"]).fillna(0.0)
    frame.loc[lost, "status"] = "diverged"
    return replace(results, frame=frame), int(lost.sum())


def _agreed(found: Judged, filled: Judged, lost: int) -> Judged:
    """The verdict, if it stands with chance for the lost networks too."""
    if found.values == filled.values and found.verdict == filled.verdict:
        return found
    said = f"with chance for networks without a score ({lost} in this study) it would be {filled.verdict}"
    verdict = found.verdict if found.verdict == filled.verdict else UNDECIDED
    return replace(
        found, verdict=verdict, named=() if verdict == UNDECIDED else found.named, reason=f"{found.reason}; {said}"
    )


def _judge(results: Results, claims: Sequence[Claim]) -> list[Judged]:
    """Rules 1 to 6."""
    first = [_semantic(c, c.semantic, results) if c.semantic else _tested(c, results) for c in claims]
    families: dict[str, list[Judged]] = {}
    for verdict in first:
        if verdict.p is not None:
            families.setdefault(verdict.claim.family, []).append(verdict)
    adjusted = {
        v.claim.key: a
        for family in families.values()
        for v, a in zip(family, holm([v.p for v in family if v.p is not None]), strict=True)
    }
    return [_decided(v, adjusted[v.claim.key], results) if v.claim.key in adjusted else v for v in first]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = running
    return adjusted


def p_above(values: Sequence[float], threshold: float) -> float:
    """One-sided t-test that the mean is above the threshold. The values must differ."""
    sd = deviation(values)
    gap = math.fsum(values) / len(values) - threshold
    from scipy.special import stdtr

    return float(stdtr(len(values) - 1, -gap / (sd / math.sqrt(len(values)))))


def p_equal(values: Sequence[float], margin: float) -> float:
    """Two one-sided t-tests that the mean lies within the margin around zero."""
    return max(p_above(values, -margin), 1 - p_above(values, margin))


def p_unequal(values: Sequence[float], margin: float) -> float:
    """That the mean lies beyond the margin, on either side (Bonferroni)."""
    return min(1.0, 2 * min(p_above(values, margin), 1 - p_above(values, -margin)))


def _scope(part: Part, results: Results) -> Scope | None:
    if part.where == "main":
        return scopes.main(results)
    if part.where == "dissimilar":
        return scopes.other(results)
    return next(iter(scopes.random_filters(results)), None)


def _test(part: Part, results: Results) -> _Tested:
    """p for and against one part, or why there is none."""
    scope = _scope(part, results)
    if scope is None and part.where == "dissimilar":
        found = contrast(scopes.main(results), part.weights, ())
        return _Tested(part, found, EMPTY, (), why=f"{found.name}: this study has no split of dissimilar halves")
    found = contrast(scope or scopes.main(results), part.weights)
    if not found.identified:
        return _Tested(part, found, EMPTY, (), why=f"{found.name}: not identified, {found.reason}")
    group = layers(part.layers, results.depth, range(1, results.depth))
    if part.says == "equal":
        return _equality(part, found, group)
    chosen = found.covered(group)
    estimate = found.over(chosen)
    blank = _Tested(part, found, estimate, chosen)
    if not chosen:
        return replace(blank, why=f"{found.name}: no network at the layers of this claim ({part.layers})")
    if why := _untestable(found, estimate):
        return replace(blank, why=f"{found.name}: {why}")
    up = p_above(estimate.values, part.threshold)
    p_for, p_against = (up, 1 - up) if part.says == "above" else (1 - up, up)
    return replace(blank, p_for=p_for, p_against=p_against)


def _untestable(found: Contrast, estimate: Estimate) -> str:
    """Why there is no t-test of these units; empty where there is."""
    units = found.splits(estimate)
    if units < FEWEST:
        return f"{count(units, 'split' if found.several else estimate.kind)}, a test needs {FEWEST}"
    return "" if estimate.sd > 0 else f"no scatter between the {units} units, so no test"


def _equality(part: Part, found: Contrast, group: tuple[int, ...]) -> _Tested:
    """Two one-sided tests at every layer of the group. A layer without one, or with a network that diverged, can be
    outvoted by none: the claim may then be contradicted only."""
    each = {n: found.at([n]) for n in group}
    chosen = found.covered(group)
    blank = _Tested(part, found, found.over(chosen), chosen)
    able = [n for n in group if not _untestable(found, each[n])]
    p_against = min((p_unequal(each[n].values, part.threshold) for n in able), default=1.0) * len(group)
    blank = replace(blank, p_against=min(1.0, p_against) if able else None)
    whys = [f"{found.name} at n = {n}: {_untestable(found, each[n])}" for n in group if n not in able]
    whys += [f"{found.name} at n = {n}: {count(each[n].diverged, 'pair')} diverged" for n in able if each[n].diverged]
    if whys:
        return replace(blank, why="; ".join(whys))
    return replace(blank, p_for=max(p_equal(each[n].values, part.threshold) for n in able))


def _tested(claim: Claim, results: Results) -> Judged:
    """The claim's p, before Holm."""
    tests = [_test(part, results) for part in claim.parts]
    missing = [t.why for t in tests if t.why]
    against = [t.p_against for t in tests if t.p_against is not None]
    blank = Judged(
        claim,
        UNDECIDED,
        "; ".join(missing),
        conditional=any(t.estimate.conditional for t in tests if t.found.identified),
        values=tuple(_said(t) for t in tests),
        diverged=sum(t.estimate.diverged for t in tests),
    )
    if not against:
        return blank
    p_against = min(1.0, len(claim.parts) * min(against))
    p_for = 1.0 if missing else max(t.p_for for t in tests if t.p_for is not None)
    return replace(blank, p=min(1.0, 2 * min(p_for, p_against)), favours=p_for <= p_against)


def _decided(verdict: Judged, adjusted: float, results: Results) -> Judged:
    """The verdict after Holm, its reason in words, and the layers that hold by themselves."""
    said = f"p = {_p(adjusted)} after Holm over the family {verdict.claim.family!r}"
    if verdict.conditional:
        said += ", conditional on this split"
    if verdict.diverged:
        said += f"; {count(verdict.diverged, 'pair')} with a diverged network"
    if adjusted > LEVEL:
        reason = f"{said}: neither shown nor refuted"
        return replace(verdict, adjusted=adjusted, reason=f"{verdict.reason}; {reason}" if verdict.reason else reason)
    word = SUPPORTED if verdict.favours else CONTRADICTED
    named = _named(verdict.claim, results) if verdict.favours else ()
    if named:
        said += f"; by themselves: n = {span(named)}"
    return replace(verdict, verdict=word, adjusted=adjusted, reason=said, named=named)


def _named(claim: Claim, results: Results) -> tuple[int, ...]:
    """Layers of a one-part claim that pass their own test, Holm within the claim."""
    if len(claim.parts) != 1:
        return ()
    part, test = claim.parts[0], _test(claim.parts[0], results)
    able = [n for n in test.layers if not _untestable(test.found, test.found.at([n]))]
    ps = []
    for n in able:
        values = test.found.at([n]).values
        if part.says == "equal":
            p = p_equal(values, part.threshold)
        else:
            up = p_above(values, part.threshold)
            p = up if part.says == "above" else 1 - up
        ps.append(min(1.0, 2 * p))
    return tuple(n for n, p in zip(able, holm(ps), strict=True) if p <= LEVEL)


def _said(test: _Tested) -> str:
    """`AnB - BnB at n = 1, 2: +0.07 [..] (4 splits)`."""
    at = f" at n = {span(test.layers)}" if test.layers else ""
    text = f"{test.found.name}{at}: {with_units(test.estimate, test.found.reason)}"
    if test.part.says == "equal" and test.found.identified and len(test.layers) > 1:
        text += "; each " + ", ".join(points(test.found.at([n]).mean) for n in test.layers)
    if test.found.fallback and test.found.identified:
        text += f"; no scratch, so against {SHORT[test.found.fallback]}"
    return text


def _semantic(claim: Claim, asked: Semantic, results: Results) -> Judged:
    """Rule 6: rank and prediction interval, no p-value."""
    other = scopes.other(results)
    if other is None:
        return Judged(claim, UNDECIDED, "this study has no semantic or other split beside the random ones")
    against = scopes.peers(results, other)
    if against is None:
        return Judged(claim, UNDECIDED, "this study has no random splits to hold the other split against")
    ours, theirs = contrast(other, asked.weights), contrast(against, asked.weights)
    for found, where in ((ours, other), (theirs, against)):
        if not found.identified:
            return Judged(claim, UNDECIDED, f"{found.name} on {where.title}: not identified, {found.reason}")
    shared = set(ours.layers) & set(theirs.layers)
    chosen = theirs.covered(layers(asked.layers, results.depth, shared))
    here, there = ours.over(chosen), theirs.over(chosen)
    if not chosen or not here.units or not there.units:
        return Judged(claim, UNDECIDED, f"no n of the claim's layers ({asked.layers}) on both kinds of split")
    at = f"{ours.name} at n = {span(chosen)}"
    values = (f"{at}, {other.title}: {with_units(here)}", f"{at}, {against.title}: {with_units(there)}")
    gap = here.mean - there.mean
    said = f"{points(gap)} points against the mean of {against.title}"
    blank = Judged(claim, UNDECIDED, said, conditional=True, diverged=here.diverged + there.diverged, values=values)
    if there.kind != "split" or _untestable(theirs, there):
        return replace(blank, reason=f"{said}; no interval: it needs {FEWEST} random splits that differ")
    rank = 1 + sum(v < here.mean for v in there.values)
    last = there.units + 1
    reach = quantile(there.units - 1) * there.sd * math.sqrt(1 + 1 / there.units)
    said += f"; rank {rank} of {last} from below, with the random splits; one more random split would lie within "
    said += f"{100 * reach:.2f} points of their mean (95 %)"
    if here.kind == "seed" and not _untestable(ours, here):
        low, high = _welch(here.values, there.values)
        said += f"; known to [{points(low)}, {points(high)}], conditional on this split"
    if not scopes.equal_terms(other, against):
        said += "; not on equal terms (other class counts or setting)"
    if gap < -reach and rank == 1:
        return replace(blank, verdict=SUPPORTED, reason=f"{said} (for this split)")
    if gap > reach and rank == last:
        return replace(blank, verdict=CONTRADICTED, reason=f"{said} (for this split)")
    return replace(blank, reason=said)


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the difference of two means with unequal scatter."""
    from scipy.special import stdtrit

    va, vb = deviation(a) ** 2 / len(a), deviation(b) ** 2 / len(b)
    gap = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    if va + vb == 0:
        return gap, gap
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(va + vb)
    return gap - half, gap + half


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.095 else f"{value:.2f}"


def table(verdicts: Sequence[Judged], interim: str = "") -> Table:
    """claims.md and claims.csv; `interim` says how much of an unfinished study they stand on."""
    rows, records = [], []
    for v in verdicts:
        mark = " (conditional on this split)" if v.conditional and v.verdict != UNDECIDED else ""
        rows.append([v.claim.key, v.claim.text, v.verdict + mark, v.reason, "; ".join(v.values)])
        records.append(
            {
                "claim": v.claim.key,
                "family": v.claim.family,
                "section": v.claim.source,
                "verdict": v.verdict,
                "conditional": v.conditional,
                "interim": bool(interim),
                "p": "" if v.p is None else f"{v.p:.6g}",
                "p_holm": "" if v.adjusted is None else f"{v.adjusted:.6g}",
                "layers": " ".join(map(str, v.named)),
                "reason": v.reason,
                "estimates": "; ".join(v.values),
                "text": v.claim.text,
            }
        )
    notes = [
        *filter(None, [interim]),
        "Percentage points. Directions by t on the mean over the layers, equalities by two one-sided t-tests within "
        "0.5 points at every layer, Holm over each family at 0.05; the unit is the split. Fewer than 3 units or no "
        "shared task: not decided. One semantic split is one unit, held against the scatter of the random ones: rank "
        "and prediction interval, no p-value.",
        *(
            [f"{DAGGER} = includes diverged networks."]
            if any(DAGGER in value for v in verdicts for value in v.values)
            else []
        ),
    ]
    columns = ["claim", "in words", "verdict", "reason", "estimates"]
    return Table("claims", "The paper's claims on these results", columns, rows, records, notes)
