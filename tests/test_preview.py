"""Before anything is paid for: what `--dry-run` says, and how fast."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import TINY, make_plan

ROOT = Path(__file__).resolve().parent.parent


def dry_run(capsys: Any, tmp_path: Path, *arguments: str, code: int = 0) -> str:
    from raygrid.launch import main

    study = tmp_path / "study.yaml"
    study.write_text(TINY)
    assert main([str(study), "--out", str(tmp_path / "out"), "--dry-run", *arguments]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_the_largest_study_is_priced_in_seconds(tmp_path: Path) -> None:
    """2,531 networks of ImageNet, every device kind, dollars for the node types of a cluster: CPU seconds."""
    command = [sys.executable, "-m", "raygrid.launch", "yosinski2014-balanced", "--dry-run", "--out", str(tmp_path)]
    command += ["--cluster", str(ROOT / "clusters" / "aws.yaml")]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for pattern in (
        r"networks +2531 \(93 base, 57 scratch, 378 selffer,",
        r"present +0 in the store, 2531 to train",
        r"saves \d+ trainings",
        r"work +7\.28e\+20 FLOP in \d+ cohorts of at most [2-9]\d* networks",
        r"predicted +\d+ h \d\d min of training on 8 L4",
        r"memory +about [\d.]+ GB for the largest cohort",
        r"│ H100 +│ +701\.\d\d │",
        r"g6\.2xlarge \(spot\) +│ +\d+ │ +[\d,.]+ │ +[\d,]+\.\d\d │ +20\d\d-\d\d",
    ):
        assert re.search(pattern, text), (pattern, text)
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 5, f"{spent:.1f} CPU s"
    assert not any(tmp_path.iterdir()), "a dry run leaves nothing"


def test_sharing_is_told_only_where_it_saves_something(tmp_path: Path, capsys: Any) -> None:
    """On CPU cores too many for one cohort each, on several, on a plan without copies; and in the right direction."""
    alone = ["--set", "execution.cohort=1"]
    text = dry_run(capsys, tmp_path, *alone)
    assert "batches are made" not in text and "layers shared" not in text
    found = re.search(
        r"saves (\d+) trainings: (\d+) trainings' .* own base, (\d+) with bases shared, (\d+) with no", text
    )
    assert found, text
    saved, own, shared, forward = map(int, found.groups())
    assert own > shared > forward and abs(own - forward - saved) <= 1
    assert re.search(r"in \d+ cohorts of at most 1 network\n", text)
    text = dry_run(capsys, tmp_path, "--set", "execution.workers=1")
    found = re.search(r"(\d+) with frozen layers shared too; batches are made (\d+) times, not (\d+)", text)
    assert found, text
    trunk, passes, not_shared = map(int, found.groups())
    plan = make_plan()
    assert not_shared == len(plan.cells) + plan.counts["base-long"], "a base-long sees twice the images"
    assert trunk < forward and passes < not_shared
    text = dry_run(capsys, tmp_path, *alone, "--set", "treatments=[scratch]")
    assert "sharing" not in text and re.search(r"work +[\d.]+e\+\d+ FLOP in 1 cohorts", text)
    text = dry_run(capsys, tmp_path, *alone, "--set", "treatments=[base, scratch, base-long]")
    assert "sharing" not in text, text


def test_explain_names_the_fields_that_differ(world: Any, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--store", world.store.url, "--set", "recipe.lr=0.01", "--explain", "A4B random0/50-a-class s0"]
    text = dry_run(capsys, tmp_path, *arguments)
    assert re.search(r"recipe\.lr\W+0\.01\W+.*0\.03", text), text


def test_what_the_store_has_is_counted(world: Any, tmp_path: Path, capsys: Any) -> None:
    text = dry_run(capsys, tmp_path, "--store", world.store.url)
    assert f"present   {len(world.plan.cells)} in the store, 0 to train" in text


def test_data_that_changed_since_the_last_launch_are_told(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out" / "tiny"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"data_sha256": "0123456789abcdef" * 4}))
    assert "changed since the last launch (was 0123456789ab)" in dry_run(capsys, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--explain", "A9B random0 s0"], "did you mean"),
        (["--prices", "mine.csv"], "add --cluster FILE"),
        (["--cluster", "nowhere.yaml"], "nowhere.yaml"),
        (["--out", "~nobody-here/out"], "~nobody-here/out: there is no such home folder"),
        (["--store", "~nobody-here/store"], "~nobody-here/store: there is no such home folder"),
        (["--set", "dataset.path=~nobody-here/data"], "~nobody-here/data: there is no such home folder"),
        (["--store", "ftp://x"], "unknown scheme"),
    ],
)
def test_wrong_questions_get_one_message(arguments: list[str], hint: str, tmp_path: Path, capsys: Any) -> None:
    text = dry_run(capsys, tmp_path, *arguments, code=2)
    assert hint in text and len(text.strip().splitlines()) == 1


def test_questions_of_a_dry_run_are_refused_without_one(tmp_path: Path, capsys: Any) -> None:
    from raygrid.launch import main

    assert main(["icons", "--out", str(tmp_path / "out"), "--explain", "baseA"]) == 2
    assert "--explain goes with --dry-run" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_dry_run_makes_no_folder(tmp_path: Path, capsys: Any) -> None:
    for place in (tmp_path / "one", (tmp_path / "two").as_uri()):
        assert "present   0 in the store" in dry_run(capsys, tmp_path, "--store", str(place))
    dry_run(capsys, tmp_path, "--set", f"dataset.path={(tmp_path / 'three').as_uri()}", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_a_home_that_nobody_has_is_told_by_launch_and_status(tmp_path: Path, capsys: Any) -> None:
    from raygrid import launch, status

    for command, arguments in ((launch, ["--out", str(tmp_path / "out")]), (status, [])):
        assert command.main(["icons", *arguments, "--store", "~nobody-here/store"]) == 2
        assert "~nobody-here/store: there is no such home folder" in capsys.readouterr().err


def test_home_means_the_same_to_a_dry_run_as_to_a_launch(
    world: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(Path(world.store.folder).parent))
    text = dry_run(capsys, tmp_path, "--store", f"~/{Path(world.store.folder).name}")
    assert f"present   {len(world.plan.cells)} in the store, 0 to train" in text


@pytest.mark.parametrize("name", ["local", "kuberay"])
def test_a_cluster_without_prices_is_planned_without_dollars(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    file = str(ROOT / "clusters" / f"{name}.yaml")
    text = dry_run(capsys, tmp_path, "--cluster", file)
    assert "no prices are known of provider" in text and "14 to train" not in text and "USD" not in text
    monkeypatch.setenv("RAYGRID_CLUSTER", file)
    assert dry_run(capsys, tmp_path) == text


CLUSTER = """
max_workers: 4
provider: {type: gcp}
head_node_type: head
available_node_types:
  head: {node_config: {machineType: n1-standard-8}}
  gpu:
    max_workers: 8
    node_config:
      machineType: n1-standard-8
      guestAccelerators: [{acceleratorType: nvidia-tesla-t4, acceleratorCount: 1}]
      scheduling: [{preemptible: true}]
"""


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("max_workers: 4", 'max_workers: "4"', "max_workers: expected a whole number, found '4'"),
        ("max_workers: 8", "max_workers: [8]", "available_node_types.gpu.max_workers: expected a whole number"),
        ("head: {node_config: {machineType: n1-standard-8}}", "head:", "available_node_types.head: expected a group"),
        ("{machineType: n1-standard-8}", "[n1-standard-8]", "available_node_types.head.node_config: expected a group"),
        ("[{acceleratorType", "[5, {acceleratorType", "guestAccelerators: expected a group of keys, found 5"),
        ("acceleratorCount: 1", "acceleratorCount: one", "guestAccelerators: expected a whole number, found 'one'"),
        ("[{preemptible: true}]", "[5]", "scheduling: expected a group of keys, found 5"),
        (CLUSTER[CLUSTER.index("  head:") :], "  {}", "expected the keys provider.type and available_node_types"),
        ("provider: {type: gcp}", "provider: gcp", "expected the keys provider.type and available_node_types"),
        (CLUSTER, "", "expected the keys provider.type and available_node_types"),
    ],
)
def test_a_wrong_cluster_file_is_one_clear_message(old: str, new: str, hint: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "cluster.yaml"
    assert old in CLUSTER
    file.write_text(CLUSTER)
    assert "USD" in dry_run(capsys, tmp_path, "--cluster", str(file))
    file.write_text(CLUSTER.replace(old, new))
    text = dry_run(capsys, tmp_path, "--cluster", str(file), code=2)
    assert f"cluster file {file}: " in text and hint in text and len(text.strip().splitlines()) == 1


def test_prices_that_are_no_table_are_one_clear_message(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prices.csv").write_text(f"provider,{'x' * 200_000}\n")
    arguments = ["--cluster", str(ROOT / "clusters" / "aws.yaml"), "--prices", str(tmp_path / "prices.csv")]
    text = dry_run(capsys, tmp_path, *arguments, code=2)
    assert "prices.csv: cannot be read (field larger" in text and len(text.strip().splitlines()) == 1


def test_a_title_that_cells_share_is_not_explained(tmp_path: Path, capsys: Any) -> None:
    two = ["--set", "grid=[{}, {recipe: {lr: 0.1}}]"]
    text = dry_run(capsys, tmp_path, *two, "--explain", "baseB random0/50-a-class s0", code=2)
    assert "2 cells have this title" in text
    addresses = re.findall(r"digits/\S+?/seed0-[0-9a-f]{12}", text)
    assert len(set(addresses)) == 2
    for address in addresses:
        assert "has no record" in dry_run(capsys, tmp_path, *two, "--explain", address)
    few = ["--set", "grid=[{}, {images_per_class: 20}]"]
    assert "baseB random0/20-a-class s0 has no" in dry_run(
        capsys, tmp_path, *few, "--explain", "baseB random0/20-a-class s0"
    )
