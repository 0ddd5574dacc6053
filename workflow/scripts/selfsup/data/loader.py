"""Batches by step: what step k sees is a function of (recipe, seed, k), so reading may begin anywhere and anew.

Order of an epoch: a permutation drawn from (seed, epoch). Each rank reads its own slice of every global batch.
"""

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from selfsup.augment import Views, augment_batch, draw
from selfsup.data.store import Split
from selfsup.errors import UserError
from selfsup.job.stopping import STOP_SIGNALS
from selfsup.random_draws import Stream, permutation

SHUFFLE = {"pretrain": Stream.SHUFFLE, "linear": Stream.SHUFFLE_LINEAR}
BATCHES_AHEAD = 2  # of each loader worker; a batch of 128 pairs of 224-pixel views takes 154 MB of shared memory


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch. indices, labels: int64 [n]; views: n pictures each; total: all ranks' n."""

    step: int
    indices: np.ndarray
    labels: torch.Tensor
    views: Views
    total: int

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; called by torch's DataLoader."""
        views = Views(tuple(image.pin_memory() for image in self.views), self.views.parameters)
        return Batch(self.step, self.indices, self.labels.pin_memory(), views, self.total)


class Batches(Dataset):
    """The batches of a run by step, for one rank. stage: "pretrain" or "linear"."""

    def __init__(self, split: Split, recipe: Mapping, *, seed: int, stage: str, rank: int = 0, ranks: int = 1):
        self._split, self._recipe, self._seed, self._stage = split, recipe, seed, stage
        self._rank, self._ranks = rank, ranks
        self._batch = recipe["global_batch"] if stage == "pretrain" else recipe["linear"]["batch"]
        drop_last = stage == "pretrain" or recipe["linear"]["drop_last"]
        self.steps_per_epoch = len(split) // self._batch if drop_last else -(-len(split) // self._batch)

    def global_indices(self, step: int) -> tuple[int, np.ndarray]:
        """Return a step's epoch and the global batch's indices, int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self._seed, SHUFFLE[self._stage], epoch, len(self._split))
        return epoch, order[place * self._batch : (place + 1) * self._batch]

    def __getitem__(self, step: int) -> Batch:
        epoch, everyones = self.global_indices(step)
        indices = np.array_split(everyones, self._ranks)[self._rank]
        draws = draw(
            self._recipe,
            seed=self._seed,
            epoch=epoch,
            indices=indices,
            sizes=self._split.sizes[indices],
            stage=self._stage,
        )
        views = augment_batch(self._recipe, map(self._split.image, indices), draws)
        return Batch(step, indices, torch.from_numpy(self._split.labels[indices]), views, len(everyones))

    def read(self, start: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
        """Yield the batches of steps `start` to `stop`, prepared by `workers` further processes (0: in this one)."""
        loader = DataLoader(
            _ErrorsAsValues(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _ErrorsAsValues(Dataset):
    """Hands a worker's UserError over as it is: the DataLoader would put a traceback into its message."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self._batches[step]
        except UserError as error:
            return error


def _ignore_signals(worker: int) -> None:
    """Let workers outlive a request to stop: Slurm sends it to all processes, and the main one still needs them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, stream: Stream, epoch: int, size: int) -> np.ndarray:
    return permutation(seed, stream, epoch=epoch, size=size)
