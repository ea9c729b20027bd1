"""One table, three forms: Markdown, LaTeX (booktabs) and CSV; and the one way to write a number with its units."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.units import Estimate
from analysis.vocabulary import count

DAGGER = "†"
NOT_IDENTIFIED = "not identified"
FORMS = ("md", "tex", "csv")


@dataclass(frozen=True)
class Table:
    """Texts for people, and the same facts as plain records for machines."""

    name: str
    """file name without suffix"""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[dict[str, object]]
    """rows of the CSV: numbers in percentage points, empty where there is none"""
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """A GitHub table with its title and notes."""
        lines = [f"### {self.title}", ""]
        lines += ["| " + " | ".join(_cell(c) for c in self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(_cell(c) for c in row) + " |" for row in self.rows] or ["| |"]
        return "\n".join([*lines, "", *[f"- {note}" for note in self.notes]]).rstrip() + "\n"

    def latex(self) -> str:
        """A `table` with booktabs rules; needs `\\usepackage{booktabs}` only."""
        widths = "l" + "r" * (len(self.columns) - 1)
        head = [r"\begin{table}[htbp]", r"\centering\small", rf"\caption{{{tex(_caption(self.title))}}}"]
        head += [rf"\begin{{tabular}}{{@{{}}{widths}@{{}}}}", r"\toprule"]
        body = [" & ".join(_shortstack(c) for c in self.columns) + r" \\", r"\midrule"]
        body += [" & ".join(_shortstack(c) for c in row) + r" \\" for row in self.rows]
        foot = [r"\bottomrule", r"\end{tabular}"]
        if self.notes:
            foot += [r"\par\smallskip\begin{minipage}{\linewidth}\footnotesize"]
            foot += [tex(note) + r"\par" for note in self.notes] + [r"\end{minipage}"]
        return "\n".join([*head, *body, *foot, r"\end{table}"]) + "\n"

    def csv(self) -> str:
        """The records, with a header."""
        text = io.StringIO()
        names = list(dict.fromkeys(key for record in self.records for key in record))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()


def save(tables: Sequence[Table], out: Path, name: str, forms: Sequence[str] = FORMS) -> list[Path]:
    """Write tables that belong together as one file a form; gives the paths."""
    paths = []
    for form in forms:
        if form == "csv":
            text = tables[0].csv() if len(tables) == 1 else _joined(tables).csv()
        else:
            text = "\n".join(t.markdown() if form == "md" else t.latex() for t in tables)
        path = out / f"{name}.{form}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _joined(tables: Sequence[Table]) -> Table:
    records = [record for table in tables for record in table.records]
    return Table(tables[0].name, "", (), (), records)


def points(value: float, digits: int = 2) -> str:
    """A difference of accuracies as percentage points, with its sign: `+0.97`."""
    return f"{100 * value:+.{digits}f}"


def with_units(found: Estimate, reason: str = "") -> str:
    """`+0.97 [+0.51, +1.43] (4 splits)`; without an interval below 3 units; the reason where not identified."""
    if reason or not found.units:
        return f"{NOT_IDENTIFIED}: {reason or 'no network with a score'}"
    text = points(found.mean)
    if found.interval:
        text += f" [{points(found.interval[0])}, {points(found.interval[1])}]"
    return f"{text}{DAGGER if found.diverged else ''} ({found.who})"


def record(found: Estimate, reason: str = "") -> dict[str, object]:
    """An estimate as CSV fields, in percentage points; empty numbers where it is not identified."""
    if reason or not found.units:
        return {
            "identified": False,
            "reason": reason or "no network with a score",
            "points": "",
            "low": "",
            "high": "",
            "units": 0,
            "unit": "",
            "conditional": "",
            "tasks": 0,
            "cells": 0,
            "diverged": 0,
            "values": "",
        }
    low, high = found.interval or ("", "")
    return {
        "identified": True,
        "reason": "",
        "points": _number(found.mean),
        "low": _number(low),
        "high": _number(high),
        "units": found.units,
        "unit": found.kind,
        "conditional": found.conditional,
        "tasks": found.tasks,
        "cells": found.cells,
        "diverged": found.diverged,
        "values": " ".join(
            f"{name.replace(' ', '')}:{points(v)}" for name, v in zip(found.names, found.values, strict=True)
        ),
    }


def diverged_note(diverged: int) -> str:
    """What the dagger means."""
    return (
        f"{DAGGER} the mean includes {count(diverged, 'pair')} with a diverged network: a result, kept and marked."
        if diverged
        else ""
    )


def tex(text: str) -> str:
    """Escape for LaTeX; the few typographic signs used here become commands."""
    for plain, escaped in (
        ("\\", r"\textbackslash "),
        ("&", r"\&"),
        ("%", r"\%"),
        ("$", r"\$"),
        ("#", r"\#"),
        ("_", r"\_"),
        ("{", r"\{"),
        ("}", r"\}"),
        ("~", r"\textasciitilde{}"),
        ("^", r"\textasciicircum{}"),
        (DAGGER, r"$^\dagger$"),
        ("±", r"$\pm$"),
        ("−", "$-$"),
        ("≥", r"$\geq$"),
        ("<", r"$<$"),
        (">", r"$>$"),
    ):
        text = text.replace(plain, escaped)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)  # a minus, no hyphen


def _caption(title: str) -> str:
    """LaTeX numbers its tables itself."""
    bare = title.removeprefix("Table 1, ")
    return bare[:1].upper() + bare[1:]


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{100 * value:.4f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _shortstack(text: str) -> str:
    """Long cells of a table break before their brackets, so that a page holds it."""
    parts = text.replace(f"{NOT_IDENTIFIED}: ", f"{NOT_IDENTIFIED}:\n").replace(" [", "\n[").replace(" (", "\n(")
    lines = [tex(part) for part in parts.split("\n")]
    # a bracket after \\ would be read as its optional argument
    lines = ["{" + line + "}" if line.startswith("[") else line for line in lines]
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{\rule{0pt}{2.6ex}" + r"\\".join(lines) + "}"
