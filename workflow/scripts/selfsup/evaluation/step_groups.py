"""The steps of a linear evaluation, several at a time: one reading, one forward pass, then the classifier's steps.

The encoder is fixed, so a batch's features do not depend on the steps before it. On a GPU a step of 256 small pictures
is some 100 launches that the host makes, and next to no arithmetic: 17,550 steps took 6 to 7 ms each where the device
needed 0.8 (docs/performance.md). Together they are a fifth of the launches. A processor has no launches, and computes a
batch by itself, as it always has, so that its figures keep their bits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from selfsup.augment import draw
from selfsup.data.loader import Batches, LoadedBatch, fits_on
from selfsup.data.store import Split

PIXELS_TOGETHER = 4096 * 32**2  # of a device's pictures in one forward pass: from there on arithmetic binds


def steps_together(split: Split, device: torch.device, batch: int, size: int) -> int:
    """Return of how many steps features are made at once. batch: a device's pictures of a step; size: their side."""
    if device.type == "cpu" or not fits_on(device, split):
        return 1
    return max(PIXELS_TOGETHER // (batch * size**2), 1)


class StepPart(NamedTuple):
    """A step's part of its group: which of the group's samples are this rank's, and how many all ranks have."""

    step: int
    samples: slice
    total: int


class StepGroups(Batches):
    """Batches of `together` consecutive steps, read by the number of the group; the last of an epoch may have fewer.

    A group is the same whichever of its steps a job begins with, so a stopped job goes on to the same bits.
    """

    def __init__(self, *args, together: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self._together = together
        self._per_epoch = -(-self.steps_per_epoch // together)

    def group_of(self, step: int) -> int:
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch * self._per_epoch + place // self._together

    def steps_of(self, group: int) -> range:
        epoch, place = divmod(group, self._per_epoch)
        first = place * self._together
        last = min(first + self._together, self.steps_per_epoch)
        return range(epoch * self.steps_per_epoch + first, epoch * self.steps_per_epoch + last)

    def parts_of(self, group: int) -> Iterator[StepPart]:
        """Yield the group's steps in order."""
        begin, batch = 0, self._reading.batch
        for step in self.steps_of(group):
            total = min(batch, self._size - step % self.steps_per_epoch * batch)
            own = total // self._world_size + (self._rank < total % self._world_size)  # as np.array_split has it
            yield StepPart(step, slice(begin, begin + own), total)
            begin += own

    def __getitem__(self, group: int) -> LoadedBatch:
        """Return all samples of a group's steps, step after step, as a batch of the first of them."""
        if self._together == 1:
            return super().__getitem__(group)
        steps = self.steps_of(group)
        everyones = [self.global_indices(step)[1] for step in steps]
        indices = np.concatenate([np.array_split(one, self._world_size)[self._rank] for one in everyones])
        epoch, sizes = steps[0] // self.steps_per_epoch, self._split.sizes[indices]
        given = {"seed": self._seed, "epoch": epoch, "indices": indices, "sizes": sizes}
        draws = draw(self._recipe, **given, stage=self._reading.policies)
        labels = torch.from_numpy(self._split.labels[indices])
        pictures, plain = self._pictures(indices, draws)
        return LoadedBatch(steps[0], indices, labels, draws, pictures, sum(map(len, everyones)), plain)
