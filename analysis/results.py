"""Read and check a study's results: one row a cell, whatever the file, with every gap made visible.

Reading adds four columns that all later steps rely on:

    score     the headline accuracy, a fraction: `top1_last`, unless the results name another column in `score`
              (the paper's profile names `top1_mean10`, the mean of the ten best tests)
    task      the pairing key: the target's classes and images. Given by raygrid; else built from data set, split,
              split_seed, target and images_per_class
    unit      the split, as text (`random0`, `semantic`): the unit of replication
    setting   network, data set, recipe, images per class and number of classes in the split: only cells of one
              setting are ever averaged or subtracted

A diverged cell is a result. It keeps its score, if it has one, and enters the means, which are then marked; without
a score (loss not finite before any test) it cannot, and is counted beside them. Nothing is dropped silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import AnalysisError
from analysis.vocabulary import STATUSES, TREATMENTS, WITHOUT_N, count, preserved

if TYPE_CHECKING:
    import pandas as pd

QUESTION = (
    "How many layers, counted from the input, can be copied from a network trained on other classes, "
    "and should they be frozen or fine-tuned?"
)
SCORES = ("top1_last", "top1_mean10", "top1_best")
TEXT = ("study", "cell", "split", "source", "target", "treatment", "network", "dataset", "recipe", "status", "error")
DEEPEST = 1000
"""most layers of a network: figures and tables have a place for each n"""
ABSENT_TEXT = {"study": "study", "split": "unnamed", "status": "ok", "target": "B"}
SETTING = ("network", "dataset", "recipe", "images_per_class", "split_classes")


@dataclass(frozen=True)
class Results:
    """A checked table and what lies beside it."""

    frame: pd.DataFrame
    score: str
    """name of the column that `score` was taken from"""
    source: Path
    """the file that was read"""
    depth: int
    """layers of the deepest network"""
    notes: tuple[str, ...] = ()
    """what the reader of any figure must know: assumed columns, unknown treatments, repeated cells"""
    history: Path | None = None
    beside: dict[str, Any] = field(default_factory=dict)
    """plan.json, as read"""
    study_yaml: str | None = None

    @cached_property
    def scopes(self) -> dict[str, Any]:
        """Scopes already cut out of this table (see scope.py)."""
        return {}

    @cached_property
    def question(self) -> str:
        """The study's own question from plan.json; the paper's where it has none."""
        asked = self.beside.get("question")
        return " ".join(asked.split()) if isinstance(asked, str) and asked.strip() else QUESTION

    @cached_property
    def study(self) -> str:
        """Name of the study, or names joined by +."""
        names = [str(s) for s in self.frame["study"].unique()]
        return " + ".join(names[:4]) + (" + ..." if len(names) > 4 else "") if names else self.source.stem


def read(path: Path) -> Results:
    """Read a results folder, or a CSV or Parquet file. Raises AnalysisError."""
    file = _results_file(path)
    frame = _load(file)
    folder = file.parent if path.is_dir() else None
    history = folder / "history.parquet" if folder and (folder / "history.parquet").is_file() else None
    frame, score, notes = check(frame, file.name)
    depth = _depth(frame)
    return Results(
        frame=frame,
        score=score,
        source=file,
        depth=depth,
        notes=tuple(notes),
        history=history,
        beside=_plan(folder, notes),
        study_yaml=(folder / "study.yaml").read_text(encoding="utf-8", errors="replace")
        if folder and (folder / "study.yaml").is_file()
        else None,
    )


def _results_file(path: Path) -> Path:
    if path.is_dir():
        for name in ("results.parquet", "results.csv"):
            if (path / name).is_file():
                return path / name
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise AnalysisError(f"{path}: no results.parquet in this folder (found {found}); give the folder of a study")
    if not path.is_file():
        raise AnalysisError(f"{path}: no such file or folder; give a folder with results.parquet, or a CSV or Parquet")
    if path.suffix.lower() not in (".csv", ".parquet", ".pq"):
        raise AnalysisError(
            f"{path.name}: cannot read {path.suffix or 'a file without suffix'}; allowed: .csv, .parquet"
        )
    return path


def _load(file: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() == ".csv":
            return pd.read_csv(file)
        return pq.read_table(file).to_pandas()
    except pd.errors.EmptyDataError:
        raise AnalysisError(f"{file.name}: the file is empty; a results file has at least a header line") from None
    except (pa.ArrowException, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AnalysisError(f"{file.name}: not a readable results file ({reason}); export it again") from None


def check(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str, list[str]]:
    """Check columns and values; add score, task, unit, setting. Gives the frame, the score's name, and notes."""
    import pandas as pd

    notes: list[str] = []
    frame = frame.copy()
    frame["_row"] = range(len(frame))
    score = _score_column(frame, name)
    missing = [c for c in ("treatment", "n", score) if c not in frame.columns]
    if missing:
        columns = ", ".join(c for c in frame.columns if c != "_row")
        raise AnalysisError(f"{name}: no column {', '.join(missing)}; every figure needs it. Found: {columns}")
    for column in TEXT:
        if column not in frame.columns:
            if column in ABSENT_TEXT and len(frame):
                notes.append(f"no column {column}: all cells are taken as {ABSENT_TEXT[column]!r}")
            frame[column] = ABSENT_TEXT.get(column)
        values = frame[column].astype("object")
        if pd.api.types.is_numeric_dtype(frame[column]):  # names that are numbers
            values = values.map(_each(values, "{:g}".format))
        frame[column] = values.where(values.notna() & (values != ""), ABSENT_TEXT.get(column))
    if len(frame):
        frame["treatment"] = frame["treatment"].map(_each(frame["treatment"], _stripped))
    for column, default in (("n", 0), ("seed", 0), ("split_seed", None), ("classes", None), ("split_classes", None)):
        frame[column] = _numbers(frame, column, name, default)
    for column in ("images_per_class", "layers", "steps", "duration_s", "images_seen"):
        frame[column] = _numbers(frame, column, name, None)
    frame["n"] = frame["n"].where(frame["n"].notna() | ~frame["treatment"].isin(WITHOUT_N), 0.0)
    for column in ("n", "layers"):
        if (frame[column] > DEEPEST).any():
            raise AnalysisError(
                f"{name}: {column} = {frame[column].max():g}; networks here have {DEEPEST} layers at most"
            )
    for column in ("n", "seed"):
        fractional = frame[column].notna() & (frame[column] % 1 != 0)
        if fractional.any():
            raise AnalysisError(f"{name}: {column} = {frame[column][fractional].iloc[0]:g}; it must be a whole number")
    if frame["n"].isna().any():
        cell = frame["cell"][frame["n"].isna()].iloc[0]
        raise AnalysisError(
            f"{name}: cell {cell} without n; n is the number of layers copied, 0 for {', '.join(WITHOUT_N)}"
        )
    frame["n"] = frame["n"].astype("int64")
    if frame["seed"].isna().any():
        raise AnalysisError(
            f"{name}: {count(int(frame['seed'].isna().sum()), 'cell')} without a seed; give every cell one"
        )
    frame["seed"] = frame["seed"].astype("int64")
    _check_values(frame, name)
    frame["score"] = _accuracies(frame, score, name).mask(moved(frame))
    unnamed = frame["cell"].isna()
    if unnamed.any():
        frame["cell"] = frame["cell"].where(~unnamed, "row " + (frame["_row"] + 1).astype(str))
    frame = _once(frame, name, notes)
    numbers = frame["split_seed"].map(_each(frame["split_seed"], "{:g}".format))
    frame["unit"] = frame["split"] + numbers.astype("str").fillna("")
    frame["task"] = _tasks(frame)
    frame["setting"] = _settings(frame)
    unknown = sorted(t for t in set(frame["treatment"]) - set(TREATMENTS) if not preserved(str(t)))
    if unknown:
        notes.append(
            f"treatments that no figure here knows, listed with the cells only: {', '.join(map(str, unknown))}"
        )
    return frame.drop(columns="_row").reset_index(drop=True), score, notes


def moved(frame: pd.DataFrame) -> pd.Series:
    """Cells whose frozen layers were found changed: not what they say that they are, so in no mean."""
    if "frozen_verified" not in frame.columns:
        return frame["status"].isna() & False
    return frame["frozen_verified"].map(lambda v: v is not None and v == v and not bool(v)).astype(bool)


def _score_column(frame: pd.DataFrame, name: str) -> str:
    if "score" not in frame.columns:
        return "top1_last"
    named = [s for s in frame["score"].dropna().unique() if s != ""]
    if not named:
        return "top1_last"
    if len(named) > 1 or named[0] not in SCORES:
        raise AnalysisError(
            f"{name}: column `score` must name one headline score for all cells, one of {', '.join(SCORES)}; "
            f"found {', '.join(map(str, named[:5]))}. Analyse studies with different scores apart"
        )
    return str(named[0])


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _each(column: pd.Series, change: Callable[[Any], Any]) -> dict[Any, Any]:
    """Each distinct value that there is, changed: they are few."""
    return {value: change(value) for value in column.dropna().unique()}


def _numbers(frame: pd.DataFrame, column: str, name: str, default: float | None) -> pd.Series:
    import pandas as pd

    if column not in frame.columns:
        return pd.Series(default, index=frame.index, dtype="float64")
    if pd.api.types.is_numeric_dtype(frame[column]):
        return frame[column].astype("float64")
    values = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    wrong = frame[column].notna() & (frame[column].astype(str).str.strip() != "") & values.isna()
    wrong &= frame[column].astype(str).str.lower() != "nan"
    if wrong.any():
        raise AnalysisError(f"{name}: column {column}: {frame[column][wrong].iloc[0]!r} is not a number")
    return values


def _check_values(frame: pd.DataFrame, name: str) -> None:
    statuses = sorted({str(s) for s in frame["status"].unique()} - set(STATUSES))
    if statuses:
        raise AnalysisError(f"{name}: status {', '.join(statuses)}; allowed values are {', '.join(STATUSES)}")
    if frame["treatment"].isna().any():
        raise AnalysisError(f"{name}: a cell without treatment; allowed values are {', '.join(TREATMENTS)}")
    if (frame["n"] < 0).any():
        raise AnalysisError(f"{name}: n = {int(frame['n'].min())}; n counts copied layers, 0 or more")
    none = frame["treatment"].isin(WITHOUT_N) & (frame["n"] != 0)
    if none.any():
        row = frame[none].iloc[0]
        raise AnalysisError(f"{name}: {row['treatment']} with n = {row['n']}; it copies nothing, so n must be 0")


def _accuracies(frame: pd.DataFrame, score: str, name: str) -> pd.Series:
    values = _numbers(frame, score, name, None)
    wrong = values.notna() & ~values.between(0, 1)
    if wrong.any():
        raise AnalysisError(
            f"{name}: {score} = {values[wrong].iloc[0]:g} (cell {frame['cell'][wrong].iloc[0]}); "
            "accuracies are fractions from 0 to 1, not per cent"
        )
    return values


def _once(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """A cell that stands in several studies counts once; two different results for one address are an error."""
    repeated = frame.duplicated("cell", keep=False)
    if not repeated.any():
        return frame
    again = frame[repeated].groupby("cell", sort=False)
    distinct = again[["treatment", "n", "score", "status"]].nunique(dropna=False)
    if (distinct > 1).any(axis=None):
        cell = distinct.index[(distinct > 1).any(axis=1)][0]
        raise AnalysisError(f"{name}: cell {cell} stands twice with different results; keep one row a cell")
    extra = int(frame.duplicated("cell").sum())
    notes.append(f"{count(extra, 'row')} repeated a cell that was already there (shared by studies); counted once")
    return frame[~frame.duplicated("cell")]


def _tasks(frame: pd.DataFrame) -> pd.Series:
    built = _join(frame, ("dataset", "unit", "target", "images_per_class", "split_classes"))
    if "task" not in frame.columns:
        return built
    given = frame["task"].astype("object")
    return given.where(given.notna() & (given != ""), built).astype(str)


def _settings(frame: pd.DataFrame) -> pd.Series:
    """The whole data set is not a split, so its cells do not carry `split_classes`."""
    keyed = frame[list(SETTING)].copy()
    keyed.loc[frame["split"] == "all", "split_classes"] = None
    recipes = frame.loc[frame["treatment"] != "base-long", "recipe"].dropna().unique()
    if len(recipes) == 1:  # base-long may carry its own recipe's name; it is compared with its study's others
        keyed.loc[frame["treatment"] == "base-long", "recipe"] = recipes[0]
    return _join(keyed, SETTING)


def _join(frame: pd.DataFrame, columns: tuple[str, ...]) -> pd.Series:
    """One text a row; distinct combinations are few, so they are written once each."""
    codes = frame.groupby(list(columns), dropna=False, sort=False, observed=True).ngroup()
    first = frame.loc[~codes.duplicated(), list(columns)]
    names = {
        code: "/".join("-" if v is None or v != v else (f"{v:g}" if isinstance(v, float) else str(v)) for v in row)
        for code, row in zip(codes[~codes.duplicated()], first.itertuples(index=False), strict=True)
    }
    return codes.map(names).astype(object)


def _depth(frame: pd.DataFrame) -> int:
    """Layers of the network: the column `layers`, else one more than the largest n."""
    if len(frame) == 0:
        return 8
    if frame["layers"].notna().any():
        return max(2, int(frame["layers"].max()), int(frame["n"].max()) + 1)
    return max(2, int(frame["n"].max()) + 1)


def _plan(folder: Path | None, notes: list[str]) -> dict[str, Any]:
    if folder is None or not (folder / "plan.json").is_file():
        return {}
    try:
        plan = json.loads((folder / "plan.json").read_bytes())
    except ValueError:
        notes.append("plan.json beside the results is not JSON; predicted times are not shown")
        return {}
    return plan if isinstance(plan, dict) else {}
