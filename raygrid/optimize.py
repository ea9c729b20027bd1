"""Stochastic gradient descent and learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raygrid.study import Recipe


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Learning rate of a step (counted from 0) of a training of `total` steps.

    `one-cycle` equals torch.optim.lr_scheduler.OneCycleLR with its defaults (warm-up over 30 % from lr / 25, cosine
    down to lr / 250,000). `step` multiplies by `factor` every `every` iterations (paper: 0.1 every 100,000).
    """
    schedule = recipe.schedule
    if schedule.kind == "constant":
        return recipe.lr
    if schedule.kind == "step":
        assert schedule.every is not None
        every = schedule.every if schedule.every > 1 else schedule.every * total
        return recipe.lr * schedule.factor ** int(step / every + 1e-9)
    lowest = recipe.lr / 25
    turn, end = 0.3 * total - 1, total - 1
    if step <= turn:
        return _cosine(lowest, recipe.lr, step / turn)
    return _cosine(recipe.lr, lowest / 1e4, (step - turn) / (end - turn) if end > turn else 1.0)


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


class Optimizer:
    """SGD with momentum over the parameters that learn: frozen ones are not in it at all, so nothing can move them."""

    def __init__(self, parameters: Sequence[nn.Parameter], recipe: Recipe):
        self.parameters, self.recipe = list(parameters), recipe
        weights = [p for p in self.parameters if p.dim() > 1]
        biases = [p for p in self.parameters if p.dim() == 1]
        groups = [
            {"params": weights, "weight_decay": recipe.weight_decay},
            {"params": biases, "weight_decay": recipe.weight_decay * recipe.bias_decay},
        ]
        kind = CaffeSGD if recipe.sgd == "caffe" else torch.optim.SGD
        foreach = recipe.numerics.optimizer == "foreach"
        self.sgd = kind([g for g in groups if g["params"]], lr=recipe.lr, momentum=recipe.momentum, foreach=foreach)

    def zero_grad(self) -> None:
        """Forget gradients."""
        self.sgd.zero_grad(set_to_none=True)

    def step(self, lr: float) -> None:
        """Clip the gradient, then move the weights with this learning rate (biases: times `bias_lr`)."""
        if self.recipe.gradient_clip is not None:
            foreach = self.recipe.numerics.optimizer == "foreach"
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip, foreach=foreach)
        for group in self.sgd.param_groups:
            group["lr"] = lr * (self.recipe.bias_lr if group["params"][0].dim() == 1 else 1.0)
        self.sgd.step()

    def momentum(self) -> list[Tensor | None]:
        """Momentum buffers in the order of the parameters."""
        return [self.sgd.state[p].get("momentum_buffer") if p in self.sgd.state else None for p in self.parameters]

    def restore(self, buffers: Sequence[Tensor | None]) -> None:
        """Put momentum buffers back."""
        for parameter, buffer in zip(self.parameters, buffers, strict=True):
            if buffer is not None:
                fresh = torch.empty_like(parameter, memory_format=torch.preserve_format)
                self.sgd.state[parameter]["momentum_buffer"] = fresh.detach().copy_(buffer)


class CaffeSGD(torch.optim.Optimizer):
    """Caffe's solver (sgd_solver.cpp): v <- m v + lr (g + wd w); w <- w - v.

    PyTorch keeps the learning rate outside of v, so that after a drop of the rate the two differ for some 20 steps.
    """

    def __init__(self, params, lr: float, momentum: float, weight_decay: float = 0.0, foreach: bool = True):  # type: ignore[no-untyped-def]
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.foreach = foreach

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            for together in [moving] if self.foreach and moving else [[p] for p in moving]:
                self._update(together, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        velocity = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_add_(velocity, gradients, alpha=group["lr"])
        torch._foreach_sub_(parameters, velocity)
