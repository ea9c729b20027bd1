"""Which cells may stand in one figure: one setting, one population of splits.

A study may hold several settings (recipes, images per class, splits of 10 and of 8 classes). Figures and tables use
the main one; the others are named, never mixed in. Random splits are samples of one population; the semantic split
and each explicit list are populations of one split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.units import Pairs
from analysis.vocabulary import CURVES, count

if TYPE_CHECKING:
    from analysis.contrasts import Contrast
    from analysis.results import Results

Side = tuple[np.ndarray, np.ndarray]
"""scores by (task, seed) pair and n, and whether a diverged network is in them"""
PARTS = ("network", "dataset", "recipe", "images_per_class")


@dataclass(frozen=True)
class Scope:
    """Cells that may be averaged and subtracted."""

    frame: pd.DataFrame
    population: str
    """`random`, `semantic`, an explicit list's name, `all`; empty for an empty study"""

    @cached_property
    def _scored(self) -> pd.DataFrame:
        return self.frame[self.frame["score"].notna()]

    @cached_property
    def pairs(self) -> Pairs:
        """The (task, seed) pairs that have a score."""
        return self._numbered[0]

    @cached_property
    def _numbered(self) -> tuple[Pairs, np.ndarray]:
        """The pairs, and the pair of every scored cell."""
        frame = self._scored
        units = tuple(sorted(frame["unit"].unique(), key=_natural))
        tasks, task_names = pd.factorize(frame["task"])
        unit = frame["unit"].map({name: i for i, name in enumerate(units)}).to_numpy(dtype="int64")
        keys = np.stack([unit, tasks.astype("int64"), frame["seed"].to_numpy(dtype="int64")])
        found, index = np.unique(keys, axis=1, return_inverse=True)
        return Pairs(found[0], found[1], found[2], units, tuple(task_names)), index.ravel()

    @cached_property
    def _sides(self) -> dict[str, Side]:
        return {}

    def side(self, treatment: str) -> Side:
        """Scores of a treatment by pair and n, nan where there is none; several sources of one target are averaged."""
        if treatment not in self._sides:
            pairs, index = self._numbered
            frame = self._scored
            own = (frame["treatment"] == treatment).to_numpy()
            shape = (len(pairs.unit), int(frame["n"].max()) + 1 if len(frame) else 1)
            at = index[own] * shape[1] + frame["n"].to_numpy()[own]
            size = shape[0] * shape[1]
            cells = np.bincount(at, minlength=size)
            total = np.bincount(at, frame["score"].to_numpy()[own], minlength=size)
            dead = np.bincount(at, (frame["status"] == "diverged").to_numpy()[own], minlength=size)
            scores = np.divide(total, cells, out=np.full(size, np.nan), where=cells > 0)
            self._sides[treatment] = scores.reshape(shape), (dead > 0).reshape(shape)
        return self._sides[treatment]

    @cached_property
    def contrasts(self) -> dict[Any, Contrast]:
        """Contrasts already taken here (see contrasts.py)."""
        return {}

    @property
    def splits(self) -> int:
        """Number of splits."""
        return int(self.frame["unit"].nunique())

    @property
    def title(self) -> str:
        """`4 random splits`, `the semantic split`."""
        if not self.population:
            return "no cells"
        if self.population == "all":
            return "the whole data set"
        if self.population == "random":
            return count(self.splits, "random split")
        return f"the {self.population} split"

    def has(self, *treatments: str) -> bool:
        """Whether any of the treatments has a scored cell here."""
        present = set(self._scored["treatment"].unique())
        return any(t in present for t in treatments)


def main(results: Results) -> Scope:
    """The scope of Figure 2: the random splits' largest setting, else the largest other split, else the whole set."""
    if "main" not in results.scopes:
        results.scopes["main"] = _main(results)
    return results.scopes["main"]


def _main(results: Results) -> Scope:
    frame = results.frame
    for among in (frame["split"] == "random", ~frame["split"].isin(["random", "all"]), frame["split"] == "all"):
        if among.any():
            split = _largest(frame[among], "split")
            chosen = frame[frame["split"] == split]
            return _scope(results, chosen[chosen["setting"] == _largest(chosen, "setting")], split)
    return Scope(frame, "")


def other(results: Results) -> Scope | None:
    """The scope of the other split (the paper's man-made/natural): `semantic`, else the largest explicit list."""
    if "other" not in results.scopes:
        results.scopes["other"] = _other(results)
    return results.scopes["other"]


def _other(results: Results) -> Scope | None:
    frame = results.frame[~results.frame["split"].isin(["random", "all"])]
    names = [s for s in frame["split"].unique() if s != main(results).population]
    if not names:
        return None
    frame = frame[frame["split"].isin(names)]
    split = "semantic" if "semantic" in names else _largest(frame, "split")
    chosen = frame[frame["split"] == split]
    return _scope(results, chosen[chosen["setting"] == _largest(chosen, "setting")], split)


def _scope(results: Results, chosen: pd.DataFrame, population: str) -> Scope:
    """With the networks of its tasks that stand under another split's name.

    A base, scratch or selffer network belongs to its task; where two splits share a half, it is trained once and
    carries one split's name. Here it joins the split whose task it is.
    """
    unit_of = chosen.drop_duplicates("task").set_index("task")["unit"]
    frame = results.frame
    own = ~frame["treatment"].isin(["transfer", "transfer+"]) & frame["task"].isin(unit_of.index)
    parts = frame[own & ~frame["cell"].isin(chosen["cell"])]
    for part in PARTS:
        here = chosen[part].iloc[0]
        parts = parts[(parts[part] == here) | (parts[part].isna() & (here != here or here is None))]
    whole = chosen
    if len(parts):
        have = set(zip(chosen["task"], chosen["seed"], chosen["treatment"], chosen["n"], strict=True))
        keys = zip(parts["task"], parts["seed"], parts["treatment"], parts["n"], strict=True)
        parts = parts[[key not in have for key in keys]]
        whole = pd.concat([chosen, parts]) if len(parts) else chosen
    return Scope(whole.assign(unit=whole["task"].map(unit_of)), population)


def peers(results: Results, scope: Scope) -> Scope | None:
    """The random splits to hold another split against: of its own setting if there are any, else the main ones."""
    frame = results.frame[results.frame["split"] == "random"]
    if frame.empty or scope.frame.empty:
        return None
    own = frame[frame["setting"] == scope.frame["setting"].iloc[0]]
    if not own["treatment"].isin(["transfer", "transfer+"]).any() or set(own["cell"]) <= set(
        main(results).frame["cell"]
    ):
        return main(results)
    if "peers" not in results.scopes:
        results.scopes["peers"] = _scope(results, own, "random")
    return results.scopes["peers"]


def equal_terms(scope: Scope, against: Scope) -> bool:
    """Same setting, and the same number of classes in every task."""
    both = [*scope.frame["classes"].unique(), *against.frame["classes"].unique()]
    return len(set(both)) == 1 and both[0] == both[0] and _setting(scope) == _setting(against)


def whole(results: Results) -> Scope | None:
    """Cells whose task is the whole data set, in the main setting (random filters and their reference)."""
    if "whole" not in results.scopes:
        results.scopes["whole"] = _whole(results)
    return results.scopes["whole"]


def _whole(results: Results) -> Scope | None:
    frame = results.frame[results.frame["split"] == "all"]
    if frame.empty:
        return None
    here = main(results).frame
    same = frame
    if len(here):
        first = here[list(PARTS)].iloc[0]
        for part in PARTS:
            none = first[part] is None or first[part] != first[part]
            same = same[(same[part] == first[part]) | (same[part].isna() & none)]
    return Scope(same if len(same) else frame[frame["setting"] == _largest(frame, "setting")], "all")


def random_filters(results: Results) -> list[Scope]:
    """The scopes that hold random, untrained filters: the main splits, the other split, the whole set."""
    scopes = [main(results), other(results), whole(results)]
    return [s for s in scopes if s is not None and s.has("random")]


def left_out(results: Results) -> list[str]:
    """Settings whose cells stand in no main figure, one line each."""
    frame = results.frame
    used = set(main(results).frame["cell"])
    found = other(results)
    for scope in (found, peers(results, found) if found else None, whole(results)):
        used |= set(scope.frame["cell"]) if scope else set()
    from analysis import supplement

    used |= set(supplement.networks(results)["cell"])
    rest = frame[~frame["cell"].isin(used)]
    lines = []
    for key, cells in rest.groupby(["split", *PARTS[:3], "split_classes"], dropna=False, sort=True):
        said = [
            f"{name} {v:g}" if isinstance(v, float) else f"{name} {v}"
            for name, v in zip(("split", "network", "data set", "recipe", "classes in split"), key, strict=True)
            if v is not None and v == v
        ]
        images = sorted(int(i) for i in cells["images_per_class"].dropna().unique())
        if images:
            said.append(f"images per class {', '.join(map(str, images))}")
        lines.append(f"{count(len(cells), 'cell')} of {', '.join(said)}")
    return lines


def _natural(unit: str) -> tuple[str, int]:
    """random2 before random10."""
    head = unit.rstrip("0123456789")
    return head, int(unit[len(head) :] or 0)


def _setting(scope: Scope) -> str:
    return str(scope.frame["setting"].iloc[0]) if len(scope.frame) else ""


def _largest(frame: pd.DataFrame, column: str) -> str:
    """The value with most cells of Figure 2; ties go to most cells, then to the first in the alphabet."""
    curves = frame["treatment"].isin(CURVES)
    sizes = frame[[column]].assign(curves=curves).groupby(column)["curves"].agg(["sum", "size"]).reset_index()
    sizes = sizes.sort_values(["sum", "size", column], ascending=[False, False, True])
    return str(sizes[column].iloc[0])
