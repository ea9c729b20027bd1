"""The stream: the ordered, augmented batches of one (task, seed, phase), a pure function of these and the step.

Every cell of a stream sees the same crops in the same order, so differences between treatments are paired; a cell that
resumes anywhere asks for its step and gets the same bytes. Nothing is drawn from a generator that has a past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raygrid.cell import Cell, Task, seed_from
from raygrid.study import Augmentation

if TYPE_CHECKING:
    from raygrid.data.arrays import Images

EVALUATION_BATCH = 250
"""test images a forward pass; fixed, since it could change rounding"""


def generator(*names: str | int | None) -> np.random.Generator:
    """A counter-based generator (Philox) keyed by names."""
    return np.random.Generator(np.random.Philox(key=seed_from(*names)))


@dataclass(frozen=True)
class Batch:
    """B images with all that was drawn for them."""

    images_BHWC: np.ndarray
    """uint8 [B, H, W, 3], RGB, whole"""
    augmentation: Augmentation
    """how large the crops are, out of how much padding"""
    labels_B: np.ndarray
    """int64 [B]: rank of the class among the task's"""
    offsets_B2: np.ndarray
    """int64 [B, 2]: top and left of the crop in the padded image"""
    flips_B: np.ndarray
    """bool [B]: mirrored left to right"""

    @property
    def crops(self) -> np.ndarray:
        """uint8 [B, crop, crop, 3]"""
        return crop(self.images_BHWC, self.offsets_B2, self.flips_B, self.augmentation)


class Stream:
    """Training batches of a cell's stream."""

    def __init__(self, images: Images, cell: Cell):
        recipe = cell.recipe
        self.images = images
        self.rows = images.rows(cell.target.classes, cell.target.images_per_class)
        self.labels = ranks(cell.target, images.labels[self.rows])
        self.batch_size = recipe.batch_size
        self.augmentation = recipe.augmentation
        self.fixed_order = recipe.order == "fixed"
        self.names = (cell.target.id, cell.seed, cell.phase)
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Training images of the task."""
        return len(self.rows)

    def batch(self, step: int) -> Batch:
        """Batch of a step, counted from 0. Epochs follow one another without a gap: no image is dropped."""
        where = self._positions(step)
        rows = self.rows[where]
        draw = generator(*self.names, "augmentation", step)
        count, aug = len(rows), self.augmentation
        size = self.images.size
        room = size + 2 * aug.padding - (aug.crop or size)
        places = room + 1 if aug.offsets == "all" else max(room, 1)
        offsets = draw.integers(0, places, size=(count, 2))
        flips = draw.random(count) < 0.5 if aug.flip else np.zeros(count, dtype=bool)
        return Batch(self.images.gather(rows), aug, self.labels[where], offsets, flips)

    def _positions(self, step: int) -> np.ndarray:
        first = step * self.batch_size
        places = np.arange(first, first + self.batch_size)
        epochs, inside = np.divmod(places, len(self.rows))
        return np.concatenate([self._order(int(e))[inside[epochs == e]] for e in np.unique(epochs)])

    def _order(self, epoch: int) -> np.ndarray:
        epoch = 0 if self.fixed_order else epoch
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = generator(*self.names, "order", epoch).permutation(len(self.rows))
        return self._orders[epoch]


def ranks(task: Task, labels: np.ndarray) -> np.ndarray:
    """Labels as ranks among the task's classes (facts: 'new class id = rank of the old one in its half')."""
    return np.searchsorted(np.asarray(task.classes), labels).astype(np.int64)


def crop(images: np.ndarray, offsets: np.ndarray, flips: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Cut crops out of uint8 images [B, H, W, 3] padded with black, and mirror some: uint8 [B, crop, crop, 3]."""
    count, size = images.shape[:2]
    side, pad = augmentation.crop or size, augmentation.padding
    if pad:
        padded = np.zeros((count, size + 2 * pad, size + 2 * pad, 3), dtype=np.uint8)
        padded[:, pad : pad + size, pad : pad + size] = images
    else:
        padded = images
    out = np.empty((count, side, side, 3), dtype=np.uint8)
    for i, ((top, left), flip) in enumerate(zip(offsets.tolist(), flips.tolist(), strict=True)):
        view = padded[i, top : top + side, left : left + side]
        out[i] = view[:, ::-1] if flip else view
    return out


class TestSet:
    """Test images of a task, cropped at the centre, in fixed batches."""

    __test__ = False  # not a test class of pytest

    def __init__(self, images: Images, cell: Cell):
        self.images = images
        self.rows = images.rows(cell.target.classes, None)
        self.labels = ranks(cell.target, images.labels[self.rows])
        self.augmentation = cell.recipe.augmentation
        self._order = generator(cell.target.id, "evaluation").permutation(len(self.rows))

    def batches(self, few: int | None) -> list[Batch]:
        """All test images, or the fixed few of the tests on the way (`recipe.evaluation_images`)."""
        chosen = np.sort(self._order[:few])
        return [self._batch(chosen[i : i + EVALUATION_BATCH]) for i in range(0, len(chosen), EVALUATION_BATCH)]

    def _batch(self, where: np.ndarray) -> Batch:
        size = self.images.size
        side = self.augmentation.crop or size
        none = Augmentation(crop=side, padding=max(0, -(-(side - size) // 2)), flip=False)
        start = (size + 2 * none.padding - side) // 2
        offsets = np.full((len(where), 2), start)
        flips = np.zeros(len(where), dtype=bool)
        return Batch(self.images.gather(self.rows[where]), none, self.labels[where], offsets, flips)


class Noise:
    """Random masks of one step, keyed by (task, seed, phase, step, layer): every cell of the stream gets the same."""

    def __init__(self, names: tuple[str, int, str], step: int):
        self.names, self.step = names, step
        self._uniform: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self.masks: dict[tuple[object, ...], Any] = {}
        """what networks made of the numbers, kept for the other cells of the step"""

    def uniform(self, layer: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 numbers in [0, 1) for the dropout that opens a layer."""
        key = (layer, shape)
        if key not in self._uniform:
            draw = generator(*self.names, "dropout", self.step, layer)
            self._uniform[key] = draw.random(shape, dtype=np.float32)
        return self._uniform[key]
