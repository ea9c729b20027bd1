"""What a frozen transfer network loses, taken apart: fragile co-adaptation and specificity (paper, section 4.1).

    co-adaptation(n) = reference - BnB     lost although the layers come from the same task
    specificity(n)   = BnB - AnB           lost because they come from another one

Each on tasks and seeds that have both sides; both are positive where something is lost. The reference is `scratch`;
a study without it falls back on `base`, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.contrasts import Contrast, contrast
from analysis.tables import Table, diverged_note, points, record, with_units
from analysis.vocabulary import SHORT

if TYPE_CHECKING:
    from analysis.scope import Scope

MOST = 12
"""units that a table prints one by one"""
PARTS: dict[str, dict[str, float]] = {
    "co-adaptation": {"reference": 1, "selffer": -1},
    "specificity": {"selffer": 1, "transfer": -1},
    "both": {"reference": 1, "transfer": -1},
}


@dataclass(frozen=True)
class Decomposition:
    """The parts of the loss in one scope."""

    scope: Scope
    parts: dict[str, Contrast]
    layers: tuple[int, ...]


def decompose(scope: Scope) -> Decomposition:
    """The contrasts of one scope; n are those of its frozen networks."""
    frozen = scope.frame[scope.frame["treatment"].isin(["selffer", "transfer"])]
    parts = {name: contrast(scope, weights) for name, weights in PARTS.items()}
    return Decomposition(scope, parts, tuple(sorted(int(n) for n in frozen["n"].unique())))


def _each(values: list[float]) -> str:
    """All units up to a dozen; beyond, their range."""
    if len(values) > MOST:
        return f"{points(min(values))} to {points(max(values))}"
    return "; ".join(points(v) for v in values) or "-"


def table(scopes: list[Scope]) -> Table:
    """One row a population and n."""
    rows, records, notes, dagger = [], [], [], 0
    for scope in scopes:
        found = decompose(scope)
        for n in found.layers:
            line = [scope.title, str(n)]
            for name, part in found.parts.items():
                value = part.at([n])
                dagger += value.diverged
                reason = part.reason or ("" if value.units else f"no task has both at n = {n}")
                line.append(with_units(value, reason))
                entry: dict[str, object] = {"splits": scope.title, "n": n, "part": name, "formula": part.name}
                records.append(entry | record(value, reason))
            specific = found.parts["specificity"].at([n])
            line.append(_each([-v for v in specific.values]))
            rows.append(line)
        if found.layers and found.parts["co-adaptation"].fallback:
            notes.append(f"{scope.title}: no scratch network, so the reference is {SHORT['base']}, the parent of BnB.")
    columns = ["splits", "n", "co-adaptation: reference - BnB", "specificity: BnB - AnB", "both: reference - AnB"]
    columns.append("AnB - BnB, each unit")
    notes.insert(
        0, "Percentage points; positive = lost. Same task and seed on both sides; 95 % Student-t from 3 units up."
    )
    if dagger:
        notes.append(diverged_note(dagger))
    return Table("decomposition", "Decomposition of the loss of frozen transfer", columns, rows, records, notes)
