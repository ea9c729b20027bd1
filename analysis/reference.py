"""The authors' 148 logged networks in the columns of a raygrid study: `reference.csv`.

Source: the training logs in github yosinski/convnet_transfer at 9838c27 (170 networks configured, 148 with a log), read
into a table of one row a network (run, split, treatment, n, mean of the ten best tests, last test, losses, seconds per
iteration). `from_logs` brings that table into our columns; `python -m analysis.reference LOGS.csv` rewrites the file.
The numbers are facts measured by the authors; no file of theirs is copied.

What a reader must know:
* Score: `top1_mean10`, the mean of the ten best of (mostly) 450 tests, because the paper's figures use it.
* Letters: in the man-made/natural split A is natural and B man-made, as in the authors' folders and in raygrid's
  `semantic` split. The paper's text has them the other way round (A man-made).
* Status follows raygrid's rule: diverged where the mean training loss at the end is at least 0.99 of the log of the
  number of head outputs (always 1000 there, also for halves). The twelve image-count runs have no training loss in
  the table; they are called diverged where the last test loss is within 1 % of that log.
* seed is 0 for all: the authors set none, and ran each network once.
* `images_per_class` is null for the full set (450,000 iterations), a count for the shorter runs on fewer images.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import AnalysisError

if TYPE_CHECKING:
    import pandas as pd

PATH = Path(__file__).with_name("reference.csv")
STUDY = "yosinski2014-published"
HEAD_OUTPUTS = 1000
"""fc8 has 1000 outputs in all 170 networks, also for tasks of 449 to 551 classes"""
BATCH = 256

PRESERVED = {
    "selffer": (0.61664, 0.61608, 0.61196, 0.597479, 0.58788, 0.610799, 0.6154),
    "selffer-preserve1": (0.61944, 0.62212, 0.614279, 0.60448, 0.58748, 0.612, 0.61532),
    "selffer-preserve2": (0.62848, 0.62164, 0.614, 0.6038, 0.585199, 0.61256),
    "transfer": (0.635239, 0.631279, 0.628439, 0.6112, 0.58516, 0.59108, 0.5516),
    "transfer-preserve1": (0.6382, 0.638039, 0.63024, 0.61428, 0.587679, 0.59092, 0.55204),
    "transfer-preserve2": (0.645599, 0.640999, 0.62892, 0.61616, 0.58716, 0.590919),
}
"""The authors' unpublished runs with preserved layers, n = 1 up, as typed into their notebook, cell 40 of
plots/transfer_plots.ipynb: single values without a log, statistic not stated. So they stand in no table, only as an
overlay."""
PRESERVED_TARGET = {"selffer": "half0A", "transfer": "half0B"}
"""The base of the half that these runs seem to be trained on. It is not stated either; of all logged networks their
plain values are nearest to those of 0A to 0A and of 0A to 0B."""

_TREATMENT = {
    "base": "base",
    "base1000": "base",
    "reduced": "base",
    "BnB": "selffer",
    "BnB+": "selffer+",
    "AnB": "transfer",
    "AnB+": "transfer+",
    "random-frozen": "random",
}
_SPLIT = {"random": "random", "natman": "semantic", "all1000": "all"}
_HALF = {"natural": "A", "man-made": "B", "A": "A", "B": "B", "random init": None, "": None}
_CLASSES = {"natural": 449, "man-made": 551, "A": 500, "B": 500}


def load() -> pd.DataFrame:
    """The published networks, one row each, in raygrid's columns; accuracies are fractions."""
    from analysis.results import read

    return read(PATH).frame


def from_logs(logs: Path) -> pd.DataFrame:
    """Bring the table of the authors' logs into raygrid's columns; rows without a log are left out.

    Raises AnalysisError where the file is missing or lacks a column.
    """
    import pandas as pd

    if not logs.is_file():
        raise AnalysisError(f"the table of the authors' logs: no file {logs}; give the CSV with one row a network")
    table = pd.read_csv(logs, dtype=str, keep_default_na=False)
    needed = ["run", "log", "split", "treatment", "target", "top1_mean_of_10_best", "train_loss_last100_mean"]
    if missing := [c for c in needed if c not in table.columns]:
        raise AnalysisError(f"{logs.name}: no column {', '.join(missing)}; found {', '.join(table.columns)}")
    return pd.DataFrame(
        [
            _row({str(key): str(value) for key, value in record.items()})
            for record in table.to_dict("records")
            if record["log"] == "yes"
        ]
    )


def _row(r: dict[str, str]) -> dict[str, object]:
    """One network."""
    target = r["target"] if r["target"] in ("A", "B", "natural", "man-made") else "all"
    reduced = r["treatment"] == "reduced"
    treatment = _TREATMENT[r["treatment"]]
    copied = treatment not in ("base", "scratch", "base-long")
    steps = int(r["last_iter"])
    return {
        "study": STUDY,
        "cell": f"{STUDY}/{r['run']}",
        "split": _SPLIT[r["split"]],
        "split_seed": r["split_seed"],
        "source": _HALF[r["source"]],
        "target": _HALF.get(target, "all"),
        "treatment": treatment,
        "n": int(r["n"] or 0),
        "frozen": copied and not treatment.endswith("+"),
        "seed": 0,
        "network": "caffenet",
        "dataset": "ilsvrc2012",
        "status": "diverged" if _dead(r) else "ok",
        "steps": steps,
        "images_seen": steps * BATCH,
        "top1_last": r["top1_last"],
        "top1_best": r["top1_best"],
        "top1_mean10": r["top1_mean_of_10_best"],
        "loss_last": r["val_loss_last"],
        "duration_s": round(float(r["sec_per_iter"]) * steps) if r["sec_per_iter"] else None,
        "device": "Tesla K20m",
        "score": "top1_mean10",
        "classes": _CLASSES.get(target, 1000),
        "split_classes": 1000,
        "images_per_class": int(r["run"].removeprefix("reduced-")) if reduced else None,
        "layers": 8,
        "recipe": f"caffe-{steps // 1000}k",
        "train_loss_last": r["train_loss_last100_mean"],
        "tests": r["n_val_tests"],
        "source_run": r["run"],
    }


def _dead(r: dict[str, str]) -> bool:
    """raygrid's rule for a network that never left chance."""
    chance_loss = math.log(HEAD_OUTPUTS)
    if r["train_loss_last100_mean"]:
        return float(r["train_loss_last100_mean"]) >= 0.99 * chance_loss
    return abs(float(r["val_loss_last"]) - chance_loss) <= 0.01 * chance_loss


def main(argv: list[str] | None = None) -> int:
    """`python -m analysis.reference LOGS.csv`: rewrite reference.csv."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print("usage: python -m analysis.reference LOGS.csv\nRewrites analysis/reference.csv from the authors' logs.")
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    try:
        table = from_logs(Path(argv[0]))
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for column in ("images_per_class", "duration_s"):
        table[column] = table[column].astype("Int64")
    table.to_csv(PATH, index=False, lineterminator="\n")
    print(f"{len(table)} networks written to {PATH.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
