"""What a study does not have: diverged, blocked and scoreless cells, and holes in an otherwise balanced grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis import scope as scopes
from analysis.results import moved
from analysis.vocabulary import SHORT, WITHOUT_N, count, span

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results
    from analysis.scope import Scope


@dataclass(frozen=True)
class Gaps:
    """Counts, and one line for each kind of gap."""

    cells: int
    ok: int
    diverged: int
    blocked: int
    scoreless: int
    """cells of any status without the headline score"""
    lines: tuple[str, ...]
    """sentences for people, the most important first"""


def find(results: Results) -> Gaps:
    """All gaps of a study."""
    frame = results.frame
    status = frame["status"].value_counts()
    scoreless = frame["score"].isna()
    lines: list[str] = []
    if frame.empty:
        lines.append("There is no cell in these results: nothing has been trained yet, or nothing was exported.")
    for name in ("diverged", "blocked"):
        own = frame[frame["status"] == name]
        if len(own):
            lines.append(f"{count(len(own), 'cell')} {name}: {_where(own)}.")
    dead = frame["status"].eq("diverged") & scoreless
    if dead.any():
        lines.append(
            f"{count(int(dead.sum()), 'diverged cell')} without a score cannot enter any mean: "
            "means at their n are conditional on not diverging."
        )
    failed = moved(frame)
    odd = frame["status"].eq("ok") & scoreless & ~failed
    if odd.any():
        lines.append(
            f"{count(int(odd.sum()), 'cell')} with status ok but without {results.score}: {_where(frame[odd])}."
        )
    if failed.any():
        lines.append(
            f"{count(int(failed.sum()), 'cell')} whose frozen layers MOVED, so in no mean: {_where(frame[failed])}."
        )
    planned = results.beside.get("cells")
    if isinstance(planned, list):
        absent = len(set(map(str, planned)) - set(frame["cell"]))
        if absent:
            lines.append(f"{count(absent, 'planned cell')} of {len(planned):,} without any result yet.")
    lines += unbalanced(scopes.main(results))
    lines += [f"Not in the figures, because of another setting: {line}." for line in scopes.left_out(results)]
    return Gaps(
        cells=len(frame),
        ok=int(status.get("ok", 0)),
        diverged=int(status.get("diverged", 0)),
        blocked=int(status.get("blocked", 0)),
        scoreless=int(scoreless.sum()),
        lines=tuple(lines),
    )


def unbalanced(scope: Scope) -> list[str]:
    """Treatments that do not cover every (task, seed) of the scope, one line each."""
    scored = scope.frame[scope.frame["score"].notna()]
    everything = scope.frame[["task", "seed"]].drop_duplicates()
    lines = []
    for treatment in SHORT:
        own = scored[scored["treatment"] == treatment]
        if own.empty:
            continue
        pairs = own[["n", "task", "seed"]].drop_duplicates()
        have = pairs["n"].value_counts().sort_index().to_dict()
        short = {int(str(n)): int(k) for n, k in have.items() if k < len(everything)}
        if not short:
            continue
        sizes = sorted(set(short.values()))
        of = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        where = "" if treatment in WITHOUT_N else f" at n = {span(list(short))}"
        lines.append(f"{SHORT[treatment]} covers {of} of {len(everything)} pairs of task and seed{where}.")
    return lines


def _where(cells: pd.DataFrame) -> str:
    """`random n = 3 (1), 7 (1)`: treatments and n of some cells."""
    parts = []
    for treatment, own in cells.groupby("treatment", sort=True):
        ns = own["n"].value_counts().sort_index()
        at = "" if treatment in WITHOUT_N else " n = " + ", ".join(f"{n} ({k})" for n, k in ns.items())
        parts.append(f"{treatment}{at}" + (f" ({len(own)})" if treatment in WITHOUT_N else ""))
    return "; ".join(parts)
