"""The study in one page: question, answer in two sentences, means by treatment and n, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis import figure2
from analysis import gaps as gap
from analysis import scope as scopes
from analysis.contrasts import Contrast, contrast
from analysis.tables import DAGGER, NOT_IDENTIFIED, Table, points
from analysis.units import Estimate
from analysis.vocabulary import SHORT, count, span

if TYPE_CHECKING:
    from analysis.results import Results
    from analysis.scope import Scope
    from analysis.verdicts import Judged


@dataclass(frozen=True)
class Summary:
    """Everything that the first screen of a report says."""

    title: str
    question: str
    answer: tuple[str, str]
    table: Table
    gaps: gap.Gaps
    notes: tuple[str, ...]
    verdicts: tuple[tuple[str, str], ...] = ()
    """claim and verdict, in the order of claims.py"""
    interim: str = ""
    """of an unfinished study, how much of it the verdicts stand on"""

    def markdown(self) -> str:
        """summary.md"""
        lines = [
            f"# {self.title}",
            "",
            f"**Question.** {self.question}",
            "",
            f"**Answer.** {' '.join(self.answer)}",
            "",
        ]
        lines += [self.table.markdown()]
        if self.verdicts:
            lines += ["## The paper's claims on these results", ""]
            lines += [f"**{self.interim}**", ""] if self.interim else []
            lines += ["Reasons and estimates: claims.md.", ""]
            lines += [f"- {claim}: **{verdict}**" for claim, verdict in self.verdicts] + [""]
        lines += ["## What is missing or diverged", ""]
        lines += [f"- {line}" for line in (tally(self.gaps), *self.gaps.lines)]
        if self.notes:
            lines += ["", "## Read with the results", "", *[f"- {note}" for note in self.notes]]
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """The same for a terminal, shorter."""
        widths = [
            max(len(row[i]) for row in [self.table.columns, *self.table.rows]) for i in range(len(self.table.columns))
        ]
        lines = [self.title, "", *self.answer, ""]
        for row in [self.table.columns, *self.table.rows]:
            lines.append(
                "  ".join(
                    c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
                )
            )
        if self.verdicts:
            said = [v for _, v in self.verdicts]
            counted = ", ".join(f"{said.count(v)} {v}" for v in ("supported", "contradicted", "not decided"))
            lines += ["", f"The paper's claims on these results: {counted} (claims.md)."]
            lines += [self.interim] if self.interim else []
        return "\n".join([*lines, "", tally(self.gaps), *self.gaps.lines])


def summarise(results: Results, verdicts: Sequence[Judged] = ()) -> Summary:
    """The summary of a study."""
    scope = scopes.main(results)
    found = gap.find(results)
    title = f"{results.study}: {count(found.cells, 'network')}, {scope.title}"
    said = tuple((v.claim.key, v.verdict) for v in verdicts)
    table = means(scope, results)
    return Summary(title, results.question, answer(scope), table, found, results.notes, said, interim(results))


def interim(results: Results) -> str:
    """Of a study whose plan has networks without any result: that its verdicts are not the last."""
    planned, total = results.beside.get("cells"), results.beside.get("networks")
    done = len(results.frame)
    if isinstance(planned, list):
        total, done = len(planned), len(set(map(str, planned)) & set(results.frame["cell"]))
    if not isinstance(total, int) or done >= total:
        return ""
    return f"Interim: {done:,} of {total:,} networks. What is said of the claims may still change."


def tally(gaps: gap.Gaps) -> str:
    """`148 cells: 141 ok, 7 diverged, 0 blocked.`"""
    return f"{count(gaps.cells, 'cell')}: {gaps.ok:,} ok, {gaps.diverged:,} diverged, {gaps.blocked:,} blocked."


def answer(scope: Scope) -> tuple[str, str]:
    """Two sentences: what freezing costs and what fine-tuning gains, on the same tasks, with uncertainty and units."""
    frozen = contrast(scope, {"transfer": 1, "reference": -1})
    tuned = contrast(scope, {"transfer+": 1, "reference": -1})
    control = contrast(scope, {"transfer+": 1, "selffer+": -1})
    if frozen.identified:
        ns = _covered(frozen)
        one = f"Copying {_layers(ns[0])} and freezing changes accuracy by {_said(frozen.at(ns[:1]))}"
        if len(ns) > 1:
            one += f", copying {_layers(ns[-1])} by {_said(frozen.at(ns[-1:]))}"
        one += f", against {_against(frozen)} on the same tasks."
    else:
        one = f"What frozen transfer costs is {NOT_IDENTIFIED}: {frozen.reason}."
    if tuned.identified:
        ns = _covered(tuned)
        two = f"Fine-tuning the copied layers too changes it, averaged over n = {span(ns)}, by "
        two += f"{_said(tuned.over(ns))} against {_against(tuned)}"
    else:
        two = f"What transfer with fine-tuning gains is {NOT_IDENTIFIED}: {tuned.reason}"
    if control.identified:
        ns = _covered(control)
        two += f", and by {_said(control.over(ns))} against BnB+, the control that never saw the other classes."
    else:
        two += (
            f"; against BnB+, the control that never saw the other classes, it is {NOT_IDENTIFIED}: {control.reason}."
        )
    return one, two


def _covered(found: Contrast) -> tuple[int, ...]:
    return found.covered(found.layers)


def _layers(n: int) -> str:
    return "the first layer" if n == 1 else f"the first {n} layers"


def _against(found: Contrast) -> str:
    return "scratch" if not found.fallback else f"{SHORT['base']} (this study has no scratch on them)"


def _said(found: Estimate) -> str:
    """`-8.26 points [-8.57, -7.95] (4 splits)`."""
    text = f"{points(found.mean)}{DAGGER if found.diverged else ''} points"
    if found.interval:
        text += f" [{points(found.interval[0])}, {points(found.interval[1])}]"
        return f"{text} ({found.who})"
    return f"{text} ({found.who}; no interval below 3)"


def _with_filters(scope: Scope) -> Scope:
    """The splits of a scope that have random filters: not all need have them."""
    own = scope.frame[(scope.frame["treatment"] == "random") & scope.frame["score"].notna()]
    return scopes.Scope(own, scope.population)


def means(scope: Scope, results: Results) -> Table:
    """Mean accuracy in per cent by treatment and n, with the number of units."""
    found = figure2.lines(scope)
    filters = {_with_filters(s).title: figure2.lines_of(s, "random") for s in scopes.random_filters(results)}
    rows, records, dagger = [], [], 0
    ns = list(range(0, results.depth))
    sources = [(t, SHORT[t], m, scope.title) for t, m in found.items()]
    for where, by_n in filters.items():
        sources.append(("random", SHORT["random"] + (f", {where}" if len(filters) > 1 else ""), by_n, where))
    for treatment, name, by_n, where in sources:
        line = [name]
        for n in ns:
            estimate = by_n.get(n)
            if estimate is None:
                line.append("")
                continue
            dagger += estimate.diverged
            line.append(f"{100 * estimate.mean:.2f}{DAGGER if estimate.diverged else ''} ({estimate.units})")
            records.append(
                {
                    "treatment": treatment,
                    "splits": where,
                    "n": n,
                    "percent": f"{100 * estimate.mean:.4f}",
                    "units": estimate.units,
                    "unit": estimate.kind,
                    "conditional": estimate.conditional,
                    "cells": estimate.cells,
                    "diverged": estimate.diverged,
                }
            )
        rows.append(line)
    each = [e for _, _, by_n, _ in sources for e in by_n.values()]
    kind = {e.kind for e in each}
    notes = [
        f"Mean {results.score} in per cent over {scope.title}; in brackets the number of units "
        f"({' or '.join(sorted(k + 's' for k in kind)) or 'none yet'}). "
        "Differences are in the paired figure and tables.",
    ]
    if any(e.conditional for e in each):
        notes.append("Where only one split counts, the units are seeds: conditional on this split.")
    if len(filters) == 1:
        notes.append(f"Random filters: {next(iter(filters))}.")
    if dagger:
        notes.append(f"{DAGGER} includes diverged networks.")
    return Table(
        "means", "Top-1 accuracy by treatment and n", ["treatment", *[f"n = {n}" for n in ns]], rows, records, notes
    )
