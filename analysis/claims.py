"""The claims of Yosinski et al. (2014), written down before any of our results, as estimands that can fail.

A claim is one or more parts; a part is a weighted sum of treatments (paired on task, seed and n), the layers that it
speaks of, and what it says: `above` or `below` a threshold, or `equal` to zero within a margin. All parts must hold.
Layers are tested jointly: a directional part tests the mean over its layers, an equality tests every layer of its
group and takes the worst. Only after the joint test is a single layer named (Holm within the claim).

Margins are in fractions; 0.005 (half a percentage point) unless the claim says otherwise. `reference` is scratch,
else base. Layer groups are those of `vocabulary.layers`, which follow the paper's 8 layers and scale with depth.
How a claim is judged: `verdicts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MARGIN = 0.005
Says = Literal["above", "below", "equal"]


@dataclass(frozen=True)
class Part:
    """One estimand and what is said of it."""

    weights: Mapping[str, float]
    says: Says
    layers: str = "all"
    """group of n, see vocabulary.layers"""
    threshold: float = 0.0
    """above or below what (a fraction); the margin for `equal`"""
    where: Literal["main", "random filters", "dissimilar"] = "main"
    """which cells: the splits of Figure 2, the study's random filters, or the split of dissimilar halves"""


@dataclass(frozen=True)
class Semantic:
    """Other split minus random splits, of one paired difference: one semantic split is one unit."""

    weights: Mapping[str, float]
    layers: str


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and what would make it true."""

    key: str
    family: str
    """claims of one family share their error rate (Holm)"""
    source: str
    """section of the paper"""
    text: str
    parts: tuple[Part, ...] = ()
    semantic: Semantic | None = None


def equal(weights: Mapping[str, float], layers: str) -> Part:
    """Equivalent to zero within half a point."""
    return Part(weights, "equal", layers, MARGIN)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "first layers are general",
        "frozen",
        "4.1",
        "Layers 1 and 2 transfer as well from other classes as from the same: AnB = BnB at n = 1, 2.",
        (equal({"transfer": 1, "selffer": -1}, "first"),),
    ),
    Claim(
        "first layers stand alone",
        "frozen",
        "4.1",
        "Freezing one's own first two layers costs nothing: BnB = reference at n = 1, 2.",
        (equal({"selffer": 1, "reference": -1}, "first"),),
    ),
    Claim(
        "co-adaptation in the middle",
        "frozen",
        "4.1",
        "Freezing one's own middle layers costs accuracy: BnB is below the reference at n = 3 to 5.",
        (Part({"selffer": 1, "reference": -1}, "below", "middle"),),
    ),
    Claim(
        "no co-adaptation at the top",
        "frozen",
        "4.1",
        "With only the last layers to learn, BnB is back at the reference (n = 6, 7).",
        (equal({"selffer": 1, "reference": -1}, "top"),),
    ),
    Claim(
        "upper layers are specific",
        "frozen",
        "4.1",
        "Upper layers from other classes are worse than one's own: AnB is below BnB from n = 4.",
        (Part({"transfer": 1, "selffer": -1}, "below", "upper"),),
    ),
    Claim(
        "specificity dominates at the top",
        "frozen",
        "4.1",
        "At n = 6, 7 specificity (BnB - AnB) costs more than co-adaptation (reference - BnB).",
        (Part({"reference": 1, "selffer": -2, "transfer": 1}, "below", "top"),),
    ),
    Claim(
        "fine-tuning recovers co-adaptation",
        "fine-tuned",
        "4.1",
        "Freezing costs in the middle, and letting the copied layers learn undoes it: BnB is below the reference at "
        "n = 3 to 5, BnB+ is above BnB there, and nowhere below the reference.",
        (
            Part({"selffer": 1, "reference": -1}, "below", "middle"),
            Part({"selffer+": 1, "selffer": -1}, "above", "middle"),
            Part({"selffer+": 1, "reference": -1}, "above", "all", -MARGIN),
        ),
    ),
    Claim(
        "transfer + fine-tuning improves generalisation",
        "fine-tuned",
        "4.1",
        "AnB+ is above the reference, and also above BnB+ and above a base trained twice as long, "
        "so that neither retraining nor compute explains it.",
        (
            Part({"transfer+": 1, "reference": -1}, "above"),
            Part({"transfer+": 1, "selffer+": -1}, "above"),
            Part({"transfer+": 1, "base-long": -1}, "above"),
        ),
    ),
    Claim(
        "transfer + fine-tuning beats the reference",
        "fine-tuned",
        "4.1",
        "AnB+ is above the reference (whatever the reason: see the claim before).",
        (Part({"transfer+": 1, "reference": -1}, "above"),),
    ),
    Claim(
        "a semantic split loses more",
        "dissimilar",
        "4.2",
        "Frozen transfer between dissimilar halves loses more than between random ones (AnB, from n = 4).",
        semantic=Semantic({"transfer": 1, "base": -1}, "upper"),
    ),
    Claim(
        "a semantic split gains less",
        "dissimilar",
        "4.2",
        "The same with fine-tuning: AnB+ between dissimilar halves is worse than between random ones.",
        semantic=Semantic({"transfer+": 1, "base": -1}, "all"),
    ),
    Claim(
        "random filters are far below learned ones",
        "random filters",
        "4.3",
        "Frozen random filters are more than 5 points below learned ones, the base of the same task.",
        (Part({"random": 1, "base": -1}, "below", "all", -0.05, "random filters"),),
    ),
    Claim(
        "distant features beat random ones",
        "random filters",
        "4.3",
        "Even features of dissimilar classes are better than untrained ones: AnB of the dissimilar split is above "
        "random filters on the same task.",
        (Part({"transfer": 1, "random": -1}, "above", "all", where="dissimilar"),),
    ),
    Claim(
        "do not freeze the last layers",
        "advice",
        "5",
        "Frozen transfer of all but the last layer is below the reference.",
        (Part({"transfer": 1, "reference": -1}, "below", "last"),),
    ),
    Claim(
        "fine-tune end to end",
        "advice",
        "5",
        "Letting the transferred layers learn is better than freezing them: AnB+ is above AnB.",
        (Part({"transfer+": 1, "transfer": -1}, "above"),),
    ),
)
