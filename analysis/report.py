"""report.html: one self-contained page that can be sent on: no network, under 1 MB, light and dark, paper and phone.

Figures are inline SVG with alt texts on white cards; tables are HTML; the table of cells sorts with a few lines of
script and is cut, with a sentence that says so, where it would make the page too large. Whatever is skipped has its
reason on the page.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from analysis.tables import Table
from analysis.vocabulary import count

if TYPE_CHECKING:
    from analysis.results import Results
    from analysis.summary import Summary
    from analysis.verdicts import Judged

LIMIT = 1_000_000
"""bytes"""
FIGURE_LIMIT = 260_000
"""bytes of an inline SVG; a larger one is embedded as PNG"""
ROOM = 60_000
"""bytes kept for the table of cells"""
TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    title: str
    alt: str
    body: str
    """SVG or img element"""
    caption: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that the template shows."""

    results: Results
    summary: Summary
    figures: Sequence[Picture]
    decomposition: Table
    preserved: Table | None
    """only where the study preserves layers"""
    table1: Sequence[Table]
    verdicts: Sequence[Judged]
    verdict_notes: Sequence[str]
    comparison: Picture | None
    comparison_tables: Sequence[Table]
    learning: Picture | None
    skipped: Sequence[str]


def picture(title: str, alt: str, svg: Path, caption: str = "") -> Picture:
    """An SVG file as an inline element, its ids made its own; the PNG beside it where the SVG is too large."""
    text = svg.read_text(encoding="utf-8")
    png = svg.with_suffix(".png")
    text = _compact(text[text.index("<svg") :], f"x{crc32(svg.stem.encode()) % 4096:x}-")
    if len(text) > FIGURE_LIMIT and png.exists():
        data = base64.b64encode(png.read_bytes()).decode()
        return Picture(title, alt, f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">', caption)
    label = html.escape(alt, quote=True)
    opening = f'<svg role="img" aria-label="{label}" '
    text = text.replace("<svg ", opening, 1)
    close = text.index(">", text.index("<svg")) + 1
    return Picture(title, alt, text[:close] + f"<title>{label}</title>" + text[close:], caption)


def _compact(text: str, prefix: str) -> str:
    """The same picture in fewer bytes: no comments, no unused ids, short ones that no other picture of the page has."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = dict.fromkeys(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    short = {(a or b): f"{prefix}{i:x}" for i, (a, b) in enumerate(used)}

    def renamed(match: re.Match[str]) -> str:
        return f' id="{short[match[1]]}"' if match[1] in short else ""

    text = re.sub(r'\s+id="([^"]+)"', renamed, text)
    text = re.sub(r'(?:xlink:)?href="#([^"]+)"', lambda m: f'href="#{short[m[1]]}"', text)
    text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{short[m[1]]})", text)
    text = re.sub(r'style="([^"]*)"', lambda m: f'style="{m[1].replace(": ", ":").replace("; ", ";")}"', text)
    text = re.sub(r" ?\n([MLQCzZ])", r"\1", text)
    return re.sub(r">\s+<", "><", text)


def write(page: Page, out: Path) -> Path:
    """Render the page; the table of cells takes what room is left under 1 MB."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["typeset"] = _typeset
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    rows, under, stored = _shortened(cell_rows(page.results))
    made = provenance(page.results)
    common: dict[str, Any] = {"page": page, "made": made, "count": count, "under": under, "stored": stored}
    bare = template.render(**common, rows=[], left=len(rows))
    for thinner in (replace(page, learning=None), replace(page, learning=None, comparison=None)):
        if len(bare.encode()) > LIMIT - ROOM:
            page = replace(thinner, skipped=[*page.skipped, "a figure that had no room under 1 MB; see its file"])
            common["page"] = page
            bare = template.render(**common, rows=[], left=len(rows))
    kept, size = [], len(bare.encode()) + 20_000
    for row in rows:
        size += sum(len(value.encode()) + 12 for value in row.values()) + 60
        if size > LIMIT:
            break
        kept.append(row)
    path = out / "report.html"
    path.write_text(template.render(**common, rows=kept, left=len(rows) - len(kept)), encoding="utf-8")
    return path


def _typeset(text: object) -> str:
    """Minus signs, and no line break within `[-1.85, +4.95]`, `(4 splits)`, `(n = 1, 3, 5)` or `62.81 (4)`."""
    text = re.sub(r"(?<![\w.])-(?=\d)|(?<= )-(?= )", "\u2212", str(text))
    return re.sub(r"\[[^\]]*\]|\([^()]{,16}\)|\bn = \d+|\d \(\d+\)", lambda m: m[0].replace(" ", "\u00a0"), text)


def _shortened(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], str, str]:
    """Networks and checkpoints without the folders that all share, and these folders. A checkpoint in its network's
    folder is named by its file."""
    under = _folder([row["cell"] for row in rows])
    ends = [(row["cell"] + "/", row["checkpoint"]) for row in rows if row["checkpoint"]]
    roots = {uri.partition(cell)[0] for cell, uri in ends if cell in uri}
    stored = roots.pop() if len(roots) == 1 and all(cell in uri for cell, uri in ends) else ""
    short = [
        {
            **row,
            "cell": row["cell"].removeprefix(under),
            "checkpoint": row["checkpoint"].removeprefix(f"{stored}{row['cell']}/") if stored else row["checkpoint"],
        }
        for row in rows
    ]
    return short, under, stored


def _folder(paths: Sequence[str]) -> str:
    """The folder that all paths share, with its slash; empty where there is none, or one path only."""
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    shared = takewhile(lambda names: len(set(names)) == 1, levels)
    return "".join(f"{names[0]}/" for names in shared) if len(paths) > 1 else ""


def cell_rows(results: Results) -> list[dict[str, str]]:
    """The table of cells: what is not ok first, then in the order of the results. Accuracies in per cent."""
    order = (results.frame["status"] == "ok").argsort(kind="stable")
    frame = results.frame.iloc[order[:6000]]  # more would not fit under 1 MB
    columns = {
        "checkpoint": _column(frame, "checkpoint_uri"),
        "sha": _column(frame, "checkpoint_sha256"),
        "why": [a or b for a, b in zip(_column(frame, "error"), _column(frame, "reason"), strict=True)],
    }
    rows = []
    for i, cell in enumerate(frame.to_dict("records")):
        score, seconds = cell["score"], cell["duration_s"]
        rows.append(
            {
                "cell": str(cell["cell"]),
                "treatment": str(cell["treatment"]),
                "n": str(cell["n"]),
                "split": str(cell["unit"]),
                "way": f"{cell['source'] or '-'} > {cell['target']}",
                "seed": str(cell["seed"]),
                "status": str(cell["status"]),
                "score": "" if score != score else f"{100 * score:.2f}",
                "seconds": "" if seconds != seconds else f"{seconds:.0f}",
                "checkpoint": columns["checkpoint"][i],
                "sha": columns["sha"][i][:12],
                "why": columns["why"][i],
            }
        )
    return rows


def _column(frame: Any, name: str) -> list[str]:
    if name not in frame.columns:
        return [""] * len(frame)
    return ["" if v is None or v != v else str(v) for v in frame[name].tolist()]


def provenance(results: Results) -> list[tuple[str, str]]:
    """How it was made: what the results and the plan beside them say."""
    frame = results.frame
    found = [("results", results.source.name), ("score", results.score)]
    for column, label in (
        ("raygrid_version", "raygrid"),
        ("commit", "commit"),
        ("torch", "PyTorch"),
        ("device", "hardware"),
        ("dataset", "data"),
        ("data_sha256", "data content (sha256)"),
        ("network", "network"),
        ("recipe", "recipe"),
    ):
        values = sorted({v for v in _column(frame.drop_duplicates(column), column) if v}) if column in frame else []
        if values:
            found.append((label, ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")))
    if frame["images_seen"].notna().any():
        found.append(("images seen in training", f"{frame['images_seen'].sum():,.0f}"))
    tracked = results.beside.get("mlflow")
    if isinstance(tracked, str):
        study = results.beside.get("study")
        search = "tags.`raygrid.cell` LIKE '%NETWORK%'"
        found.append(("MLflow", f"{tracked}, experiment raygrid/{study}; the run of a network: search {search}"))
    return found + spent(results) + _versions()


def spent(results: Results) -> list[tuple[str, str]]:
    """Time and money: device-seconds, predicted beside actual, and dollars where plan.json knows the devices' price."""
    plan = results.beside
    machines = _machines(results)
    found = []
    if machines:
        each = [f"{seconds:,.0f} ({duration(seconds)}) on {name}" for name, (seconds, _) in machines.items()]
        found.append(("device-seconds of all networks", "; ".join(each)))
    predicted, actual = _positive(plan.get("predicted_seconds")), _positive(plan.get("wall_seconds"))
    if predicted:
        where = plan.get("predicted_on")
        found.append(("predicted time", duration(predicted) + (f" on {where}" if isinstance(where, str) else "")))
    if actual:
        gap = f" ({100 * (actual / predicted - 1):+.0f} % against predicted)" if predicted else ""
        found.append(("actual time", f"{duration(actual)}{gap}"))
    if machines:
        found.append(("cost", _dollars(machines)))
    return found


def _machines(results: Results) -> dict[str, tuple[float, Mapping[str, Any]]]:
    """Device-seconds and price by machine: plan.json's, else the networks' seconds, which have no price."""
    noted = results.beside.get("machines")
    if isinstance(noted, Mapping) and noted:
        facts = {str(name): m if isinstance(m, Mapping) else {} for name, m in noted.items()}
        prices = {n: p if isinstance(p := m.get("usd_per_hour"), Mapping) else {} for n, m in facts.items()}
        return {n: (_positive(m.get("device_seconds")) or 0.0, prices[n]) for n, m in facts.items()}
    import numpy as np

    names = np.array([name or "an unnamed machine" for name in _column(results.frame, "device")], dtype=object)
    spent = results.frame.groupby(names)["duration_s"].sum()  # a list of names might be taken for columns
    return {str(name): (float(s), {}) for name, s in zip(spent.index, spent, strict=True) if s > 0}


def _dollars(machines: Mapping[str, tuple[float, Mapping[str, Any]]]) -> str:
    """Each machine's hours at its price; in words where it has none."""
    said, counted = [], False
    for name, (seconds, price) in machines.items():
        low, high = _positive(price.get("low")), _positive(price.get("high"))
        if low is None or high is None:
            said.append(f"no price for this machine ({name})")
            continue
        counted, hours = True, seconds / 3600
        said.append(
            f"{_range(low * hours, high * hours)} USD: {hours:,.2f} hours of {name} at {_range(low, high)} USD "
            f"({price.get('of')}, prices of {price.get('date')})"
        )
    return "; ".join(said) + ("; start-up, idle time, head node, storage and traffic not counted" if counted else "")


def _range(low: float, high: float) -> str:
    one, other = f"{low:,.2f}", f"{high:,.2f}"
    return one if one == other else f"{one} to {other}"


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 and math.isfinite(value) else None


def _versions() -> list[tuple[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    names = []
    for name in ("numpy", "pandas", "scipy", "matplotlib"):
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return [("analysed with", ", ".join(names))]


def duration(seconds: float) -> str:
    """`48 s`, `7.2 min`, `3.4 h`, `12.1 days`."""
    for size, unit in ((86400 * 2, "days"), (5400, "h"), (90, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:,.1f} {unit}"
    return f"{seconds:.0f} s"
