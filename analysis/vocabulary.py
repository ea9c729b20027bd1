"""The words of the paper for raygrid's treatments, and which layers each group of claims speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LABELS = {
    "base": "baseB",
    "scratch": "scratch",
    "base-long": "base, twice as long",
    "selffer": "selffer BnB",
    "selffer+": "selffer BnB+",
    "transfer": "transfer AnB",
    "transfer+": "transfer AnB+",
    "random": "random filters",
}
SHORT = {
    "base": "baseB",
    "scratch": "scratch",
    "base-long": "baseB x2",
    "selffer": "BnB",
    "selffer+": "BnB+",
    "transfer": "AnB",
    "transfer+": "AnB+",
    "random": "random",
}
TREATMENTS = tuple(LABELS)
CURVES = ("selffer", "selffer+", "transfer", "transfer+")
"""the treatments of Figure 2, in the order of its legend"""
WITHOUT_N = ("base", "scratch", "base-long")
"""treatments that copy nothing: n = 0, one network a task and seed"""
STATUSES = ("ok", "diverged", "blocked")


def preserved(treatment: str) -> int:
    """How many copied layers above the frozen ones learn: 1 for `selffer-preserve1`; 0 for every plain treatment."""
    plain, _, number = treatment.partition("-preserve")
    return int(number) if plain in SHORT and number.isdecimal() else 0


def short(treatment: str) -> str:
    """`BnB`, or `BnB, preserve 1`."""
    plain = treatment.partition("-preserve")[0]
    return SHORT[plain] + (f", preserve {preserved(treatment)}" if preserved(treatment) else "")


def layers(which: str, depth: int, present: Iterable[int]) -> tuple[int, ...]:
    """The values of n among `present` that a group of layers means in a network of `depth` layers.

    Groups follow the paper's 8 layers and scale with the depth: `first` (n <= 2 of 8), `middle` (3 to 5), `upper`
    (from 4), `top` (6 and 7), `last` (depth - 1), `all`; `dropping` (from 3) is where the paper sees AnB fall.
    """
    rules = {
        "all": lambda n: True,
        "first": lambda n: n <= max(1, depth / 4),
        "middle": lambda n: max(1, depth / 4) < n <= depth * 5 / 8,
        "dropping": lambda n: n > max(1, depth / 4),
        "upper": lambda n: n >= depth / 2,
        "top": lambda n: n >= depth * 3 / 4,
        "last": lambda n: n == depth - 1,
    }
    return tuple(n for n in sorted(set(present)) if 1 <= n < depth and rules[which](n))


def span(values: Sequence[int]) -> str:
    """`3-7`, `1, 3, 5, 7` or `4`."""
    values = sorted(values)
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]}-{values[-1]}"
    return ", ".join(map(str, values))


def count(number: int, word: str) -> str:
    """`1 split`, `4 splits`, `2 halves`."""
    plural = {"half": "halves", "has": "have", "is": "are"}.get(word, word + "s")
    return f"{number:,} {word if number == 1 else plural}"
