"""A cell in training: its network, its optimiser, where it stands; and what its training came to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from raygrid.cell import Cell
from raygrid.data.stream import Noise
from raygrid.networks import Normalization, StagedNetwork
from raygrid.optimize import Optimizer
from raygrid.record import Evaluation, History, Result, Status

CHANCE = 0.99
"""a mean training loss of the last tenth at or above this fraction of the loss of guessing counts as diverged"""


@dataclass(eq=False)
class Member:
    """A cell in training."""

    cell: Cell
    network: StagedNetwork
    trunk: Trunk | None
    optimizer: Optimizer
    total: int
    images: int
    losses: Tensor
    """float32 [total], on the device"""
    frozen_before: str | None
    step: int = 0
    history: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    resumed_at: int = 0
    stopped: str | None = None
    """why training ended early, and at which step (not finite)"""

    @cached_property
    def tests(self) -> list[int]:
        """Steps after which the network is tested; the last is the last step."""
        count = min(self.cell.recipe.evaluations, self.total)
        return sorted({round(self.total * (i + 1) / count) for i in range(count)})

    @property
    def finished(self) -> bool:
        return self.stopped is not None or self.step >= self.total


@dataclass(eq=False)
class Trunk:
    """Frozen layers of one origin, each once, whatever number of members stands on them."""

    input: Normalization
    stages: dict[int, nn.Module] = field(default_factory=dict)

    def taps(self, x: Tensor, wanted: Iterable[int], noise: Noise | None) -> dict[int, Tensor]:
        """Outputs of the layers wanted, from one forward without gradients."""
        cuts = set(wanted)
        found = {}
        with torch.no_grad():
            for number in range(1, max(cuts) + 1):
                x = self.stages[number](x, noise)
                if number in cuts:
                    found[number] = x
        return found


def metrics(last: Evaluation) -> dict[str, float]:
    """An evaluation as metrics; values that do not exist are left out."""
    named = {
        "train/loss": last.train_loss,
        "test/top1": last.top1,
        "test/top5": last.top5,
        "test/loss": last.loss,
    }
    return {name: value for name, value in named.items() if value is not None}


def verdict(member: Member) -> tuple[Status, str | None]:
    """`ok`, or `diverged` with the reason: loss not finite, or still that of guessing over the last tenth."""
    if member.stopped is not None:
        return "diverged", member.stopped
    last = float(member.losses[member.total - max(1, member.total // 10) : member.total].double().mean())
    guesses = (math.log(member.cell.outputs), math.log(len(member.cell.target.classes)))
    guess = min(guesses, key=lambda value: abs(value - last))
    if last >= CHANCE * guess:
        return (
            "diverged",
            f"the training loss of the last tenth was {last:.4f}, no better than guessing ({guess:.4f})",
        )
    return "ok", None


def result(
    member: Member,
    status: Status,
    reason: str | None,
    verified: bool | None,
    where: str | None,
    sha256: str | None,
) -> Result:
    """The deterministic part of a cell's record. A network that was stopped has no score: that of its last test would
    be missing, and the mean of its ten best would be that of its best moments."""
    tops = sorted((e.top1 for e in member.history), reverse=True)
    last = member.history[-1] if member.history and member.stopped is None else None
    return Result(
        status=status,
        steps=member.step,
        images_seen=member.step * member.cell.recipe.batch_size,
        top1_last=last.top1 if last else None,
        top1_best=tops[0] if tops else None,
        top1_mean10=sum(tops[:10]) / 10 if last and len(tops) >= 10 else None,
        top5_last=last.top5 if last else None,
        loss_last=last.loss if last else None,
        frozen_verified=verified,
        checkpoint=where,
        checkpoint_sha256=sha256,
        history=History.of(member.history),
        reason=reason,
    )
