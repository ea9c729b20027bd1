"""`python -m raygrid.ingest SRC DEST`: a folder of images to uint8 shards that every node can fetch and memory-map.

Runs in parallel, can be killed at any moment and started again, and gives the same content hash however it ran.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygrid.data.making import Done, Unit
    from raygrid.data.manifest import Group, Manifest
    from raygrid.data.sources import Listing
    from raygrid.store import Store

    ParallelMap = Callable[[Callable[[Unit], Done], Sequence[Unit]], Iterable[Done]]
    """applies a function that can be pickled to every item; gives the results in any order, as they come"""

JOB = ".ingest/job.json"
SHARD_MB = 128


def ingest(
    source: str | Path,
    dest: str | Path,
    *,
    size: int = 256,
    keep_aspect: bool = False,
    test: str | Path | None = None,
    ground_truth: str | Path | None = None,
    name: str | None = None,
    groups: str | Path | None = None,
    licence: str = "not stated",
    on_error: str = "fail",
    max_skipped: int = 100,
    workers: int | None = None,
    shard_mb: float = SHARD_MB,
    parallel_map: ParallelMap | None = None,
    progress: bool = True,
) -> Manifest:
    """Make a data set from a source (`sources.list_source` says which) in a folder or under a URL.

    * `size`: side of the stored square images, pixels; `keep_aspect`: take the centre square instead of warping
    * `groups`: CSV of `class,group` with `natural` and `man-made`; wnids of ILSVRC2012 need none
    * `on_error`: `fail` at the first unreadable images; `skip` leaves out at most `max_skipped`. They are listed in
      `unreadable.csv`; images that are in both parts, in `duplicates.csv`
    * `parallel_map`: default: `workers` processes (default: one a core)

    The manifest is written last. A run that was stopped goes on where it stopped. Raises DataError, StoreError, and
    EnvironmentError_ where a worker process died.
    """
    from raygrid.data import joining, making
    from raygrid.data.progress import bar
    from raygrid.data.sources import list_source
    from raygrid.errors import DataError, expanded
    from raygrid.store import Store

    if not 1 <= size <= 4096:
        raise DataError(f"--size {size}: must be 1 to 4096 pixels")
    if on_error not in ("fail", "skip"):
        raise DataError(f"--on-error {on_error}: must be fail or skip")
    for key, value, good in (
        ("--max-skipped", max_skipped, max_skipped >= 0),
        ("--workers", workers, workers is None or workers >= 1),
        ("--shard-mb", shard_mb, 0 < shard_mb <= 4096),
    ):
        if not good:
            raise DataError(f"{key} {value}: out of range")
    root = expanded(source)
    listing = list_source(root, *(expanded(p) if p else None for p in (test, ground_truth)))
    name = name or _name(root, listing)
    _check_name(name)
    named = {"name": name, "groups": _groups(groups, listing.classes), "licence": licence}
    shard_images = making.shard_images(size, shard_mb)
    options = making.Options(size=size, keep_aspect=keep_aspect, shard_images=shard_images)
    store = Store(str(dest))
    job = making.job_key(listing, options)
    _begin(store, job, str(dest))
    wanted = making.units(listing, options, store.url)
    done = making.finished(store, wanted)
    total = sum(len(unit.entries) for unit in wanted)
    with bar(f"ingest to {dest}", total, "images", progress) as advance:
        skipped = [
            row for u in wanted if (u.part, u.index) in done for row in joining.unreadable_of(u, done[u.part, u.index])
        ]
        joining.enforce(store, skipped, on_error, max_skipped)
        advance(sum(len(unit.entries) for unit in wanted if (unit.part, unit.index) in done))
        rest = [unit for unit in wanted if (unit.part, unit.index) not in done]
        where = {(unit.part, unit.index): unit for unit in rest}
        for result in (parallel_map or process_map(workers))(making.make, rest) if rest else ():
            done[result.part, result.index] = result
            unit = where[result.part, result.index]
            skipped += joining.unreadable_of(unit, result)
            joining.enforce(store, skipped, on_error, max_skipped)
            advance(len(unit.entries))
    return joining.join(store, listing, options, wanted, done, named)


# --- the beginning ---------------------------------------------------------------------------------------------------


def _begin(store: Store, job: dict[str, Any], dest: str) -> None:
    """Note what is made here; refuse a place that holds something else."""
    import json

    from raygrid.errors import DataError

    kept = store.find(JOB)
    if kept is None:
        if next(iter(store.list()), None) is not None:
            raise DataError(f"ingest: {dest} is not empty, and no ingest was begun in it; choose a new folder")
        store.put(JOB, json.dumps(job, indent=1).encode())
        return
    try:
        before = json.loads(kept)
    except ValueError:
        before = {}
    if before != job:
        differs = [f"{k}: {before.get(k)} then, {job[k]} now" for k in job if before.get(k) != job[k]]
        raise DataError(
            f"ingest: {dest} was begun with other images or options ({'; '.join(differs)}); choose another place, or "
            "delete it"
        )


def _name(source: Path, listing: Listing) -> str:
    """A data set's name where none is given."""
    import re

    from raygrid.data import ilsvrc2012

    if listing.classes == ilsvrc2012.wnids():
        return ilsvrc2012.NAME
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().stem).lstrip("._-")[:64] or "images"


def _check_name(name: str) -> None:
    from raygrid.data.known import KNOWN
    from raygrid.errors import DataError
    from raygrid.study import Dataset

    try:
        Dataset(name=name)
    except ValueError:
        raise DataError(f"--name {name}: letters, digits, dots, dashes and underscores, 64 at most") from None
    if name in KNOWN:
        raise DataError(f"--name {name}: raygrid's own data set has this name; choose another with --name")


def _groups(file: str | Path | None, classes: Sequence[str]) -> tuple[Group | None, ...]:
    """`natural` or `man-made` of every class: from a CSV file, or known by wnid."""
    import csv

    from raygrid.data import ilsvrc2012
    from raygrid.errors import DataError, closest, expanded

    if file is None:
        return ilsvrc2012.groups_of(classes)
    try:
        with expanded(file).open(encoding="utf-8-sig", newline="") as handle:  # Excel begins files with a mark
            rows = [row for row in csv.reader(handle) if row and row != ["class", "group"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--groups {file}: cannot be read ({error})") from None
    found: dict[str, Group | None] = {}
    for row in rows:
        name, group = (*row, "", "")[:2]
        if name not in classes:
            raise DataError(f"--groups {file}: no class {name!r}{closest(name, classes if len(classes) <= 50 else ())}")
        if group not in ("natural", "man-made", ""):
            raise DataError(
                f"--groups {file}: group {group!r} of class {name!r} (allowed: natural, man-made, or empty)"
            )
        found[name] = "natural" if group == "natural" else "man-made" if group else None
    return tuple(found.get(name) for name in classes)


# --- processes -------------------------------------------------------------------------------------------------------


def process_map(workers: int | None = None) -> ParallelMap:
    """A parallel map over processes of this machine."""

    def run(function: Callable[[Unit], Done], items: Sequence[Unit]) -> Iterator[Done]:
        import multiprocessing
        import os
        from concurrent.futures import ProcessPoolExecutor, as_completed
        from concurrent.futures.process import BrokenProcessPool

        from raygrid.errors import EnvironmentError_

        count = min(workers or len(os.sched_getaffinity(0)), len(items))
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_watch_parent)
        try:
            for future in as_completed([pool.submit(function, item) for item in items]):
                yield future.result()
        except BrokenProcessPool:
            raise EnvironmentError_(
                "ingest: a worker process died (killed, or out of memory); run the same command again to go on, "
                "perhaps with fewer --workers or a smaller --shard-mb"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return run


def _watch_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    import multiprocessing
    import os
    import signal
    import threading
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


# --- the command -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(
        prog="python -m raygrid.ingest",
        description="Turn a folder of images into a data set that raygrid can train on.",
        epilog="SRC is one of: a folder with train/CLASS/IMAGES and val/CLASS/IMAGES (or test/); ILSVRC2012's folders, "
        "where val/ may be flat with a ground-truth file; a folder with CLASS/IMAGES alone; Parquet files as Hugging "
        "Face writes them. Of CLASS/IMAGES alone, 1 in 10 images of each class (at least one) is held out for testing, "
        "those whose CLASS/FILE has the smallest sha256; with --test SRC2 all of them are for training. Run the same "
        "command again after an interruption: it goes on where it stopped. Exit codes: 0 the data set is whole; "
        "2 wrong input; 3 DEST cannot be used (a full disk, refused); 130 interrupted.",
    )
    p.add_argument("src", metavar="SRC", help="folder of images, or of Parquet files")
    p.add_argument("dest", metavar="DEST", help="new folder, or URL (s3://, gs://, az://), to write to")
    p.add_argument("--size", type=int, default=256, help="side of the stored square images, pixels (default 256)")
    p.add_argument("--keep-aspect", action="store_true", help="take the centre square (default: warp, as in the paper)")
    p.add_argument("--test", metavar="SRC2", help="test images, where they are not in SRC")
    p.add_argument("--ground-truth", metavar="FILE", help="classes of the images of a flat test folder")
    p.add_argument("--name", help="the data set's name (default: from SRC)")
    p.add_argument("--groups", metavar="FILE", help="CSV of class,group (natural or man-made), for semantic splits")
    p.add_argument("--licence", default="not stated", help="kept in the manifest")
    p.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="unreadable images (default: fail)")
    p.add_argument("--max-skipped", type=int, default=100, metavar="N", help="most images to skip (default 100)")
    p.add_argument("--workers", type=int, metavar="N", help="processes, or tasks on Ray (default: one a core)")
    p.add_argument("--ray", action="store_true", help="run on the Ray cluster of RAY_ADDRESS, which must see SRC")
    p.add_argument(
        "--shard-mb", type=float, default=SHARD_MB, help=f"size of a shard (default {SHARD_MB}); changes no number"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    options = vars(parser().parse_args(arguments))
    from raygrid.errors import RaygridError, ended_by, expanded

    try:
        if options.pop("ray"):
            from functools import partial

            from raygrid.grid import connect, ray_map

            connect()
            options["parallel_map"] = partial(ray_map, at_once=options["workers"])
        dest = options["dest"] if "://" in options["dest"] else expanded(options["dest"]).absolute()
        manifest = ingest(options.pop("src"), options.pop("dest"), **options)
    except (RaygridError, OSError, KeyboardInterrupt) as error:
        return ended_by(error)
    held = manifest.preprocessing.get("test part", "")
    held = held and f"test part: {held}\n"
    print(
        f"{manifest.name}: {sum(manifest.train):,} training and {sum(manifest.test):,} test images of "
        f"{len(manifest.classes)} classes, {manifest.image_size} pixels\n"
        f"{held}left out: {manifest.preprocessing['left out']}\n"
        f"in both parts: {manifest.preprocessing['in both parts']}\n"
        f"content hash: {manifest.sha256}\n"
        f"in a study:   dataset: {{name: {manifest.name}, path: {dest}, sha256: '{manifest.sha256[:16]}'}}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
