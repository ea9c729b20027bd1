"""Tables, figures, statistics and the report of a transferability study, from its Parquet or CSV file alone.

    analysis.write(results, out)     everything, as `python -m analysis RESULTS` does
    analysis.read(results)           the checked table
    analysis.AnalysisError           bad input, in one message

Reads files; knows nothing of Ray, torch or MLflow, so that results can be analysed anywhere, also years later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import AnalysisError

if TYPE_CHECKING:
    from analysis.results import Results

__all__ = ["AnalysisError", "Written", "read", "write"]


@dataclass(frozen=True)
class Written:
    """What `write` left behind."""

    out: Path
    """the folder"""
    paths: tuple[Path, ...]
    """every file written, in the order of the report"""
    summary: str
    """plain text for a terminal: the answer, the treatment x n table, what is missing"""
    skipped: tuple[str, ...] = ()
    """what was not drawn, each with its reason"""


def read(results: Path | str) -> Results:
    """Read and check a results folder or file. Raises AnalysisError."""
    from analysis.results import read as _read

    return _read(Path(results))


def write(results: Path | str, out: Path | str | None = None, overlay: str | None = None) -> Written:
    """Write all tables, figures and the report of `results` into `out`.

    `results` is a folder that holds results.parquet (and perhaps history.parquet, study.yaml, plan.json), or one CSV
    or Parquet file. `out` is RESULTS/report by default for a folder, ./report for a file. `overlay="published"` adds
    the curves of Yosinski et al. (2014) to the figures. Raises AnalysisError where the input cannot be analysed.
    """
    from analysis.writing import write as _write

    return _write(Path(results), None if out is None else Path(out), overlay)
