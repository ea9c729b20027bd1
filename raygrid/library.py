"""raygrid in a notebook: the words of the command line, as Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raygrid.launch import Job, job_for, launch
from raygrid.plan import Plan
from raygrid.plan import plan as make_plan
from raygrid.record import Record, find_records
from raygrid.store import Store
from raygrid.study import Study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Work:
    """A study with the place where its networks live."""

    job: Job

    @property
    def study(self) -> Study:
        """What is asked."""
        return self.job.study

    @cached_property
    def plan(self) -> Plan:
        """Every network that the study needs; reads no image."""
        from raygrid.data.known import facts

        return make_plan(self.study, facts(self.study.dataset))

    @property
    def store(self) -> Store:
        """Where data, networks and records are kept."""
        return Store(self.job.store_url)

    @property
    def folder(self) -> Path:
        """Where `run` writes results.parquet, history.parquet and report/."""
        return self.job.out / self.study.name

    def run(self) -> int:
        """Train what is missing and write results; returns the command's exit code. Raises RaygridError."""
        from rich.console import Console

        return launch(self.job, Console(soft_wrap=True))

    def records(self) -> dict[str, Record]:
        """Records of the finished networks, by address."""
        return find_records(self.store, self.plan.cells)

    def results(self) -> pd.DataFrame:
        """One row a finished network; columns as in `raygrid.export.RESULTS`."""
        from raygrid.export import results_table

        return results_table(self.plan, self.records(), self.store).to_pandas()

    def history(self) -> pd.DataFrame:
        """One row a network and test; columns as in `raygrid.export.HISTORY`."""
        from raygrid.export import history_table

        return history_table(self.plan, self.records()).to_pandas()


def load(study: str | Path = "demo", *overrides: str, store: str | None = None, out: str | Path = "results") -> Work:
    """A study by file, or by the name of one that comes with raygrid, with overrides such as `"recipe.epochs=2"`.

    Raises StudyError, as one message, where the study is wrong.
    """
    return Work(job_for(str(study), overrides, store, out))
