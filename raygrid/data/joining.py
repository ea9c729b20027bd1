"""From finished units to the data set: what could not be read, what is in both parts, and the manifest."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raygrid.data.decode import describe
from raygrid.data.making import Done, Options, Unit
from raygrid.data.manifest import MANIFEST, Manifest, Part
from raygrid.data.shards import part_digest
from raygrid.data.sources import HELD_OUT, Listing
from raygrid.errors import DataError
from raygrid.store import Store

UNREADABLE = "unreadable.csv"
UNREADABLE_COLUMNS = ("part", "file", "reason")
DUPLICATES = "duplicates.csv"
HOW_HELD_OUT = (
    f"held out: of each class, the 1 in {HELD_OUT} images (at least one) whose CLASS/FILE has the smallest sha256"
)


def join(
    store: Store,
    listing: Listing,
    options: Options,
    wanted: Sequence[Unit],
    done: dict[tuple[Part, int], Done],
    named: dict[str, Any],
) -> Manifest:
    """Write the lists of unreadable and of repeated images, then the manifest. Raises DataError for a class without
    images. `named`: the manifest's name, groups and licence."""
    order: dict[Part, list[tuple[Unit, Done]]] = {"train": [], "test": []}
    for unit in wanted:
        order[unit.part].append((unit, done[unit.part, unit.index]))
    unreadable = [row for pairs in order.values() for pair in pairs for row in unreadable_of(*pair)]
    names = {part: [name for pair in pairs for name in _kept(*pair)] for part, pairs in order.items()}
    digests = {part: bytes.fromhex("".join(d.digests for _, d in pairs)) for part, pairs in order.items()}
    labels = {part: np.array([c for _, d in pairs for c in d.labels], np.int64) for part, pairs in order.items()}
    counts = {part: np.bincount(held, minlength=len(listing.classes)) for part, held in labels.items()}
    for part, held in counts.items():
        if empty := [listing.classes[c] for c in np.flatnonzero(held == 0)]:
            _write_list(store, UNREADABLE, UNREADABLE_COLUMNS, unreadable)
            raise DataError(f"ingest: none of the {part} images of {', '.join(empty[:5])} could be read ({_at(store)})")
    first = {digests["train"][32 * i : 32 * i + 32]: i for i in reversed(range(len(names["train"])))}
    tests = (digests["test"][32 * i : 32 * i + 32] for i in range(len(names["test"])))
    repeated = [(names["test"][i], names["train"][first[d]]) for i, d in enumerate(tests) if d in first]
    _write_list(store, UNREADABLE, UNREADABLE_COLUMNS, unreadable)
    _write_list(store, DUPLICATES, ("test_file", "train_file"), repeated)
    manifest = Manifest(
        **named,
        classes=listing.classes,
        image_size=options.size,
        preprocessing={
            **describe(options.size, options.keep_aspect),
            **({"test part": HOW_HELD_OUT} if listing.held_out else {}),
            "left out": f"{len(unreadable)} unreadable images ({UNREADABLE})",
            "in both parts": f"{len(repeated)} test images have the pixels of a training image ({DUPLICATES})",
        },
        shards=tuple(d.shard for pairs in order.values() for _, d in pairs if d.shard is not None),
        train=tuple(int(n) for n in counts["train"]),
        test=tuple(int(n) for n in counts["test"]),
        train_sha256=part_digest(labels["train"], digests["train"]),
        test_sha256=part_digest(labels["test"], digests["test"]),
        source=f"ingested from {listing.kind}: {Path(listing.roots['train']).name}, {Path(listing.roots['test']).name}",
    )
    store.put(MANIFEST, manifest.to_json().encode())
    return manifest


def _at(store: Store) -> str:
    return store.uri(UNREADABLE).removeprefix("file://")


def unreadable_of(unit: Unit, done: Done) -> list[tuple[str, str, str]]:
    """(part, file, reason) of a unit's bad images."""
    return [(unit.part, _where(unit.entries[i]), reason) for i, reason in done.unreadable]


def _kept(unit: Unit, done: Done) -> list[str]:
    bad = {i for i, _ in done.unreadable}
    return [_where(entry) for i, entry in enumerate(unit.entries) if i not in bad]


def _where(entry: tuple[str, int, int, int]) -> str:
    return entry[0] if entry[1] < 0 else f"{entry[0]}:{entry[1]}"


def _write_list(store: Store, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    store.put(name, text.getvalue().encode())


def enforce(store: Store, bad: list[tuple[str, str, str]], on_error: str, most: int) -> None:
    """Stop where more images are unreadable than the policy allows."""
    if len(bad) <= (most if on_error == "skip" else 0):
        return
    _write_list(store, UNREADABLE, UNREADABLE_COLUMNS, bad)
    shown = "\n".join(f"  {part}/{file}: {reason}" for part, file, reason in bad[:10])
    limit = f"more than --max-skipped {most}" if on_error == "skip" else "found so far"
    raise DataError(
        f"ingest: {len(bad)} unreadable images ({limit}), listed in {_at(store)}:\n{shown}\n"
        "mend or remove them, or leave them out with: --on-error skip --max-skipped N (what is made is kept)"
    )
