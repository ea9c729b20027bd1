"""Copy the first n layers, re-initialise the rest, freeze or not; and prove what was frozen (paper section 2).

Where initial weights come from, by treatment (every seed is made of names, law 3):

    base                   all layers (task, seed, layer, "base")
    scratch, base-long     all layers (target, seed, layer, "reinit")
    selffer, transfer, +   layers 1..n, and those preserved, the base's; above (target, seed, layer, "reinit"): the same
                           for every source, n and "+"
    random                 layers 1..n (network, seed, layer, "random"), so that they nest over n; above as the others
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from raygrid.architectures import Stage
from raygrid.cell import Cell, digest, seed_from
from raygrid.errors import IntegrityError
from raygrid.networks import StagedNetwork, StageModule, build, skeleton


def assemble(
    cell: Cell, base: Mapping[str, Tensor] | None, statistics: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> StagedNetwork:
    """A cell's network at step 0.

    `base` holds the tensors of the base's checkpoint where the treatment copies any; `statistics` gives the mean and
    std of the target task, asked only where the normalisation is not copied.
    """
    if cell.base is not None:
        assert base is not None, "a copying treatment needs its base"
        check(cell.base, base)
        network = build(cell, base["input.mean"].numpy(), base["input.std"].numpy())
        _copy(network, base, cell.n + cell.preserved)
    else:
        network = build(cell, *statistics())
    copied = cell.n + cell.preserved if cell.base is not None else 0
    for number in range(copied + 1, network.depth + 1):
        initialise(network.stage(number), layer_seed(cell, number))
    freeze(network, cell.frozen)
    return network


def layer_seed(cell: Cell, number: int) -> int:
    """Seed of the initial weights of a layer that is not copied."""
    if cell.treatment == "base":
        return seed_from(cell.target.id, cell.seed, number, "base")
    if cell.treatment == "random" and number <= cell.n:
        return seed_from(digest(cell.network.model_dump(mode="json")), cell.seed, number, "random")
    return seed_from(cell.target.id, cell.seed, number, "reinit")


def initialise(module: StageModule, seed: int) -> None:
    """Fresh weights and biases of one stage (normal; He et al. 2015 where the stage names no deviation)."""
    draw = torch.Generator().manual_seed(seed % 2**63)
    stage: Stage = module.stage
    weight = module.layer.weight
    fan_in = weight[0].numel()
    std = stage.std if stage.std is not None else math.sqrt(2 / fan_in)
    fresh = torch.empty(tuple(weight.shape)).normal_(0, float(std), generator=draw)
    with torch.no_grad():
        weight.copy_(fresh)
        module.layer.bias.fill_(stage.bias)
        if module.norm is not None:
            module.norm.reset_parameters()


def freeze(network: StagedNetwork, n: int) -> None:
    """Layers 1..n do not learn: their parameters leave the gradient, their batch norms use and keep their statistics.

    Everything else of a frozen stage works as in training (dropout stays active, as in Caffe).
    """
    network.train()
    for number in range(1, n + 1):
        module = network.stage(number)
        module.requires_grad_(False)
        if module.norm is not None:
            module.norm.eval()


def _copy(network: StagedNetwork, base: Mapping[str, Tensor], n: int) -> None:
    with torch.no_grad():
        for name, tensor in network.tensors(1, n).items():
            tensor.copy_(base[name])


def check(base: Cell, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint that is not this base's: names, shapes, types, finite values. Raises IntegrityError."""
    mean = tensors.get("input.mean", torch.zeros(3))
    expected = skeleton(base, tuple(mean.shape)).state_dict()
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise IntegrityError(
            f"checkpoint of {base.address}: tensors do not match {base.network.name} "
            f"(missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(extra) or 'none'})"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise IntegrityError(
                f"checkpoint of {base.address}: {name} has shape {list(tensor.shape)}, "
                f"expected {list(expected[name].shape)}"
            )
        if tensor.dtype != expected[name].dtype:
            raise IntegrityError(
                f"checkpoint of {base.address}: {name} is {tensor.dtype}, expected {expected[name].dtype}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(f"checkpoint of {base.address}: {name} holds values that are not finite")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes."""
    seen = hashlib.sha256()
    for name in sorted(tensors):
        seen.update(name.encode())
        seen.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()


def frozen_fingerprint(network: nn.Module, n: int) -> str:
    """Fingerprint of all that must not change in a network whose first n layers are frozen."""
    assert isinstance(network, StagedNetwork)
    return fingerprint(network.tensors(1, n))
