"""A network as a list of stages, in plain numbers: no torch.

One weight layer opens each stage, and what follows it up to the next weight layer belongs to it (activation, pooling,
normalisation). A dropout belongs to the stage that it *feeds*: so copying n stages copies exactly n weight layers, and
drop6 opens stage 7. `cost` counts from these shapes, `networks` builds torch modules from them, and `study` and `plan`
learn from them how many layers there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache


@dataclass(frozen=True)
class Pool:
    """Max pooling. The output size is rounded up, as in Caffe."""

    kernel: int
    stride: int


@dataclass(frozen=True)
class Stage:
    """One weight layer and all that belongs to it."""

    kind: str
    """`conv` or `fc`"""
    out: int
    """filters or units; 0 stands for the number of head outputs"""
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = True
    pool: Pool | None = None
    lrn: str | None = None
    """local response normalisation: `after-pool` (CaffeNet) or `before-pool` (the AlexNet paper)"""
    batch_norm: bool = False
    dropout: float = 0.0
    """rate of the dropout that opens this stage"""
    std: float | None = None
    """standard deviation of the normal initial weights; None: He et al. 2015 (fan-in)"""
    bias: float = 0.0
    """initial value of the biases"""


@dataclass(frozen=True)
class StageShape:
    """A stage with its sizes for one image. Shapes are (channels, height, width); fc has height = width = 1."""

    stage: Stage
    fan_in: int
    """input channels (conv) or input units (fc)"""
    weighted: tuple[int, int, int]
    """what the weight layer puts out"""
    out: tuple[int, int, int]
    """what the stage hands on, after pooling"""

    @property
    def weights(self) -> int:
        """Number of weights without biases."""
        return self.weighted[0] * (self.fan_in // self.stage.groups) * self.stage.kernel**2

    @property
    def parameters(self) -> int:
        """Weights, biases and the affine pair of a batch norm."""
        return self.weights + self.weighted[0] * (3 if self.stage.batch_norm else 1)


def shapes(stages: tuple[Stage, ...], size: int, channels: int = 3) -> tuple[StageShape, ...]:
    """Shapes of every stage for square images of `size` pixels.

    Raises ValueError, naming the layer, if the image is too small for a kernel or a pool.
    """
    result: list[StageShape] = []
    c, h, w = channels, size, size
    for number, stage in enumerate(stages, start=1):
        if stage.kind == "fc":
            fan_in = c * h * w
            weighted = out = (stage.out, 1, 1)
        else:
            fan_in = c
            h, w = ((x + 2 * stage.padding - stage.kernel) // stage.stride + 1 for x in (h, w))
            weighted = (stage.out, h, w)
            if h >= 1 and stage.pool:
                k, s = stage.pool.kernel, stage.pool.stride
                h, w = (-(-(x - k) // s) + 1 if x >= k else 0 for x in (h, w))
            if h < 1:
                raise ValueError(f"layer {number} has nothing left to see of images of {size} x {size} pixels")
            out = (stage.out, h, w)
        result.append(StageShape(stage, fan_in, weighted, out))
        c, h, w = out
    return tuple(result)


# --- the networks that a study may name ------------------------------------------------------------------------------


def caffenet(outputs: int, width: float = 1.0, dropout: float = 0.5) -> tuple[Stage, ...]:
    """CaffeNet, the network of Yosinski et al. 2014 (the Caffe reference model; half0A/imagenet_train.prototxt).

    Pool before LRN, two groups in layers 2, 4, 5, normal initial weights (.01; .005 in fc6, fc7), biases 1 in
    layers 2, 4, 5, 6, 7. With 1000 outputs and images of 227 pixels: 60,965,224 parameters. At other widths the
    initial weights above layer 1 are divided by the root of the width, so that what they add up to stays as large.
    """
    return _caffenet(outputs, width, dropout, first=(11, 4), grown=(1, 1, 1))


def caffenet_32(outputs: int, width: float = 1.0, dropout: float = 0.5) -> tuple[Stage, ...]:
    """CaffeNet for images of about 32 pixels: 5 x 5 filters at every pixel open it, all else as it is.

    Its own 11 x 11 at every fourth pixel need 55 pixels for the last pooling to have anything to see. Layers 1 and 6
    have fewer inputs now (75 for 363; 4 positions for 36, with crops of 27 pixels), and larger initial weights by the
    root of that. Those of layers 2 to 7 are doubled besides: CaffeNet's begin to learn after hundreds of steps only.
    """
    return _caffenet(outputs, width, dropout, first=(5, 1), grown=(2.2, 2, 3))


def _caffenet(
    outputs: int, width: float, dropout: float, first: tuple[int, int], grown: tuple[float, float, float]
) -> tuple[Stage, ...]:
    """`first`: kernel and stride of layer 1. `grown`: factors on the initial weights of layer 1; of layers 2 to 7; of
    layer 6 besides."""

    def wide(units: int) -> int:
        return max(2, 2 * round(units * width / 2))

    kernel, stride = first
    pool, root = Pool(3, 2), math.sqrt(width)
    conv, fc = 0.01 * grown[1] / root, 0.005 * grown[1] / root
    return (
        Stage("conv", wide(96), kernel, stride=stride, pool=pool, lrn="after-pool", std=0.01 * grown[0]),
        Stage("conv", wide(256), 5, padding=2, groups=2, pool=pool, lrn="after-pool", std=conv, bias=1),
        Stage("conv", wide(384), 3, padding=1, std=conv),
        Stage("conv", wide(384), 3, padding=1, groups=2, std=conv, bias=1),
        Stage("conv", wide(256), 3, padding=1, groups=2, pool=pool, std=conv, bias=1),
        Stage("fc", wide(4096), std=fc * grown[2], bias=1),
        Stage("fc", wide(4096), dropout=dropout, std=fc, bias=1),
        Stage("fc", outputs, dropout=dropout, relu=False, std=0.01 / root),
    )


def alexnet(outputs: int, width: float = 1.0, dropout: float = 0.5) -> tuple[Stage, ...]:
    """The one-column AlexNet of Krizhevsky 2014 (arXiv 1404.5997), as in torchvision."""

    def wide(units: int) -> int:
        return max(1, round(units * width))

    pool = Pool(3, 2)
    return (
        Stage("conv", wide(64), 11, stride=4, padding=2, pool=pool),
        Stage("conv", wide(192), 5, padding=2, pool=pool),
        Stage("conv", wide(384), 3, padding=1),
        Stage("conv", wide(256), 3, padding=1),
        Stage("conv", wide(256), 3, padding=1, pool=pool),
        Stage("fc", wide(4096), dropout=dropout),
        Stage("fc", wide(4096), dropout=dropout),
        Stage("fc", outputs, relu=False),
    )


def small(outputs: int, width: float = 1.0, dropout: float = 0.3) -> tuple[Stage, ...]:
    """AlexNet in shape (five conv, three fc) for images of about 32 pixels; learns without normalisation layers."""

    def wide(units: int) -> int:
        return max(1, round(units * width))

    pool = Pool(2, 2)
    return (
        Stage("conv", wide(32), 5, padding=2, pool=pool),
        Stage("conv", wide(48), 3, padding=1, pool=pool),
        Stage("conv", wide(64), 3, padding=1),
        Stage("conv", wide(64), 3, padding=1),
        Stage("conv", wide(48), 3, padding=1, pool=pool),
        Stage("fc", wide(256)),
        Stage("fc", wide(128), dropout=dropout),
        Stage("fc", outputs, dropout=dropout, relu=False),
    )


def small_bn(outputs: int, width: float = 1.0, dropout: float = 0.3) -> tuple[Stage, ...]:
    """`small` with a batch norm after each hidden weight layer: what frozen statistics do can be studied on it."""
    stages = small(outputs, width, dropout)
    return tuple(replace(stage, batch_norm=stage.relu) for stage in stages)


ARCHITECTURES: dict[str, Callable[..., tuple[Stage, ...]]] = {
    "small": small,
    "small-bn": small_bn,
    "caffenet": caffenet,
    "caffenet-32": caffenet_32,
    "alexnet": alexnet,
}
"""Name in a study -> function of (outputs, width, dropout)."""


@cache
def layers(name: str) -> int:
    """Number of weight layers of the named network."""
    return len(ARCHITECTURES[name](10))
