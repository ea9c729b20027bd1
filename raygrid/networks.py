"""Networks as lists of stages, built from `architectures`. The first operation is the normalisation of uint8 crops.

A stage is a plain module with two ways of working: with a `Noise` it trains (dropout masks come from the stream), with
None it tests. Layers are numbered from 1, as in the paper; the tensors of layer 3 are named `stages.3.*`. The
normalisation belongs to layer 1 and is copied with it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raygrid.architectures import ARCHITECTURES, Stage, StageShape, shapes
from raygrid.cell import Cell
from raygrid.data.stream import Batch, Noise
from raygrid.study import Augmentation


class Normalization(nn.Module):
    """(uint8 crop - mean) / std; the mean is one a channel, or an image that is cropped and mirrored with its crop."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    @cached_property
    def key(self) -> bytes:
        """The bytes of mean and std: equal keys normalise equally."""
        return self.mean.cpu().numpy().tobytes() + self.std.cpu().numpy().tobytes()

    def forward(self, x_BHWC: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
        x = x_BHWC.to(torch.float32)
        x = x - (self._crops(x.shape[1], offsets, flips) if self.mean.dim() == 3 else self.mean)
        return (x / self.std).permute(0, 3, 1, 2)

    def _crops(self, side: int, offsets: Tensor, flips: Tensor) -> Tensor:
        along = torch.arange(side, device=self.mean.device)
        rows = offsets[:, 0:1] + along
        columns = offsets[:, 1:2] + torch.where(flips[:, None], along.flip(0), along)
        return self.mean[rows[:, :, None], columns[:, None, :]]


class StageModule(nn.Module):
    """One weight layer with what belongs to it: dropout, layer, batch norm, ReLU, pooling, LRN."""

    def __init__(self, number: int, shape: StageShape):
        super().__init__()
        stage = shape.stage
        self.number, self.stage = number, stage
        if stage.kind == "conv":
            self.layer: nn.Module = nn.Conv2d(
                shape.fan_in, stage.out, stage.kernel, stage.stride, stage.padding, groups=stage.groups
            )
        else:
            self.layer = nn.Linear(shape.fan_in, stage.out)
        norm = nn.BatchNorm2d if stage.kind == "conv" else nn.BatchNorm1d
        self.norm = norm(stage.out) if stage.batch_norm else None
        self.pool = nn.MaxPool2d(stage.pool.kernel, stage.pool.stride, ceil_mode=True) if stage.pool else None
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) if stage.lrn else None

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        if self.stage.kind == "fc" and x.dim() > 2:
            x = x.flatten(1)
        if self.stage.dropout and noise is not None:
            x = x * self._mask(x, noise)
        x = self.layer(x)
        if self.norm is not None:
            x = self.norm(x)
        late = self.stage.lrn == "before-pool"
        if self.pool is not None and not late:  # the same numbers as pooling after the ReLU, which has less to do so
            x = self.pool(x)
        if self.stage.relu:
            x = torch.relu_(x)
        if self.lrn is not None and late:
            x = self.lrn(x.float())
        if self.pool is not None and late:
            x = self.pool(x)
        if self.lrn is not None and self.stage.lrn == "after-pool":
            x = self.lrn(x.float())
        return x

    def _mask(self, x: Tensor, noise: Noise) -> Tensor:
        """The dropout mask of this layer in this step, scaled; made once for all cells of the stream."""
        rate, key = self.stage.dropout, (self.number, x.shape, self.stage.dropout, x.device, x.dtype)
        if key not in noise.masks:
            keep = torch.from_numpy(noise.uniform(self.number, tuple(x.shape)) >= rate)
            if x.device.type != "cpu":  # from pageable memory the copy would wait for all that the device has to do
                keep = keep.pin_memory().to(x.device, non_blocking=True)
            noise.masks[key] = keep.to(x.dtype) / (1 - rate)
        mask: Tensor = noise.masks[key]
        return mask


class StagedNetwork(nn.Module):
    """Normalisation and stages 1..L."""

    def __init__(self, stage_shapes: tuple[StageShape, ...], normalization: Normalization):
        super().__init__()
        self.input = normalization
        self.stages = nn.ModuleDict(
            {str(number): StageModule(number, shape) for number, shape in enumerate(stage_shapes, start=1)}
        )

    @property
    def depth(self) -> int:
        """Number of weight layers."""
        return len(self.stages)

    def stage(self, number: int) -> StageModule:
        """Stage by its number, from 1."""
        module = self.stages[str(number)]
        assert isinstance(module, StageModule)
        return module

    def run(self, h: Tensor, after: int, upto: int, noise: Noise | None) -> Tensor:
        """Stages after+1 .. upto on what stage `after` gave (0: the normalised input)."""
        for number in range(after + 1, upto + 1):
            h = self.stages[str(number)](h, noise)
        return h

    def tensors(self, first: int, last: int) -> dict[str, Tensor]:
        """Parameters and buffers of layers first..last by name; those of layer 1 include the normalisation."""
        names = tuple(f"stages.{number}." for number in range(first, last + 1))
        names += ("input.",) if first <= 1 <= last else ()
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(names)}


def stages_of(cell: Cell) -> tuple[Stage, ...]:
    """The stages of a cell's network, with its head."""
    network = cell.network
    extra = {} if network.dropout is None else {"dropout": network.dropout}
    return ARCHITECTURES[network.name](cell.outputs, network.width, **extra)


def crop_size(cell: Cell) -> int:
    """Side of the crops that a cell's network sees, pixels."""
    return cell.recipe.augmentation.crop or cell.image_size


def skeleton(cell: Cell, mean_shape: tuple[int, ...] = (3,)) -> StagedNetwork:
    """A cell's network without storage: names, shapes and types only."""
    with torch.device("meta"):
        normalization = Normalization(torch.zeros(mean_shape), torch.zeros(3))
        return StagedNetwork(shapes(stages_of(cell), crop_size(cell)), normalization)


def build(cell: Cell, mean: np.ndarray, std: np.ndarray) -> StagedNetwork:
    """A cell's network on the CPU, weights not yet set (see `transplant.assemble`).

    `mean` is [3] or [H, W, 3], `std` is [3], in units of pixel values 0..255.
    """
    network = skeleton(cell).to_empty(device="cpu")
    network.input = Normalization(torch.as_tensor(mean), torch.as_tensor(std))
    if cell.recipe.numerics.memory_format == "channels_last":
        network = network.to(memory_format=torch.channels_last)
    return network


def inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch's crops, labels, offsets and flips as tensors on a device. To an accelerator go whole images, as uint8
    from pinned memory, and are cropped there: the same bytes."""
    return moved(packed(batch, device), batch.augmentation, device)


def packed(batch: Batch, device: torch.device) -> list[Tensor]:
    """What goes to a device, for an accelerator in pinned memory: the slow half of `inputs`, for another thread."""
    far = device.type != "cpu"
    arrays = (batch.images_BHWC if far else batch.crops, batch.labels_B, batch.offsets_B2, batch.flips_B)
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    return [t.pin_memory() for t in tensors] if far else tensors


def moved(
    tensors: list[Tensor], augmentation: Augmentation, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The quick half: queue the copies and the crop."""
    x, y, offsets, flips = (t.to(device, non_blocking=True) for t in tensors)
    return x if device.type == "cpu" else crop(x, offsets, flips, augmentation), y, offsets, flips


def crop(images: Tensor, offsets: Tensor, flips: Tensor, augmentation: Augmentation) -> Tensor:
    """`stream.crop` as one gather, for devices on which a loop over images is slow (on CPUs the loop is 3 to 4 times as
    fast): uint8 [B, H, W, 3] -> [B, crop, crop, 3]."""
    side, pad = augmentation.crop or images.shape[1], augmentation.padding
    padded = functional.pad(images, (0, 0, pad, pad, pad, pad)) if pad else images
    along = torch.arange(side, device=images.device)
    rows = offsets[:, :1] + along
    columns = offsets[:, 1:] + torch.where(flips[:, None], along.flip(0), along)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]
