"""From a list of images to shards: the unit of parallel work, and of resuming.

A unit is one shard's images. It is made whole by one worker, which writes the shard's files and then, last, a note of
what is in them (`.ingest/<part>-<index>.json`). A unit whose note is there is never made again. What a unit holds
depends on the listing and the options alone, so neither kills nor the number of workers can change the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field

from raygrid.cell import digest
from raygrid.data.decode import Unreadable, pixels
from raygrid.data.manifest import Part, Shard
from raygrid.data.parquet import read_rows
from raygrid.data.shards import Blank, encode, image_digests, label_type
from raygrid.data.sources import Entry, Listing
from raygrid.store import Store
from raygrid.study import Frozen

NOTES = ".ingest"
MOST_IMAGES = 2048
"""most images a shard: enough shards for many workers, and little is lost by a kill"""


class Options(Frozen):
    """What shapes the stored images."""

    size: int
    """side, pixels"""
    keep_aspect: bool
    shard_images: int
    """most images a shard"""


class Unit(Frozen):
    """One shard to make."""

    part: Part
    index: int
    root: str
    entries: tuple[tuple[str, int, int, int], ...] = Field(repr=False)
    """as `sources.Entry`"""
    options: Options
    classes: int
    """how many classes there are"""
    dest: str
    """URL or folder to write to"""

    @property
    def note(self) -> str:
        """Path of the note that says the unit is made."""
        return f"{NOTES}/{self.part}-{self.index:05d}.json"

    @property
    def key(self) -> str:
        """What the unit's shard depends on."""
        return digest([self.part, self.index, self.entries, self.options.model_dump(), self.classes])


class Done(Frozen):
    """A unit that is made."""

    part: Part
    index: int
    key: str
    shard: Shard | None
    """null where no image of the unit could be read"""
    labels: tuple[int, ...]
    digests: str
    """hexadecimal image digests, joined"""
    unreadable: tuple[tuple[int, str], ...]
    """(position in the unit, reason)"""


def shard_images(size: int, megabytes: float) -> int:
    """How many images of `size` pixels go into a shard."""
    return max(1, min(MOST_IMAGES, int(megabytes * 2**20 / (3 * size * size))))


def units(listing: Listing, options: Options, dest: str) -> list[Unit]:
    """Cut a listing into units; none crosses from one Parquet file to the next."""
    result = []
    for part, entries in listing.entries.items():
        index = 0
        files = [list(g) for _, g in groupby(entries, lambda e: e.file)] if listing.kind == "parquet" else [entries]
        for held in files:
            for start in range(0, len(held), options.shard_images):
                result.append(
                    Unit(
                        part=part,
                        index=index,
                        root=listing.roots[part],
                        entries=tuple(
                            (e.file, e.row, e.label, e.bytes) for e in held[start : start + options.shard_images]
                        ),
                        options=options,
                        classes=len(listing.classes),
                        dest=dest,
                    )
                )
                index += 1
    return result


def make(unit: Unit) -> Done:
    """Read, decode and write one unit's images. Runs in a worker process, on any machine that sees the source."""
    size = unit.options.size
    blank = _blank(unit.options.shard_images, size)
    labels: list[int] = []
    unreadable: list[tuple[int, str]] = []
    for position, (entry, data) in enumerate(_read(unit)):
        try:
            if isinstance(data, Unreadable):
                raise data
            blank.images[len(labels)] = pixels(data, size, unit.options.keep_aspect)
        except Unreadable as reason:
            unreadable.append((position, str(reason)))
        else:
            labels.append(entry.label)
    store = Store(unit.dest)
    shard, digests = None, b""
    if labels:
        digests = image_digests(blank.images[: len(labels)])
        written = np.array(labels, label_type(unit.classes))
        shard, files = encode(unit.part, unit.index, blank.file(len(labels)), written)
        for name, content in files.items():
            store.put(name, cast(bytes, content))
    done = Done(
        part=unit.part,
        index=unit.index,
        key=unit.key,
        shard=shard,
        labels=tuple(labels),
        digests=digests.hex(),
        unreadable=tuple(unreadable),
    )
    store.put(unit.note, done.model_dump_json().encode())
    return done


@lru_cache(maxsize=1)
def _blank(count: int, size: int) -> Blank:
    return Blank(count, size)


def finished(store: Store, wanted: Sequence[Unit]) -> dict[tuple[Part, int], Done]:
    """Units that were made before, by an earlier run that was stopped."""
    there = set(store.list())
    notes = store.find_many(unit.note for unit in wanted if unit.note in there)
    result: dict[tuple[Part, int], Done] = {}
    for unit in wanted:
        try:
            done = Done.model_validate_json(notes[unit.note])
        except (KeyError, ValueError):
            continue
        files = (done.shard.images, done.shard.labels) if done.shard else ()
        if done.key == unit.key and there.issuperset(files):
            result[unit.part, unit.index] = done
    return result


def job_key(listing: Listing, options: Options) -> dict[str, Any]:
    """What the whole result depends on, for comparison with an earlier run into the same place."""
    seen = hashlib.sha256(b"test part held out\n" if listing.held_out else b"")
    for part, entries in listing.entries.items():
        seen.update(f"{part} {len(entries)}\n".encode())
        for entry in entries:
            line = json.dumps([entry.file, entry.row, entry.label, entry.bytes])
            seen.update(line.encode() + b"\n")
    return {
        "format": 1,
        "images": {part: len(entries) for part, entries in listing.entries.items()},
        "listing": seen.hexdigest(),
        "classes": digest(list(listing.classes)),
        **options.model_dump(),
    }


def _read(unit: Unit) -> Iterator[tuple[Entry, bytes | Unreadable]]:
    """Every entry with its file's bytes, or the reason why there are none."""
    entries = [Entry(*entry) for entry in unit.entries]
    if entries[0].row >= 0:
        rows = read_rows(Path(unit.root) / entries[0].file, [entry.row for entry in entries])
        yield from zip(entries, rows, strict=True)
        return
    for entry in entries:
        try:
            yield entry, (Path(unit.root) / entry.file).read_bytes()
        except OSError as error:
            yield entry, Unreadable(f"cannot be read ({error.strerror or error})")
