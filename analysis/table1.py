"""Table 1 of the paper: what transfer with fine-tuning (AnB+) gains, in three forms that answer different questions.

pooled       as published: the mean over all AnB+ runs of a range of n minus the mean over all base runs (or over all
             BnB+ runs of the range); every run weighs 1 and nothing is paired. Halves differ in difficulty, so it
             compares different tasks wherever a study is unbalanced, as the authors' logs are
own base     each run minus the base of its own task and seed, averaged over runs; AnB+ and BnB+ apart, and the
             difference of the two. If no task has both, that difference still compares different tasks
paired       AnB+ minus scratch, base and BnB+ on the same task, seed and n; units are splits (law 9)

A comparison whose sides share no task is marked "not identified" wherever a number of it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.contrasts import Contrast, contrast
from analysis.tables import DAGGER, NOT_IDENTIFIED, Table, points, record, with_units
from analysis.vocabulary import SHORT, count, span

if TYPE_CHECKING:
    import pandas as pd

    from analysis.scope import Scope


@dataclass(frozen=True)
class Range:
    """A row of Table 1: all n from `low` to the last one."""

    low: int
    high: int
    present: tuple[int, ...]

    @property
    def label(self) -> str:
        """`3-7`; what the study has of it where that is less."""
        full = f"{self.low}-{self.high}" if self.high > self.low else str(self.low)
        return full if len(self.present) == self.high - self.low + 1 else f"{full} (n = {span(self.present)})"


def ranges(scope: Scope, depth: int) -> list[Range]:
    """1-7, 3-7 and 5-7 for 8 layers; fewer rows for fewer layers."""
    plus = scope.frame[scope.frame["treatment"].isin(["transfer+", "selffer+"])]
    ns = sorted(int(n) for n in plus["n"].unique())
    found = []
    for low in (1, 3, 5):
        present = tuple(n for n in ns if low <= n < depth)
        if present and low <= max(1, depth - 3):
            found.append(Range(low, depth - 1, present))
    return found


def tables(scope: Scope, depth: int) -> list[Table]:
    """The three forms, in the order above."""
    rows = ranges(scope, depth)
    return [_pooled(scope, rows), _own_base(scope, rows), _paired(scope, rows)]


def _runs(scope: Scope, treatment: str, layers: Sequence[int] | None) -> pd.DataFrame:
    frame = scope.frame
    chosen = (frame["treatment"] == treatment) & frame["score"].notna()
    if layers is not None:
        chosen &= frame["n"].isin(list(layers))
    return frame.loc[chosen, ["task", "score", "status"]]


def _dead(*runs: pd.DataFrame) -> int:
    return sum(int((r["status"] == "diverged").sum()) for r in runs)


def _pooled(scope: Scope, rows: Sequence[Range]) -> Table:
    texts, records, dagger, unidentified = [], [], 0, ""
    for layers in rows:
        gained = _runs(scope, "transfer+", layers.present)
        line = [layers.label]
        for against, where in (("base", None), ("selffer+", layers.present)):
            others = _runs(scope, against, where)
            shared = contrast(scope, {"transfer+": 1, against: -1}, layers.present)
            entry: dict[str, object] = {
                "form": "pooled",
                "layers": layers.label,
                "comparison": f"AnB+ - {SHORT[against]}",
            }
            if gained.empty or others.empty:
                line.append(f"{NOT_IDENTIFIED}: {shared.reason}")
                records.append(entry | record(shared.at(()), shared.reason))
                continue
            value = gained["score"].mean() - others["score"].mean()
            dead = _dead(gained, others)
            dagger += dead
            mark = "" if shared.identified else f", {NOT_IDENTIFIED}"
            unidentified = unidentified or shared.reason
            line.append(f"{points(value, 1)}{DAGGER if dead else ''} ({len(gained)} - {len(others)} runs{mark})")
            records.append(
                entry
                | {
                    "identified": shared.identified,
                    "reason": shared.reason,
                    "points": f"{100 * value:.4f}",
                    "low": "",
                    "high": "",
                    "units": len(gained),
                    "unit": "run",
                    "conditional": "",
                    "tasks": int(gained["task"].nunique()),
                    "cells": len(gained) + len(others),
                    "diverged": dead,
                    "values": "",
                    "verdict": "" if shared.identified else "not decided",
                }
            )
        texts.append(line)
    notes = [
        "Percentage points. Pooled as published (Yosinski et al. 2014, Table 1): mean over runs minus mean over runs, "
        "unpaired, so halves of different difficulty may stand on the two sides. No interval: runs are no units.",
        f"Splits: {scope.title}.",
    ]
    if unidentified:
        notes.append(f"{NOT_IDENTIFIED}: {unidentified}; the number compares different tasks. Verdict: not decided.")
    if dagger:
        notes.append(f"{DAGGER} includes diverged networks.")
    columns = ["layers kept", "AnB+ over baseB", "AnB+ over BnB+"]
    return Table("table1", "Table 1, pooled as in the paper: mean boost of AnB+", columns, texts, records, notes)


def _own_base(scope: Scope, rows: Sequence[Range]) -> Table:
    texts, records, reason, dagger = [], [], "", 0
    for layers in rows:
        line, means = [layers.label], []
        for treatment in ("transfer+", "selffer+"):
            found = contrast(scope, {treatment: 1, "base": -1}, layers.present)
            entry: dict[str, object] = {"form": "own base", "layers": layers.label, "comparison": found.name}
            if not found.identified:
                line.append(f"{NOT_IDENTIFIED}: {found.reason}")
                records.append(entry | record(found.at(()), found.reason))
                continue
            means.append(float(found.cells.mean()))
            dead = found.at(layers.present).diverged
            dagger += dead
            line.append(f"{points(means[-1])}{DAGGER if dead else ''} ({count(len(found.cells), 'run')})")
            entry |= record(found.at(layers.present))
            records.append(
                entry
                | {
                    "points": f"{100 * means[-1]:.4f}",
                    "low": "",
                    "high": "",
                    "unit": "run",
                    "units": len(found.cells),
                    "values": "",
                }
            )
        both = contrast(scope, {"transfer+": 1, "selffer+": -1}, layers.present)
        reason = reason or both.reason
        entry = {"form": "own base", "layers": layers.label, "comparison": "(AnB+ - baseB) - (BnB+ - baseB)"}
        if len(means) == 2:
            mark = "" if both.identified else f" ({NOT_IDENTIFIED})"
            line.append(points(means[0] - means[1]) + mark)
            records.append(
                entry
                | record(both.at(layers.present), both.reason)
                | {"points": f"{100 * (means[0] - means[1]):.4f}", "low": "", "high": "", "unit": "run", "values": ""}
                | {"verdict": "" if both.identified else "not decided"}
            )
        else:
            line.append(f"{NOT_IDENTIFIED}: {both.reason}")
            records.append(entry | record(both.at(()), both.reason) | {"verdict": "not decided"})
        texts.append(line)
    notes = ["Percentage points; each run minus the base of its own task and seed, then the mean over runs (weight 1)."]
    if reason:
        notes.append(f"Difference {NOT_IDENTIFIED}: {reason}. Verdict: not decided.")
    if dagger:
        notes.append(f"{DAGGER} includes diverged networks.")
    columns = ["layers kept", "AnB+ over own base", "BnB+ over own base", "difference"]
    return Table("table1", "Table 1, adjusted by each task's own base", columns, texts, records, notes)


def _paired(scope: Scope, rows: Sequence[Range]) -> Table:
    texts, records, dagger = [], [], 0
    for layers in rows:
        line = [layers.label]
        for against in ("scratch", "base", "selffer+"):
            found: Contrast = contrast(scope, {"transfer+": 1, against: -1}, layers.present)
            chosen = found.covered(layers.present)
            value = found.over(chosen)
            dagger += value.diverged
            only = f" (n = {span(chosen)})" if found.identified and chosen != layers.present else ""
            line.append(with_units(value, found.reason) + only)
            entry: dict[str, object] = {"form": "paired", "layers": layers.label, "comparison": found.name}
            records.append(
                entry | record(value, found.reason) | ({} if found.identified else {"verdict": "not decided"})
            )
        texts.append(line)
    notes = [
        "Percentage points, on the same task, seed and n. The unit is the split (mean over its halves and seeds); "
        "brackets: 95 % Student-t interval, from 3 units up. Where some n have 3 units, n with fewer are left out.",
    ]
    if dagger:
        notes.append(f"{DAGGER} includes diverged networks.")
    columns = ["layers kept", "AnB+ over scratch", "AnB+ over baseB", "AnB+ over BnB+"]
    return Table("table1", "Table 1, paired: boost of AnB+ on the same tasks", columns, texts, records, notes)
