"""One MLflow server, or an SQLite file that stands in for one: the only place that imports mlflow.

Every call either works, or raises one of four answers to "what now?": `Away` (wait and try again), `Refused` (nobody's
run can be written until a person acts), `Gone` (that run or experiment is not there any more: find it anew),
`Rejected` (this one write is not wanted; others may be).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raygrid.cell import DatasetFacts, Task
from raygrid.errors import RaygridError
from raygrid.track.projection import MEAN, Point

SQLITE = "sqlite:///"
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeated POST makes a second run: who repeats must look first
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""set in this process, before mlflow is imported, where the user has not set them"""
BATCH = 900
"""metrics in one request; MLflow takes 1,000"""
PAGE = 1000
"""runs in one answer"""

_AWAY = re.compile(
    r"QueuePool|database is locked|failed with exception|failed with timeout|"
    r"Max retries exceeded|Connection (refused|reset|aborted)|timed out|"
    r"error code (408|429|5\d\d)|could not connect|connection to server|starting up|shutting down",
    re.I,
)
_AWAY_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED")
_REFUSED = re.compile(
    r"database or disk is full|No space left|"
    r"readonly database|read-only|unable to open database|Permission denied|error code 40[13]|not authorized|"
    r"Detected out-of-date database schema|Can't locate revision|file is not a database|Invalid Host header|"
    r"Could not find a version|Host header|password authentication failed|UnsupportedModelRegistryStore|"
    r"No module named",
    re.I,
)
_REFUSED_CODES = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "FEATURE_DISABLED")


class TrackError(RaygridError):
    """MLflow cannot be written. Never raised into training."""


class Away(TrackError):
    """The server does not answer, or is too busy."""


class Refused(TrackError):
    """The server answers, and refuses."""


class Gone(TrackError):
    """The run was deleted."""


class Rejected(TrackError):
    """The server refuses this one write."""


def plain_uri(uri: str) -> str:
    """A URI, or a text with some, without user, password and query, for messages. A password may hold any sign: what
    could be part of one is left out."""
    if uri.startswith(SQLITE):
        return uri.partition("?")[0]
    hidden = re.sub(r"[^\s/]*:\S*@", "", re.sub(r"//\S*@", "//", uri))
    return re.sub(r"[?&;][^\s?&;=]*=\S*", "", hidden)


class Server:
    """MLflow at one tracking URI. Made in no time; the first call imports mlflow and connects."""

    def __init__(self, uri: str):
        self.uri = uri
        self.answered = 0.0
        """when it last answered, by the monotonic clock"""

    @property
    def file(self) -> Path | None:
        """The SQLite file of an embedded URI."""
        return Path(plain_uri(self.uri).removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None

    @cached_property
    def client(self) -> Any:
        """MLflow's client. The global tracking URI of the process is left alone."""
        for key, value in SETTINGS.items():
            os.environ.setdefault(key, value)
        if urlsplit(self.uri).scheme in ("", "file"):
            raise Refused(
                f"MLflow {self.uri}: MLflow keeps no runs in plain folders any more; give sqlite:///FILE or http://..."
            )
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Refused(f"MLflow {self.uri}: {self.file.parent} cannot be made ({error.strerror})") from None
        from mlflow.tracking import MlflowClient

        from raygrid.data.cache import locked

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # else a full disk is pages of traceback in the display
        if self.file is not None and not self.file.exists():
            with locked(self.file):
                self._make(MlflowClient)
        client = MlflowClient(tracking_uri=self.uri)
        if self.file is not None:
            client.search_experiments(max_results=1)
            with contextlib.suppress(sqlite3.Error):
                connection = sqlite3.connect(self.file, timeout=20)
                connection.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers never wait for the writer
                connection.close()
        return client

    def _make(self, client: Any) -> None:
        """Make MLflow's tables aside, and move the file to its place whole: half-made tables, of a process that was
        killed or of two at once, are never mended. The lock is held."""
        if self.file is None or self.file.exists():
            return
        aside = Path(f"{self.file}.part")
        for left in (aside, Path(f"{aside}-journal")):
            left.unlink(missing_ok=True)
        client(tracking_uri=f"{SQLITE}{aside}").search_experiments(max_results=1)
        aside.replace(self.file)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The one way to MLflow: a method of its client. Raises only TrackError."""
        try:
            answer = getattr(self.client, method)(*args, **kwargs)
            self.answered = time.monotonic()
            return answer
        except TrackError:
            raise
        except Exception as error:
            raise self._answer(error) from None

    def _answer(self, error: Exception) -> TrackError:
        code = str(getattr(error, "error_code", ""))
        where = f"MLflow {plain_uri(self.uri)}"
        text = " ".join(str(error).replace(self.uri, plain_uri(self.uri)).split())
        if _REFUSED.search(text) or code in _REFUSED_CODES:
            return Refused(f"{where} refuses: {_short(text)}")
        if _AWAY.search(text):
            return Away(f"{where} is away: {_short(text)}")
        if code == "RESOURCE_DOES_NOT_EXIST" or "must be in the 'active' state" in text:
            return Gone(f"{where}: {_short(text)}")
        if code in _AWAY_CODES or isinstance(error, (OSError, ImportError, sqlite3.Error)):
            return Away(f"{where} is away: {_short(text)}")
        return Rejected(f"{where} does not take a write: {_short(text)}")

    # --- experiments ---------------------------------------------------------------------------------------

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Id of the experiment of that name, made if there is none. Raises Refused where it is not ours to write."""
        try:
            found = self.call("get_experiment_by_name", name)
        except (Gone, Rejected) as error:
            raise Refused(f"{error} (is this an MLflow server?)") from None
        if found is None:
            place = self.file.parent / "mlartifacts" if self.file else None
            location = (place / re.sub(r"[^\w.-]", "-", name)).as_uri() if place else None
            try:
                return str(self.call("create_experiment", name, location, dict(tags)))
            except Rejected:  # another launch was faster
                found = self.call("get_experiment_by_name", name)
        if found is None:
            raise Rejected(f"MLflow {plain_uri(self.uri)}: experiment {name} could not be made")
        if found.lifecycle_stage != "active":
            raise Refused(
                f"MLflow {plain_uri(self.uri)}: experiment {name} was deleted there; to log again restore it "
                f"(mlflow experiments restore --experiment-id {found.experiment_id}), or give the study another name"
            )
        if not any(key.startswith("raygrid.") for key in found.tags):
            raise Refused(
                f"MLflow {plain_uri(self.uri)}: experiment {name} was not made by raygrid; rename one of the two"
            )
        return str(found.experiment_id)

    def tag_experiment(self, experiment: str, tags: Mapping[str, str]) -> None:
        """Set tags of an experiment that are not set so already."""
        present = self.call("get_experiment", experiment).tags
        for key, value in tags.items():
            if present.get(key) != value:
                self.call("set_experiment_tag", experiment, key, value)

    # --- runs ----------------------------------------------------------------------------------------------

    def runs(self, experiment: str, filter_: str = "") -> list[Any]:
        """All runs of an experiment that are not deleted, oldest first."""
        found: list[Any] = []
        token = None
        while True:
            page = self.call(
                "search_runs", [experiment], filter_, max_results=PAGE, page_token=token, order_by=["start_time ASC"]
            )
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda run: (run.info.start_time or 0, run.info.run_id))

    def find(self, experiment: str, tag: str, value: str) -> Any | None:
        """The run that has a tag. Of two, made in a race, the older one stays, whoever looks; the other is deleted."""
        quoted = value.replace("'", "''")
        return self.one_of(self.runs(experiment, f"tags.`{tag}` = '{quoted}'"))

    def one_of(self, runs: Sequence[Any]) -> Any | None:
        """The first of several runs of one thing; the others are marked and deleted."""
        for other in runs[1:]:
            with contextlib.suppress(Gone):
                self.call("set_tag", other.info.run_id, "raygrid.duplicate_of", runs[0].info.run_id)
                self.delete(other.info.run_id)
        return runs[0] if runs else None

    def create(self, experiment: str, name: str, tags: Mapping[str, str], start: int) -> Any:
        """A new run."""
        return self.call("create_run", experiment, start_time=start, tags=dict(tags), run_name=name)

    def delete(self, run_id: str) -> None:
        """Delete a run as the UI does: it can be restored."""
        self.call("delete_run", run_id)

    def known_steps(self, run: Any) -> set[tuple[str, int]]:
        """(metric, step) of every point that a run has of what is logged in the course of time. All values of a step
        are written in one transaction, so one metric's history tells."""
        keys = sorted(key for key in run.data.metrics if not key.startswith("final/"))
        asked = next((key for key in ("test/top1", MEAN, *keys) if key in keys), None)
        if asked is None:
            return set()
        steps = {int(point.step) for point in self.call("get_metric_history", run.info.run_id, asked)}
        return {(key, step) for key in keys for step in steps}

    def log(
        self,
        run: Any,
        points: Iterable[Point],
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write points, params and tags, in one request where they fit. Params that the run has are left alone."""
        from mlflow.entities import Metric, Param, RunTag

        start = run.info.start_time or 0
        metrics = [Metric(p.key, p.value, start + p.at, p.step) for p in sorted(points, key=_order)]
        fresh = [Param(k, v) for k, v in (params or {}).items() if k not in run.data.params]
        marks = [RunTag(k, v) for k, v in (tags or {}).items()]
        while len(metrics) > BATCH:
            head, metrics = metrics[:BATCH], metrics[BATCH:]
            self.call("log_batch", run.info.run_id, metrics=head)
        if metrics or fresh or marks:
            self.call("log_batch", run.info.run_id, metrics=metrics, params=fresh, tags=marks)

    def log_data(self, run: Any, tasks: Mapping[str, Task], facts: DatasetFacts, source: str) -> None:
        """Record which half of which split a run is trained and tested on, and which its base was."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for context, task in tasks.items():
            names = [facts.classes[c] for c in task.classes]
            profile = {
                "classes": len(names),
                "num_rows": task.images(facts),
                "test_images": task.test_images(facts),
                "class_names": ", ".join(names)[:3000],
            }
            dataset = Dataset(
                name=f"{task.dataset} {task.label}"[:500],
                digest=task.id,
                source_type="code",
                source=json.dumps({"tags": {"mlflow.source.name": source, "data_sha256": facts.sha256}}),
                schema=json.dumps(
                    {"mlflow_colspec": [{"type": "binary", "name": "image"}, {"type": "long", "name": "class"}]}
                ),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self.call("log_inputs", run.info.run_id, inputs)

    def set_status(self, run: Any, status: str, end: int | None = None) -> None:
        """`RUNNING`, or an end."""
        run_id = run.info.run_id
        if status == "RUNNING":
            self.call("update_run", run_id, status=status)
        else:
            self.call("set_terminated", run_id, status=status, end_time=end)

    def upload(self, run: Any, file: Path, folder: str | None = None) -> None:
        """One small file as an artifact."""
        self.call("log_artifact", run.info.run_id, str(file), folder)

    def upload_text(self, run: Any, text: str, name: str) -> None:
        self.call("log_text", run.info.run_id, text, name)


def _order(point: Point) -> tuple[int, bool, str]:
    """By step; within it the score first: MLflow's compare page starts on the metric that was written first."""
    return point.step, point.key != "test/top1", point.key


def _short(text: str) -> str:
    """First sentence or so of a message, without credentials."""
    text = plain_uri(text.split("[SQL:")[0].split("(Background on")[0])
    text = re.sub(r"\((sqlite3|psycopg2)[\w.]*\) ", "", text)
    inner = re.search(r"Caused by \w+\((.*)\)\)?$", text)
    if inner:
        text = re.sub(r"^['\"]?<[^>]*>:? ?", "", inner.group(1)).split(": ", 1)[-1]
    return text[:240].strip(" '\"()")
