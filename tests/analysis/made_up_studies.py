"""Made-up studies with known effects: no network was trained for any number here.

Every network's accuracy is level of its task + effect of (treatment, n) + noise of its seed and its own, in fractions.
Splits carry their own level, so that raw means scatter much more than paired differences, as in real studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

COPYING = ("selffer", "selffer+", "transfer", "transfer+")
Effect = Callable[[str, int, str], float]


def paper_like(treatment: str, n: int, split: str) -> float:
    """Shapes of the paper's Figure 2, in fractions: dip of BnB in the middle, fall of AnB, gain of AnB+."""
    deep = n / 7
    dip = 0.03 * np.exp(-((n - 4.5) ** 2))
    fall = 0.09 * deep**3 * (2.2 if split == "semantic" else 1)
    return float(
        {
            "base": 0.0,
            "scratch": 0.002,
            "base-long": 0.006,
            "selffer": -dip,
            "selffer+": 0.009 * deep,
            "transfer": -dip - fall,
            "transfer+": 0.013 * deep - (0.02 * deep if split == "semantic" else 0),
            "random": -0.1 - 0.3 * deep,
        }[treatment]
    )


def as_the_paper(treatment: str, n: int, split: str) -> float:
    """Everything that the paper claims, and no more: what it calls equal is equal to the digit."""
    if treatment in ("base", "scratch", "base-long"):
        return 0.0
    if treatment == "selffer" and n in (1, 2, 6, 7):
        return 0.0
    if treatment == "transfer" and n in (1, 2):
        return 0.0
    if treatment == "selffer+":
        return 0.001
    if treatment == "transfer+":
        return 0.005 if split == "semantic" else 0.015
    return paper_like(treatment, n, split)


def nothing(treatment: str, n: int, split: str) -> float:
    """No treatment does anything."""
    return 0.0


def study(
    splits: Sequence[int] = (0, 1, 2),
    layers: Iterable[int] = range(1, 8),
    seeds: Iterable[int] = (0,),
    treatments: Iterable[str] = ("base", "scratch", *COPYING),
    effect: Effect = paper_like,
    level: float = 0.62,
    split_noise: float = 0.006,
    noise: float = 0.001,
    classes: int = 5,
    depth: int = 8,
    semantic: bool = False,
    random_filters: bool = False,
    generator: int = 0,
    name: str = "made-up",
) -> pd.DataFrame:
    """A balanced study: every half of every split is a target."""
    rng = np.random.default_rng(generator)
    layers, seeds, treatments = list(layers), list(seeds), list(treatments)
    rows: list[dict[str, object]] = []

    def add(split: str, split_seed: int | None, target: str, treatment: str, n: int, seed: int, value: float) -> None:
        source = None
        if treatment.startswith("selffer"):
            source = target
        elif treatment.startswith("transfer"):
            source = "A" if target == "B" else "B"
        copies = n > 0
        rows.append(
            {
                "study": name,
                "cell": f"{split}{'' if split_seed is None else split_seed}/{target}/{treatment}/{n}/seed{seed}",
                "split": split,
                "split_seed": split_seed,
                "source": source,
                "target": target,
                "treatment": treatment,
                "n": n,
                "frozen": copies and not treatment.endswith("+"),
                "seed": seed,
                "network": "small",
                "dataset": "made-up",
                "status": "ok",
                "steps": 1000,
                "images_seen": 64000,
                "top1_last": float(np.clip(value + rng.normal(0, noise), 0, 1)),
                "top5_last": None,
                "loss_last": 1.0,
                "frozen_verified": True if copies and not treatment.endswith("+") else None,
                "checkpoint_uri": f"store/{split}{split_seed}/{target}/{treatment}{n}-{seed}.safetensors",
                "checkpoint_sha256": "0" * 64,
                "data_sha256": "a1" * 32,
                "duration_s": 12.0,
                "device": "cpu",
                "commit": "0000000",
                "raygrid_version": "0.1.0",
                "classes": classes if target != "all" else 2 * classes,
                "split_classes": 2 * classes,
                "layers": depth,
                "recipe": "r1",
                "score": "top1_last",
            }
        )

    places: list[tuple[str, int | None]] = [("random", s) for s in splits]
    if semantic:
        places.append(("semantic", None))
    for split, split_seed in places:
        for target in ("A", "B"):
            of_task = level + rng.normal(0, split_noise)
            for seed in seeds:
                of_seed = of_task + rng.normal(0, noise)
                for treatment in treatments:
                    if treatment in ("base", "scratch", "base-long"):
                        ns: list[int] = [0]
                    elif treatment == "random":
                        ns = layers if random_filters else []
                    else:
                        ns = layers
                    for n in ns:
                        add(split, split_seed, target, treatment, n, seed, of_seed + effect(treatment, n, split))
    if random_filters and "random" not in treatments:
        for seed in seeds:
            add("all", None, "all", "base", 0, seed, level)
            for n in layers:
                add("all", None, "all", "random", n, seed, level + effect("random", n, "all"))
    return pd.DataFrame(rows)


def demo(generator: int = 0) -> pd.DataFrame:
    """Like the default study: 3 random splits of 10 classes, n in 1, 3, 5, 7 (every n on one), random filters, and the
    semantic split on equal terms (8 classes, 4 against 4) beside random splits of the same 8 classes."""
    first = study(splits=(0,), generator=generator, level=0.6, noise=0.006)
    rest = study(splits=(1, 2), layers=(1, 3, 5, 7), generator=generator + 1, level=0.6, noise=0.006)
    equal = study(
        splits=(0, 1, 2), layers=(1, 3, 5, 7), treatments=("base", "scratch", "transfer", "transfer+"), classes=4,
        semantic=True, generator=generator + 2, level=0.66, noise=0.006,
    )  # fmt: skip
    equal["cell"] = "eight/" + equal["cell"]
    filters = study(
        splits=(), layers=(1, 3, 5, 7), random_filters=True, generator=generator + 3, level=0.5, noise=0.006
    )
    return pd.concat([first, rest, equal, filters], ignore_index=True)


def history(results: pd.DataFrame, evaluations: int = 12) -> pd.DataFrame:
    """Learning curves that end at each cell's score."""
    steps = np.arange(1, evaluations + 1) / evaluations
    shape = 1 - np.exp(-4 * steps)
    count = len(results)
    final = results["top1_last"].fillna(0.1).to_numpy()
    return pd.DataFrame(
        {
            "study": np.repeat(results["study"].to_numpy(), evaluations),
            "cell": np.repeat(results["cell"].to_numpy(), evaluations),
            "step": np.tile((1000 * steps).astype("int64"), count),
            "epoch": np.tile(8 * steps, count),
            "images": 2000,
            "train_loss": np.tile(2.3 * np.exp(-2 * steps), count),
            "top1": (final[:, None] * shape[None, :] / shape[-1]).ravel(),
            "top5": np.nan,
            "loss": np.tile(2.3 * np.exp(-1.5 * steps), count),
            "lr": np.tile(0.02 * (1 - steps), count),
        }
    )


def folder(path: Path, results: pd.DataFrame, with_history: bool = True) -> Path:
    """A study's output folder."""
    path.mkdir(parents=True, exist_ok=True)
    results.to_parquet(path / "results.parquet", index=False)
    if with_history and len(results):
        history(results).to_parquet(path / "history.parquet", index=False)
    return path
