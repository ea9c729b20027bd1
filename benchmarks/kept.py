"""Results that are kept, one dated file a benchmark, and the README's table made from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import measure

FOLDER = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- benchmarks: python -m benchmarks table -->", "<!-- end of benchmarks -->"
"""between these the README holds the table"""


def before() -> dict[str, Any]:
    """What must be noted before a benchmark runs."""
    return {"started": datetime.now(UTC).isoformat(timespec="seconds"), "load": measure.load()}


def keep(name: str, arguments: Sequence[str], figures: dict[str, Any], output: str, began: dict[str, Any]) -> str:
    """Write a result; returns the name of its file."""
    FOLDER.mkdir(exist_ok=True)
    kind = figures.get("kind")
    path = FOLDER / f"{datetime.now(UTC):%Y-%m-%d}-{name}{f'-{kind}' if kind else ''}.json"
    whole = {
        "benchmark": name,
        "command": " ".join(["python -m benchmarks", name, *arguments]),
        **began,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_at_end": measure.load(),
        "machine": measure.machine(),
        "versions": measure.versions(),
        "figures": figures,
        "output": output.splitlines()[:-1],
    }
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return path.relative_to(measure.ROOT).as_posix()


def newest() -> list[dict[str, Any]]:
    """The newest kept result of every kind of every benchmark that has one."""
    found = {}
    for file in sorted(FOLDER.glob("*.json")):
        data = json.loads(file.read_text())
        found[data["benchmark"], data["figures"].get("kind", "")] = data
    return [found[key] for key in sorted(found)]


def table() -> str:
    """The README's table, in Markdown: a line a measured goal, from the newest kept results."""
    lines = ["| what | measured | ideal or goal | on |", "| --- | --- | --- | --- |"]
    for data in newest():
        where = f"{data['machine'].get('gpu') or data['machine']['processor']}, {data['started'][:10]}"
        for what, found, ideal in ROWS.get(data["benchmark"], lambda figures: [])(data["figures"]):
            lines.append(f"| {what} | {found} | {ideal} | {where} |")
    return "\n".join(lines)


def readme_section(text: str) -> str | None:
    """What stands between the markers of a README; None where it has none."""
    if BEGIN not in text or END not in text:
        return None
    return text.split(BEGIN)[1].split(END)[0].strip()


Row = tuple[str, str, str]


def _range(figures: dict[str, float]) -> str:
    return f"{figures['median']:.2f} ({figures['low']:.2f} to {figures['high']:.2f})"


def _frozen_sweep(f: dict[str, Any]) -> list[Row]:
    return [
        (
            "seven frozen networks of one source as a cohort, against seven trainings that skip the frozen backward",
            f"{_range(f['speedup_over_skip'])} x",
            f"{f['ideal_over_skip']:.2f} x by FLOPs, {f['ideal_seconds_over_skip']:.2f} x by predicted time",
        ),
        (
            "the same, against seven plain PyTorch scripts that skip it too",
            f"{_range(f['speedup_over_peer'])} x",
            f"{f['ideal_over_skip']:.2f} x by FLOPs, {f['ideal_seconds_over_skip']:.2f} x by predicted time",
        ),
    ]


def _grid_vs_peers(f: dict[str, Any]) -> list[Row]:
    return [
        (f"the demo's grid, {row['what']}", f"{row['ratio']:.2f} x", f"{row['ceiling']:.2f} x")
        for row in f["comparisons"]
        if row["headline"]
    ]


def _overhead(f: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    if f.get("demo"):
        demo = f["demo"]
        what = "launch of the demo: seconds outside training and tests"
        rows.append((what, f"{demo['outside_s']:.0f} s of {demo['wall_s']:.0f} s", "25 s + 2 %"))
    none = f["nothing"]
    for key, what, goal in (
        ("planned", "in planned cohorts", "below Tune alone"),
        ("literal", "one trial a network", "2 x Tune alone"),
    ):
        mine, alone = none[key], none["tune_alone"]
        found = f"{mine['cpu_s']:.0f} CPU s in {mine['wall_s']:.0f} s, Tune alone "
        found += f"{alone['cpu_s']:.0f} in {alone['wall_s']:.0f} s"
        rows.append((f"{none['cells']:,} networks that train nothing, {what}", found, goal))
    return rows


def _fast_paths(f: dict[str, Any]) -> list[Row]:
    return [
        (f"training {way['what']}, CPU seconds over those of raygrid's way", f"{_range(way['cost'])} x", "")
        for way in f["paths"][1:]
    ]


def _before(f: dict[str, Any]) -> list[Row]:
    what = f"training since commit {f['commit'][:7]}, {'the same' if f['same_bytes'] else 'other'} bytes"
    return [(what, f"{_range(f['speedup'])} x", "")]


def _plan_scale(f: dict[str, Any]) -> list[Row]:
    big = f["scale"][-1]
    return [
        (f"{big['cells']:,} networks planned", f"{big['plan_cpu_s']:.1f} CPU s", "2 s"),
        ("makespan over its bound, to 8 devices", f"{f['worst_ratio_to_8']:.3f}", "1.05"),
        ("makespan over its bound, to 128 devices", f"{f['worst_ratio_beyond']:.3f}", "1.15"),
        (
            "the same, over critical path and work alone (a weaker bound)",
            f"{f['worst_ratio_beyond_without_crowding']:.3f}",
            "1.15",
        ),
    ]


def _analysis_scale(f: dict[str, Any]) -> list[Row]:
    found = f"{f['cpu_s']:.1f} CPU s, {f['peak_gb']:.1f} GB"
    return [(f"{f['cells']:,} networks x {f['evaluations']} tests exported and analysed", found, "10 s, 4 GiB")]


def _ingest(f: dict[str, Any]) -> list[Row]:
    killed = ", killed half way and resumed" if f["killed"] else ""
    to = " to S3" if f.get("kind") == "s3" else ""
    what = f"{f['images']:,} JPEGs ingested{to}{killed}, over {f['workers']} cores x one thread that only decodes"
    return [(what, f"{f['of_cores_x_one_thread']:.2f}", f"{f['target']}")]


def _gpu(f: dict[str, Any]) -> list[Row]:
    return [
        (f"{row['what']} on {f['device']}", f"{row['images_per_s']:,.0f} images/s, {row['mfu']:.0%} of peak", "36 %")
        for row in f["rows"]
        if row.get("mfu") is not None
    ]


ROWS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "frozen_sweep": _frozen_sweep,
    "grid_vs_peers": _grid_vs_peers,
    "overhead": _overhead,
    "fast_paths": _fast_paths,
    "before": _before,
    "plan_scale": _plan_scale,
    "analysis_scale": _analysis_scale,
    "ingest": _ingest,
    "gpu": _gpu,
}
