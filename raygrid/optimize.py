"""Stochastic gradient descent and learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raygrid.study import Recipe


def learning_rate(recipe: Recipe, step: int, total: int, stretch: int = 1) -> float:
    """Learning rate of a step (counted from 0) of a training of `total` steps, `stretch` times as many as the recipe's.

    `one-cycle` equals torch.optim.lr_scheduler.OneCycleLR with its defaults (warm-up over 30 % from lr / 25, cosine
    down to lr / 250,000). `step` multiplies by `factor` every `every` iterations (paper: 0.1 every 100,000).
    """
    schedule = recipe.schedule
    if schedule.kind == "constant":
        return recipe.lr
    if schedule.kind == "step":
        assert schedule.every is not None
        every = schedule.every * stretch if schedule.every > 1 else schedule.every * total
        return recipe.lr * schedule.factor ** int(step / every + 1e-9)
    lowest = recipe.lr / 25
    turn, end = 0.3 * total - 1, total - 1
    if step <= turn:
        return _cosine(lowest, recipe.lr, step / turn)
    return _cosine(recipe.lr, lowest / 1e4, (step - turn) / (end - turn) if end > turn else 1.0)


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


class Optimizer:
    """SGD with momentum over the parameters that learn: frozen ones are not in it at all, so nothing can move them.

    With `sgd: torch` it gives the bits of torch.optim.SGD and clip_grad_norm_, and takes as long. With `sgd: caffe` it
    is Caffe's solver (sgd_solver.cpp): v <- m v + lr (g + wd w); w <- w - v. PyTorch keeps the learning rate outside
    of v, so that after a drop of the rate the two differ for some 20 steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], recipe: Recipe):
        self.parameters, self.recipe = list(parameters), recipe
        self._velocity: dict[nn.Parameter, Tensor] = {}
        weights = [p for p in self.parameters if p.dim() > 1]
        biases = [p for p in self.parameters if p.dim() == 1]
        groups = [(weights, recipe.weight_decay, 1.0)]
        groups += [(biases, recipe.weight_decay * recipe.bias_decay, recipe.bias_lr)]
        self._groups = [group for group in groups if group[0]]
        """parameters that are updated together, their weight decay, their factor on the learning rate"""

    def zero_grad(self) -> None:
        """Forget gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Clip the gradient, then move the weights with this learning rate (biases: times `bias_lr`)."""
        if self.recipe.gradient_clip is not None:
            _clip([p.grad for p in self.parameters if p.grad is not None], self.recipe.gradient_clip)
        for group, decay, factor in self._groups:
            parameters = [p for p in group if p.grad is not None]
            if parameters:
                self._update(parameters, decay, lr * factor)

    def _update(self, parameters: list[nn.Parameter], decay: float, lr: float) -> None:
        caffe, momentum = self.recipe.sgd == "caffe", self.recipe.momentum
        gradients = [p.grad for p in parameters]
        if decay:
            gradients = torch._foreach_add(gradients, parameters, alpha=decay)
        if momentum and parameters[0] in self._velocity:
            velocity = [self._velocity[p] for p in parameters]
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradients, alpha=lr if caffe else 1)
        else:
            velocity = torch._foreach_mul(gradients, lr) if caffe else [g.clone() for g in gradients]
            if momentum:
                self._velocity.update(zip(parameters, velocity, strict=True))
        torch._foreach_add_(parameters, velocity, alpha=-1 if caffe else -lr)

    def momentum(self) -> list[Tensor | None]:
        """Momentum buffers in the order of the parameters."""
        return [self._velocity.get(p) for p in self.parameters]

    def restore(self, buffers: Sequence[Tensor | None]) -> None:
        """Put momentum buffers back."""
        for parameter, buffer in zip(self.parameters, buffers, strict=True):
            if buffer is not None:
                fresh = torch.empty_like(parameter, memory_format=torch.preserve_format)
                self._velocity[parameter] = fresh.detach().copy_(buffer)


def _clip(gradients: list[Tensor], largest: float) -> None:
    """Scale gradients so that their norm together is at most this."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)), 2.0)
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
