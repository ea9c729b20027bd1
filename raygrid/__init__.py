"""raygrid measures how transferable each layer of a network is.

import raygrid
work = raygrid.load("demo", "recipe.epochs=2")    a study, with overrides as for --set
work.study, work.plan                             what is asked; every network that answers it
work.run()                                        train what is missing, as `python -m raygrid.launch` does
work.results(), work.history()                    pandas DataFrames, one row a network, one a test
work.records()                                    what the store holds, by address
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raygrid.library import Work, load

__all__ = ["Work", "load"]


def __getattr__(name: str) -> Any:
    """Imports only when something is asked for: every command's --help stays fast."""
    if name in __all__:
        from raygrid import library

        return getattr(library, name)
    raise AttributeError(f"module 'raygrid' has no attribute {name!r}")
