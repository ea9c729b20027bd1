"""Cells of a plan as jobs for the peers: plain values and paths, nothing of raygrid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.workload import Workload
from raygrid.architectures import small
from raygrid.cell import Cell

DROPOUT = next(stage.dropout for stage in small(10) if stage.dropout)


def job(work: Workload, cell: Cell, folder: Path, *, skip: bool = True, naive: bool = False) -> dict[str, Any]:
    """A cell as a job. `naive`: contiguous float32, frozen layers backward too."""
    recipe, numerics = cell.recipe, cell.recipe.numerics
    assert cell.network.name == "small" and recipe.schedule.kind == "one-cycle", "the peers know `small` only"
    assert recipe.augmentation.crop is None and recipe.normalization == "channel"
    (train,), (test,) = work.manifest.of("train"), work.manifest.of("test")
    return {
        "name": cell.address,
        "train_images": str(work.place / train.images),
        "train_labels": str(work.place / train.labels),
        "test_images": str(work.place / test.images),
        "test_labels": str(work.place / test.labels),
        "classes": list(cell.target.classes),
        "images_per_class": cell.target.images_per_class,
        "width": cell.network.width,
        "dropout": DROPOUT if cell.network.dropout is None else cell.network.dropout,
        "n": cell.n,
        "frozen": cell.frozen > 0,
        "base": str(folder / f"{cell.base.hash}.pt") if cell.base else None,
        "save": str(folder / f"{cell.hash}.pt") if cell.treatment == "base" else None,
        "steps": cell.steps(work.plan.facts),
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "clip": recipe.gradient_clip,
        "padding": recipe.augmentation.padding,
        "flip": recipe.augmentation.flip,
        "evaluations": min(recipe.evaluations, cell.steps(work.plan.facts)),
        "evaluation_images": recipe.evaluation_images or sum(work.plan.facts.test),
        "threads": numerics.threads,
        "channels_last": numerics.memory_format == "channels_last" and not naive,
        "bf16": numerics.autocast == "bfloat16" and not naive,
        "skip": skip and not naive,
        "seed": int(cell.hash[:8], 16),  # one for all would give a base and its cells the same initial weights
    }
