"""A progress bar on a terminal, plain lines elsewhere, nothing where it is not wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
"""call it with how much more was done"""
LINE_S = 15.0
"""seconds between plain lines"""


@contextmanager
def bar(title: str, total: int, unit: str = "", show: bool = True) -> Iterator[Advance]:
    """Show how far a piece of work is. `unit`: what is counted; `bytes` are shown as MB. Writes to stderr."""
    if not show:
        yield lambda more: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), count, TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda more: progress.advance(task, more)
    else:
        yield from _lines(title, total, unit)


def _lines(title: str, total: int, unit: str) -> Iterator[Advance]:
    scale, name = (1e-6, "MB") if unit == "bytes" else (1.0, unit)
    done, start = 0, time.monotonic()
    last = start

    def say() -> None:
        spent = time.monotonic() - start
        print(f"{title}: {done * scale:.0f} of {total * scale:.0f} {name}, {spent:.0f} s", file=sys.stderr, flush=True)

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        if time.monotonic() - last >= LINE_S:
            last = time.monotonic()
            say()

    yield advance
    say()
