"""Every benchmark runs at toy size, and its last line is one JSON object with the figures that the README's table and
people's notes rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kept
from benchmarks.__main__ import NAMES, main

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "frozen_sweep": {"speedup_over_skip", "speedup_over_peer", "ideal_over_skip", "eta", "same_bytes", "top1"},
    "grid_vs_peers": {"peers", "raygrid", "comparisons", "rungs", "top1", "sharing_ideal", "cells_of_peers"},
    "overhead": {"nothing"},
    "fast_paths": {"paths", "cells"},
    "phases": {"bases", "retrain", "start_up_cpu_s"},
    "before": {"speedup", "same_bytes", "commit"},
    "analysis_scale": {"cells", "cpu_s", "peak_gb", "reading_records_cpu_s_of_all"},
    "ingest": {"ingest_images_s", "cpu_of_decoding"},
    "gpu": {"rows", "equality", "synthetic_input", "failed"},
}
MORE = {"overhead": ["--only", "nothing"], "gpu": ["--device", "cpu"]}


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", name, *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", KEYS)
def test_benchmark(name: str) -> None:
    done = run(name, "--quick", *MORE.get(name, []))
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == name and KEYS[name] <= set(figures)
    if name == "before":
        assert figures["same_bytes"]
    elif name == "frozen_sweep":
        assert figures["same_bytes"] and figures["ideal_over_skip"] > 1.5
    elif name == "fast_paths":
        same = {way["name"]: way["same_bytes"] for way in figures["paths"]}
        assert all(same[name] for name in ("chosen", "sgd", "foreach"))
    elif name == "gpu":
        assert not figures["failed"] and figures["equality"]["largest_difference"] == 0
    elif name == "grid_vs_peers":
        assert all(row["ceiling"] > 1 for row in figures["comparisons"])
    elif name == "phases":
        shares = [phase["share"] for phase in figures["retrain"]["phases"].values()]
        assert sum(shares) == pytest.approx(1, abs=0.01)
    # every row of the table can be made from what the benchmark gives
    for row in kept.ROWS.get(name, lambda figures: [])(figures):
        assert len(row) == 3


def test_without_a_gpu_it_says_so() -> None:
    done = run("gpu", CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 2 and "no GPU" in done.stdout


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fast"]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


def test_kept_results_make_the_readme_table() -> None:
    section = kept.readme_section((ROOT / "README.md").read_text())
    if section is not None:
        assert section == kept.table(), "run `python -m benchmarks table` and put it between the README's markers"


def test_kept_results_name_no_place_of_the_machine_they_come_from() -> None:
    for path in sorted(kept.FOLDER.glob("*.json")):
        text = path.read_text()
        assert json.loads(text)["figures"] and "/tmp/" not in text and "/home/" not in text and "/root/" not in text, (
            path
        )
        assert str(ROOT) not in text, path


def test_peers_of_kept_results_learn_as_much_as_raygrid() -> None:
    for data in kept.newest():
        for name, found in data["figures"].get("top1", {}).items():
            assert found["same"], f"{data['benchmark']}: {name} {kept.measure.agreement_text(found)}"


def test_a_result_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(kept.measure, "ROOT", tmp_path)
    figures = {
        "speedup_over_skip": {"median": 1.5, "low": 1.4, "high": 1.6},
        "ideal_over_skip": 1.57,
        "ideal_seconds_over_skip": 1.8,
    }
    figures["speedup_over_peer"] = figures["speedup_over_skip"]
    kept.keep("frozen_sweep", ["--quick"], figures, "a line\n{}\n", kept.before())
    (found,) = kept.newest()
    assert found["command"] == "python -m benchmarks frozen_sweep --quick" and found["output"] == ["a line"]
    assert "1.50 (1.40 to 1.60) x | 1.57 x by FLOPs, 1.80 x by predicted time" in kept.table()
