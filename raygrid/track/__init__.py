"""MLflow, as a projection of the grid: the only place in raygrid that knows of it (law 7).

projection.py   what is shown: params, tags, metrics and curves as functions of cells and records
views.py        what MLflow's pages open on
server.py       the only file that imports mlflow; its errors sorted by what to do about them
tracker.py      the one writer: a thread beside training; `sync` from the store
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygrid.track.server import TrackError, plain_uri
    from raygrid.track.tracker import Missed, Tracker, sync, write_views

__all__ = ["Missed", "TrackError", "Tracker", "plain_uri", "sync", "write_views"]


def __getattr__(name: str) -> Any:
    """Imported when used, so that `--help` is quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from raygrid.track import tracker

    return getattr(tracker, name)
