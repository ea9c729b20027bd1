"""Laws: however it ran (workers, shards, kills, place), ingest gives one content hash; bad images are listed, and the
policy is obeyed."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from test_decode import UNREADABLE

from raygrid.data import making
from raygrid.data.arrays import open_arrays, open_folder, publish
from raygrid.data.cache import verify
from raygrid.data.known import facts, prepare
from raygrid.data.manifest import read_manifest
from raygrid.data.sources import list_source
from raygrid.errors import DataError, EnvironmentError_, StoreError
from raygrid.ingest import ingest, main, parser
from raygrid.store import Store
from raygrid.study import Dataset


def serial(function: Any, items: Iterable[Any]) -> Iterable[Any]:
    return map(function, items)


def backwards(function: Any, items: Any) -> Iterable[Any]:
    return map(function, reversed(items))


QUIET: dict[str, Any] = {"progress": False, "parallel_map": serial}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as handle:
        return list(csv.reader(handle))


def test_one_hash_however_it_runs(image_folder: Path, tmp_path: Path) -> None:
    plain = ingest(image_folder, tmp_path / "plain", size=24, **QUIET)
    verify(tmp_path / "plain", plain)
    assert plain.classes == ("bus", "car", "cloud", "sun")
    assert plain.train == (24,) * 4 and plain.test == (7,) * 4
    assert read_manifest(tmp_path / "plain") == plain
    again = ingest(image_folder, tmp_path / "again", size=24, progress=False, parallel_map=backwards)
    assert again == plain, "the order of the results reached the manifest"
    for name, options in {
        "two workers": {"workers": 2, "parallel_map": None},
        "small shards": {"shard_mb": 0.01},
        "another name": {"name": "other", "licence": "mine"},
    }.items():
        made = ingest(image_folder, tmp_path / name, size=24, **{**QUIET, **options})
        assert made.sha256 == plain.sha256, name
        verify(tmp_path / name, made)
    assert len(read_manifest(tmp_path / "small shards").shards) == 16 + 5
    for name, options in {"size": {"size": 25}, "aspect": {"size": 24, "keep_aspect": True}}.items():
        changed = ingest(image_folder, tmp_path / name, **QUIET, **options)
        assert (changed.sha256 == plain.sha256) == (name == "aspect"), "icons are square: aspect changes nothing"


def test_what_goes_in_comes_out(image_folder: Path, tmp_path: Path) -> None:
    from raygrid.data.decode import pixels

    made = ingest(image_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET)
    images = open_folder(tmp_path / "out", made).train
    files = sorted((image_folder / "train").glob("*/train_*"))
    assert len(files) == len(images) == 96
    for row, file in enumerate(files):
        assert made.classes[images.labels[row]] == file.parent.name
        assert np.array_equal(images.gather(np.array([row]))[0], pixels(file.read_bytes(), 24))


@pytest.mark.fault("images in both training and test")
def test_images_in_both_parts_are_listed(image_folder: Path, tmp_path: Path) -> None:
    made = ingest(image_folder, tmp_path / "out", size=24, **QUIET)
    found = rows(tmp_path / "out" / "duplicates.csv")
    assert ["cloud/val_000.png", "cloud/train_003.png"] in found
    assert made.preprocessing["in both parts"].startswith(f"{len(found) - 1} test images")


# --- bad images ------------------------------------------------------------------------------------------------------


def spoil(folder: Path) -> list[str]:
    """Put one of every kind of bad image into the training part."""
    names = []
    for i, kind in enumerate(UNREADABLE):
        name = ("bus", "sun")[i % 2] + f"/bad_{i:02d}.jpg"
        (folder / "train" / name).write_bytes(UNREADABLE[kind][0])
        names.append(name)
    (folder / "train" / "sun" / "train_001.JPEG").rename(folder / "train" / "sun" / "train_001.PNG")  # misnamed: read
    (folder / "train" / "car" / "nowhere.jpg").symlink_to(folder / "nothing")
    (folder / "train" / "car" / "folder.jpg").mkdir()
    return sorted([*names, "car/nowhere.jpg"])


@pytest.mark.fault("unreadable images, left out and listed")
def test_unreadable_images_are_left_out_and_listed(own_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    bad = spoil(own_folder)
    made = ingest(own_folder, tmp_path / "out", size=24, on_error="skip", shard_mb=0.01, **QUIET)
    listed = rows(tmp_path / "out" / "unreadable.csv")
    assert listed[0] == ["part", "file", "reason"]
    assert sorted(row[1] for row in listed[1:]) == bad and all(row[2] for row in listed[1:])
    assert made.train == (24,) * 4
    verify(tmp_path / "out", made)
    (own_folder / "train" / "sun" / "train_001.PNG").rename(own_folder / "train" / "sun" / "train_001.JPEG")
    clean = ingest(image_folder, tmp_path / "clean", size=24, **QUIET)
    for name in bad:
        (own_folder / "train" / name).unlink()
    assert ingest(own_folder, tmp_path / "mended", size=24, **QUIET).sha256 == clean.sha256
    assert sorted(made.train_sha256) and made.test_sha256 == clean.test_sha256


@pytest.mark.parametrize("policy", [{}, {"on_error": "skip", "max_skipped": 3}])
def test_the_policy_stops_and_the_next_run_goes_on(own_folder: Path, tmp_path: Path, policy: dict[str, Any]) -> None:
    bad = spoil(own_folder)
    with pytest.raises(DataError, match=r"(?s)unreadable images .*--on-error skip --max-skipped") as caught:
        ingest(own_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET, **policy)
    assert "bad_00.jpg: " in str(caught.value) and "unreadable.csv" in str(caught.value)
    assert len(rows(tmp_path / "out" / "unreadable.csv")) > 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match="unreadable"):  # nor is it forgotten by the second run
        ingest(own_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET, **policy)
    made = ingest(own_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET, on_error="skip", max_skipped=len(bad))
    assert sum(made.train) == 96
    with pytest.raises(DataError, match=f"{len(bad)} unreadable"):
        other = {"on_error": "skip", "max_skipped": len(bad) - 1}
        ingest(own_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET, **other)


@pytest.mark.fault("a class without a readable image")
def test_a_class_of_bad_images(own_folder: Path, tmp_path: Path) -> None:
    for path in (own_folder / "val" / "car").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the test images of car could be read"):
        ingest(own_folder, tmp_path / "out", size=24, on_error="skip", **QUIET)


# --- kills and resuming ----------------------------------------------------------------------------------------------


@pytest.mark.fault("an ingest that is killed")
def test_killed_and_resumed(image_folder: Path, tmp_path: Path) -> None:
    options = {"size": 512, "shard_mb": 0.8}
    whole = ingest(image_folder, tmp_path / "whole", **options, **QUIET)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "raygrid.ingest", str(image_folder), str(out), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--size=512", "--shard-mb=0.8"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(list((out / ".ingest").glob("t*.json") if (out / ".ingest").exists() else ())) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not (out / "manifest.json").exists(), "it ended before it could be killed"
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "worker processes outlived their parent"
    before = {path: path.stat().st_mtime_ns for path in (out / ".ingest").glob("t*.json")}
    made: list[making.Unit] = []

    def counting(function: Any, items: Any) -> Iterable[Any]:
        made.extend(items)
        return map(function, items)

    resumed = ingest(image_folder, out, **options, name=whole.name, progress=False, parallel_map=counting)
    assert resumed.model_copy(update={"source": ""}) == whole.model_copy(update={"source": ""})
    assert len(made) == 124 - len(before), "finished shards were made again"
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    verify(out, resumed)
    made.clear()
    assert ingest(image_folder, out, **options, name=whole.name, progress=False, parallel_map=counting) == resumed
    assert not made


@pytest.mark.s3
def test_killed_and_resumed_on_s3(
    s3_server: dict[str, str], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unkilled run into a folder; a run into a bucket, killed and resumed: one content hash."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    options = {"size": 512, "shard_mb": 0.8, "name": "mine"}
    whole = ingest(image_folder, tmp_path / "whole", **options, **QUIET)
    url = "s3://data/killed"
    store = Store(url)
    command = [sys.executable, "-m", "raygrid.ingest", str(image_folder), url, "--workers", "2", "--name", "mine"]
    process = subprocess.Popen([*command, "--size=512", "--shard-mb=0.8"], stderr=subprocess.DEVNULL)

    def notes() -> dict[str, bytes]:
        return store.find_many([path for path in store.list(".ingest") if "job" not in path])

    while len(notes()) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert store.find("manifest.json") is None, "it ended before it could be killed"
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "worker processes outlived their parent"
    before = notes()
    made: list[making.Unit] = []

    def counting(function: Any, items: Any) -> Iterable[Any]:
        made.extend(items)
        return map(function, items)

    resumed = ingest(image_folder, url, **options, progress=False, parallel_map=counting)
    assert resumed.sha256 == whole.sha256 and resumed == whole
    assert len(made) == 124 - len(before), "finished shards were made again"
    assert before.items() <= notes().items()
    folder = tmp_path / "fetched"
    folder.mkdir()
    for path in store.list():
        if "/" not in path:
            (folder / path).write_bytes(store.get(path))
    verify(folder, resumed)


def test_the_benchmark_knows_the_cpu_time_of_a_run_that_is_killed(image_folder: Path, tmp_path: Path) -> None:
    """Workers whose parent was killed are nobody's children: what they used must be asked before."""
    from benchmarks.ingest import run

    _, much, killed = run(image_folder, str(tmp_path / "killed"), 4096, 1, kill_at=6)  # two images a shard
    _, little, ended = run(image_folder, str(tmp_path / "whole"), 64, 1)
    assert killed and not ended
    assert much > 2 * little, "12 images of 4096 pixels a side cost more than two starts"


@pytest.mark.fault("a shard that is gone")
def test_a_note_whose_shard_is_gone_is_not_believed(image_folder: Path, tmp_path: Path) -> None:
    first = ingest(image_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET)
    (tmp_path / "out" / first.shards[3].images).unlink()
    (tmp_path / "out" / ".ingest" / "train-00005.json").write_bytes(b"{garbage")
    again = ingest(image_folder, tmp_path / "out", size=24, shard_mb=0.01, **QUIET)
    assert again == first
    verify(tmp_path / "out", again)


def test_a_place_of_something_else_is_refused(image_folder: Path, own_folder: Path, tmp_path: Path) -> None:
    ingest(image_folder, tmp_path / "out", size=24, **QUIET)
    with pytest.raises(DataError, match="size: 24 then, 25 now"):
        ingest(image_folder, tmp_path / "out", size=25, **QUIET)
    (own_folder / "train" / "sun" / "train_001.JPEG").unlink()
    with pytest.raises(DataError, match="begun with other images or options"):
        ingest(own_folder, tmp_path / "out", size=24, **QUIET)
    with pytest.raises(DataError, match="is not empty"):
        ingest(image_folder, own_folder, size=24, **QUIET)
    (tmp_path / "out" / ".ingest" / "job.json").write_text("garbage")
    with pytest.raises(DataError, match="begun with other"):
        ingest(image_folder, tmp_path / "out", size=24, **QUIET)


@pytest.mark.fault("a worker of an ingest that dies")
def test_a_worker_that_dies(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raygrid.ingest import process_map

    with pytest.raises(EnvironmentError_, match="run the same command again"):
        list(process_map(1)(_die, [1, 2]))  # type: ignore[arg-type,list-item]


def _die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- on Ray ----------------------------------------------------------------------------------------------------------


def test_on_ray_it_is_the_same(image_folder: Path, tmp_path: Path, ray_here: Any) -> None:
    from raygrid.grid import ray_map

    plain = ingest(image_folder, tmp_path / "plain", size=24, **QUIET)
    made = ingest(image_folder, tmp_path / "ray", size=24, shard_mb=0.05, progress=False, parallel_map=ray_map)
    assert made.sha256 == plain.sha256 and len(made.shards) > 4
    verify(tmp_path / "ray", made)


@pytest.mark.fault("a worker of an ingest on Ray that fails, or dies again and again")
def test_what_fails_on_ray_is_one_line(ray_here: Any, record_property: Callable[[str, object], None]) -> None:
    from raygrid.grid import ray_map

    def full(item: int) -> int:
        if item == 3:
            raise StoreError("the disk is full")
        return item

    def die(item: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(StoreError, match=r"^the disk is full$"):
        list(ray_map(full, range(5), at_once=1))
    with pytest.raises(EnvironmentError_, match="run the same command again") as lost:
        list(ray_map(die, [1]))
    assert "\n" not in str(lost.value)
    record_property("faults", 2)


# --- places and sources ----------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_to_s3_and_back(
    s3_server: dict[str, str], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    url = "s3://data/images"
    made = ingest(image_folder, url, size=64, shard_mb=0.1, name="mine", **QUIET)
    local = ingest(image_folder, tmp_path / "local", size=64, name="mine", **QUIET)
    assert made.sha256 == local.sha256 and len(made.shards) > len(local.shards)
    assert ingest(image_folder, url, size=64, shard_mb=0.1, name="mine", progress=False, parallel_map=_never) == made
    dataset = Dataset(name="mine", path=url, sha256=made.sha256)
    assert facts(dataset) == made.facts()
    store = Store("s3://data/store")
    publish(*prepare(dataset), store)
    opened = open_arrays(store, made.sha256)
    reference = open_folder(tmp_path / "local", local)
    everything = np.arange(96)
    assert np.array_equal(opened.train.gather(everything), reference.train.gather(everything))


def _never(function: Any, items: Any) -> Iterable[Any]:
    raise AssertionError("made again")


def test_class_folders_alone(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's command for images of one's own."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (line,) = re.findall(r"^python -m raygrid\.ingest ~/images (.*?)  +#.* one folder a class", readme, re.M)
    source, out = image_folder / "train", tmp_path / "out"
    arguments = line.replace("~/images-64", str(out)).split()
    assert main([str(source), *arguments]) == 0
    made = read_manifest(out)
    verify(out, made)
    assert made.train == (22,) * 4 and made.test == (2,) * 4 and made.image_size == 64
    assert "1 in 10 images (at least one)" in made.preprocessing["test part"]
    said = capsys.readouterr().out
    assert made.preprocessing["test part"] in said
    assert "CLASS/FILE has the smallest sha256" in " ".join(parser().format_help().split())
    # the same files in the same parts, but parted by hand, are another job with the same hash
    listing = list_source(source)
    for part, folder in (("train", "train"), ("test", "val")):
        for entry in listing.entries[part]:
            (tmp_path / "parted" / folder / entry.file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / entry.file, tmp_path / "parted" / folder / entry.file)
    parted = ingest(tmp_path / "parted", tmp_path / "other", size=64, **QUIET)
    assert parted.sha256 == made.sha256 and "test part" not in parted.preprocessing
    with pytest.raises(DataError, match="begun with other images or options"):
        ingest(tmp_path / "parted", out, size=64, **QUIET)
    whole = ingest(source, tmp_path / "whole", test=image_folder / "val", size=24, **QUIET)
    assert whole.sha256 == ingest(image_folder, tmp_path / "plain", size=24, **QUIET).sha256


def test_parquet(image_folder: Path, tmp_path: Path) -> None:
    """The same images as Parquet files give the same data set as class folders."""
    files = {part: sorted((image_folder / part).glob("*/[tv]*.[pJ]*")) for part in ("train", "val")}
    (tmp_path / "pq").mkdir()
    for part, name, start, stop in (
        ("train", "train-0", 0, 50), ("train", "train-1", 50, 96), ("val", "validation-0", 0, 28),
    ):  # fmt: skip
        held = files[part][start:stop]
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in held]
        table = pa.table({"image": images, "label": [path.parent.name for path in held]})
        pq.write_table(table, tmp_path / "pq" / f"{name}.parquet", row_group_size=7)
    made = ingest(tmp_path / "pq", tmp_path / "out", size=24, shard_mb=0.02, **QUIET)
    assert made.sha256 == ingest(image_folder, tmp_path / "folders", size=24, **QUIET).sha256
    images = [{"bytes": None, "path": "gone.jpg"}, {"bytes": images[0]["bytes"], "path": None}]
    pq.write_table(pa.table({"image": images, "label": ["sun", "sun"]}), tmp_path / "pq" / "train-2.parquet")
    made = ingest(tmp_path / "pq", tmp_path / "more", size=24, on_error="skip", **QUIET)
    assert rows(tmp_path / "more" / "unreadable.csv")[1:] == [["train", "train-2.parquet:0", "empty file"]]
    assert sum(made.train) == 97


def test_groups(image_folder: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("class,group\nsun,natural\ncar,man-made\nbus,\n")
    made = ingest(image_folder, tmp_path / "out", size=8, groups=groups, **QUIET)
    assert made.groups == (None, "man-made", None, "natural")
    groups.write_text("\ufeffclass,group\nsun,natural\n", encoding="utf-8")
    assert ingest(image_folder, tmp_path / "marked", size=8, groups=groups, **QUIET).groups[3] == "natural"
    long = f"sun,{'x' * 200_000}\n"
    for text, message in (
        ("moon,natural\n", "no class 'moon'"),
        ("sun,sky\n", "group 'sky' of class 'sun'"),
        (long, "cannot be read"),
    ):
        groups.write_text(text)
        with pytest.raises(DataError, match=message):
            ingest(image_folder, tmp_path / "out", size=8, groups=groups, **QUIET)


def test_wnids_bring_their_groups(own_folder: Path, tmp_path: Path) -> None:
    for name, wnid in {"bus": "n01440764", "car": "n02666196", "cloud": "n07714571", "sun": "n15075141"}.items():
        for part in ("train", "val"):
            (own_folder / part / name).rename(own_folder / part / wnid)
    made = ingest(own_folder, tmp_path / "out", size=8, **QUIET)
    assert made.groups == ("natural", "man-made", "natural", "man-made")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "raygrid: interrupted; run the same command again"),
        (OSError(28, "No space left on device", "/full"), 3, "raygrid: /full: No space left on device; run the same"),
        (DataError("ingest: no images"), 2, "raygrid: ingest: no images"),
    ],
)
def test_whatever_ends_the_command_early_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*rest: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("raygrid.ingest.ingest", fail)
    assert main(["here", "there"]) == code
    shown = capsys.readouterr().err.strip()
    assert shown.startswith(said) and "\n" not in shown


def test_command(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(image_folder), str(tmp_path / "out"), "--size", "24", "--workers", "1", "--name", "mine"]) == 0
    said = capsys.readouterr()
    made = read_manifest(tmp_path / "out")
    study = yaml.safe_load(said.out.partition("in a study:")[2])
    wanted = {"name": "mine", "path": str(tmp_path / "out"), "sha256": made.sha256[:16]}
    assert study == {"dataset": wanted}
    assert f"'{made.sha256[:16]}'" in said.out, "quoted: sixteen digits would be a number"
    assert "124 of 124 images" in said.err
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere: no such file or folder"),
        (["~nosuch/x", "out"], "~nosuch/x: there is no such home folder"),
        (["SRC", "~nosuch/x"], "~nosuch/x: there is no such home folder"),
        (["SRC", "out", "--size", "0"], "--size 0: must be 1 to 4096 pixels"),
        (["SRC", "out", "--name", "a/b"], "--name a/b"),
        (["SRC", "out", "--name", "cifar10"], "raygrid's own data set has this name"),
        (["SRC", "ftp://out"], "unknown scheme 'ftp'"),
        (["SRC", "out", "--groups", "nowhere"], "--groups nowhere: cannot be read"),
        (["SRC", "out", "--workers", "0"], "--workers 0"),
        (["SRC", "out", "--max-skipped", "-1"], "--max-skipped -1"),
        (["SRC", "out", "--shard-mb", "0"], "--shard-mb 0"),
    ],
)
def test_wrong_arguments(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([str(image_folder) if a == "SRC" else a for a in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_is_quick() -> None:
    code = "import sys, raygrid.ingest as i; i.parser().format_help(); sys.exit('numpy' in sys.modules)"
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "the help imports what it does not need"
    assert time.monotonic() - start < 5
