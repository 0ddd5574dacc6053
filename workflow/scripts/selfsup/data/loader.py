"""Batches by step: what step k sees is a function of (recipe, seed, k), so reading may begin anywhere and anew.

Order of an epoch: a permutation that (seed, epoch) give, computed for the places of a batch alone. Each rank reads its
own slice of every global batch. Loader workers draw, decode and crop; `ViewMaker` does the rest on the device, for the
whole batch at once.
"""

import multiprocessing.util
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from selfsup.augment import Draws, Policies, Views, apply, augment_batch, crop_singly, draw, plain_crops, policies_of
from selfsup.augment.settings import Plain
from selfsup.augment.transfer import sent
from selfsup.data.store import Split
from selfsup.errors import PermanentError, UserError
from selfsup.random_draws import MOST_IMAGES, Stream, shuffled
from selfsup.recipe import Recipe
from selfsup.signals import ignore_stop_signals

CPU = torch.device("cpu")
BATCHES_AHEAD = 2  # of each loader worker; a batch of 128 pairs of 224-pixel crops takes 154 MB of shared memory
SHARED_MEMORY = Path("/dev/shm")  # where a worker's batches lie until they are used
LONGEST_TEMPORARY = 71  # bytes: multiprocessing adds 32, and the path of a socket may have 103 (macOS; Linux: 107)
SHORT_TEMPORARY = "/tmp"
RESIDENT_SHARE = 0.25  # of a GPU's free memory may hold the images; CIFAR-10 takes 150 MB


Pictures = tuple[torch.Tensor, ...] | torch.Tensor | None


@dataclass(frozen=True)
class LoadedBatch:
    """One rank's part of a global batch, before its views are made. total: all ranks' n.

    indices, labels: int64 [n]; labels None where the dataset has none. pictures: None, where the split's images are all
    of one size and on the device; uint8 [n, 3, H, W], where they are of one size; else each view's crops, [n, 3, size,
    size]. plain: the unaugmented pictures before they are normalised, [n, 3, crop, crop], where the recipe wants them
    and the device cannot cut them from the images.
    """

    step: int
    indices: np.ndarray
    labels: torch.Tensor | None
    draws: Draws
    pictures: Pictures
    total: int
    plain: torch.Tensor | None = None

    def pin_memory(self) -> "LoadedBatch":
        """Return the batch in page-locked memory; called by torch's DataLoader."""
        return replace(self, **{part: _pinned(getattr(self, part)) for part in ("labels", "pictures", "plain")})


@dataclass(frozen=True)
class Reading:
    """How a training reads a split.

    batch: images of a step, over all ranks. drop_last: leave an epoch's short batch out. order: the stream that
    shuffles. images: int64 [n], the places of those that are read; None: all.
    """

    policies: Policies
    batch: int
    drop_last: bool
    order: Stream
    images: np.ndarray | None = None


def reading_of(recipe: Recipe, stage: str) -> Reading:
    """Return what a recipe says of "pretrain" or "linear"."""
    policies = policies_of(recipe, stage)
    if stage == "pretrain":
        return Reading(policies, recipe.global_batch, drop_last=True, order=Stream.SHUFFLE)
    return Reading(policies, recipe.linear.batch, recipe.linear.drop_last, Stream.SHUFFLE_LINEAR)


class Batches(Dataset):
    """The batches of a run by step, for one rank.

    stage: "pretrain" or "linear", as the recipe says, or another way of reading; device: makes the views.
    """

    def __init__(
        self,
        split: Split,
        recipe: Mapping,
        *,
        seed: int,
        stage: str | Reading,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = CPU,
    ):
        recipe = Recipe.of(recipe)
        self._split, self._recipe, self._seed = split, recipe, seed
        self._reading = reading = stage if isinstance(stage, Reading) else reading_of(recipe, stage)
        self._resident = fits_on(device, split)
        if len(split) > MOST_IMAGES:
            raise PermanentError(f"a split of {len(split):,} images, wanted at most {MOST_IMAGES:,}: leave some out")
        if reading.policies.plain:
            _check_large_enough(split, reading.policies.plain)
        self._rank, self._world_size = rank, world_size
        self._size = len(split) if reading.images is None else len(reading.images)
        self.steps_per_epoch = self._size // reading.batch if reading.drop_last else -(-self._size // reading.batch)

    def global_indices(self, step: int) -> tuple[int, np.ndarray]:
        """Return a step's epoch and the global batch's indices in the split, int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        reading, size = self._reading, self._size
        places = np.arange(place * reading.batch, min((place + 1) * reading.batch, size))
        chosen = shuffled(places, seed=self._seed, stream=reading.order, epoch=epoch, size=size)
        return epoch, chosen if reading.images is None else reading.images[chosen]

    def __getitem__(self, step: int) -> LoadedBatch:
        epoch, everyones = self.global_indices(step)
        indices = np.array_split(everyones, self._world_size)[self._rank]
        draws = draw(
            self._recipe,
            seed=self._seed,
            epoch=epoch,
            indices=indices,
            sizes=self._split.sizes[indices],
            stage=self._reading.policies,
        )
        labels = None if self._split.labels is None else torch.from_numpy(self._split.labels[indices])
        pictures, plain = self._pictures(indices, draws)
        return LoadedBatch(step, indices, labels, draws, pictures, len(everyones), plain)

    def _pictures(self, indices: np.ndarray, draws: Draws) -> tuple[Pictures, torch.Tensor | None]:
        """Return a batch's `pictures` and `plain`."""
        augment, raw = self._recipe.augment, self._split.raw
        if raw is None:
            return crop_singly(map(self._split.image, indices), draws, augment=augment)
        plain = None
        if draws.plain and draws.plain.resize not in (None, min(raw.shape[2:])):
            # Resized here, because another device's bits would not be those that a test picture has.
            plain = plain_crops(torch.from_numpy(raw[indices]), draws.plain, augment)
        return None if self._resident else torch.from_numpy(raw[indices]), plain

    def read(self, start: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[LoadedBatch]:
        """Yield the batches of steps `start` to `stop`, prepared by `workers` further processes (0: in this one).

        Raises UserError where a worker cannot hand its batch over, or is killed.
        """
        if workers:
            _keep_socket_paths_short()
        loader = DataLoader(
            _Prepared(self),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=BATCHES_AHEAD if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
        )
        for batch in _taken(loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch.opened() if isinstance(batch, _Parcel) else batch


class ViewMaker:
    """Makes a batch's views on a device, in float32. Holds images of one size there, once, as uint8.

    memory_format: of the views.
    """

    def __init__(
        self,
        split: Split,
        recipe: Mapping,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self._recipe, self._device, self._memory_format = Recipe.of(recipe), device, memory_format
        self._images = torch.from_numpy(split.raw).to(device) if fits_on(device, split) else None

    def __call__(self, batch: LoadedBatch) -> Views:
        views = self._made(batch)
        images = tuple(view.contiguous(memory_format=self._memory_format) for view in views)
        plain = None if views.plain is None else views.plain.contiguous(memory_format=self._memory_format)
        return replace(views, images=images, plain=plain)

    def _made(self, batch: LoadedBatch) -> Views:
        pictures, plain = batch.pictures, batch.plain
        plain = None if plain is None else plain.to(self._device, non_blocking=True)
        if pictures is None:
            pictures = self._images.index_select(0, sent(batch.indices, self._device))
        if isinstance(pictures, torch.Tensor):
            return augment_batch(self._recipe, pictures.to(self._device, non_blocking=True), batch.draws, plain)
        crops = [crops.to(self._device, non_blocking=True) for crops in pictures]
        return apply(self._recipe, crops, batch.draws, plain)


@lru_cache(maxsize=8)  # asked once for the loader and once for the maker of views; they must agree
def fits_on(device: torch.device, split: Split) -> bool:
    """Return whether a split's images are of one size and may stay on the device; on a CPU they are mapped there."""
    if split.raw is None:
        return False
    return device.type == "cpu" or split.raw.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def _check_large_enough(split: Split, plain: Plain) -> None:
    """Raise UserError where the unaugmented picture would be larger than an image that nothing resizes."""
    smallest = int(split.sizes.min()) if len(split) else plain.crop
    if plain.resize is None and smallest < plain.crop:
        raise UserError(
            f"augment.plain.crop is {plain.crop}, but the smallest training image has a side of {smallest} pixels: "
            "set a smaller crop, or augment.plain.resize"
        )


def _pinned(pictures):
    if isinstance(pictures, tuple):
        return tuple(map(_pinned, pictures))
    return None if pictures is None else pictures.pin_memory()


class _Prepared(Dataset):
    """Hands a worker's UserError over as it is: the DataLoader would put a traceback into its message.

    A worker's batch goes as a parcel, made here: what the DataLoader's own thread cannot send, it drops, and the main
    process waits for ever.
    """

    def __init__(self, batches: Batches):
        self._batches = batches

    def __getitem__(self, step: int) -> "LoadedBatch | _Parcel | UserError":
        try:
            batch = self._batches[step]
            return batch if get_worker_info() is None else _Parcel.of(batch)
        except UserError as error:
            return error


@dataclass(frozen=True)
class _Parcel:
    """A batch on its way from a worker, pickled; its tensors lie in shared memory."""

    content: bytes

    @classmethod
    def of(cls, batch: LoadedBatch) -> "_Parcel":
        """Raises UserError where there is no room for it, or no way."""
        try:
            return cls(bytes(ForkingPickler.dumps(batch)))
        except (OSError, RuntimeError) as error:
            raise UserError(_no_way(batch, error)) from error

    def opened(self) -> LoadedBatch:
        return pickle.loads(self.content)

    def pin_memory(self) -> LoadedBatch:
        """Return the batch in page-locked memory; called by torch's DataLoader."""
        return self.opened().pin_memory()


def _taken(loader: DataLoader) -> Iterator:
    """Yield what a DataLoader gives. Raises UserError when its workers cannot start, or one has been killed."""
    try:
        yield from loader
    except OSError as error:
        raise UserError(
            f"loader processes cannot start ({error.strerror or error}): they need room in {SHARED_MEMORY} "
            f"({_free(SHARED_MEMORY)}), open files (`ulimit -n`) and processes (`ulimit -u`): see which is short"
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads images has ended ({str(error).splitlines()[0]}): Bus error means that "
            f"{SHARED_MEMORY} is full ({_free(SHARED_MEMORY)}), Killed that memory was short: give more, or set "
            "cpus_per_device lower"
        ) from error


def _no_way(batch: LoadedBatch, error: Exception) -> str:
    """Return in one line why a worker cannot hand a batch over. Torch tells of a lack of room by RuntimeError."""
    reason = str(error).splitlines()[0]
    if "Too many open files" in reason:
        return f"a process that reads images has too many open files ({reason}): raise the limit `ulimit -n`"
    if isinstance(error, OSError):
        where = multiprocessing.util.get_temp_dir()
        return f"{where}: no socket can be made there ({reason}): set TMPDIR to another folder"
    return (
        f"{SHARED_MEMORY}: no room for a batch of {_megabytes(batch):.1f} MB, {_free(SHARED_MEMORY)} ({reason}): make "
        "it larger (a container's: --shm-size), or set cpus_per_device lower: each loader process keeps "
        f"{BATCHES_AHEAD} batches there"
    )


def _megabytes(batch: LoadedBatch) -> float:
    pictures = batch.pictures if isinstance(batch.pictures, tuple) else (batch.pictures,)
    return sum(part.nbytes for part in (batch.labels, batch.plain, *pictures) if part is not None) / 1e6


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    except OSError as error:
        return f"which cannot be looked at: {error.strerror}"


def _keep_socket_paths_short() -> None:
    """See to it that the sockets by which workers hand batches over have paths that the system takes.

    multiprocessing keeps them in the folder that TMPDIR names. Raises UserError where only a longer path can be had.
    """
    folder, chosen = tempfile.gettempdir(), tempfile.tempdir
    if len(os.fsencode(folder)) <= LONGEST_TEMPORARY:
        return
    try:
        tempfile.tempdir = SHORT_TEMPORARY
        multiprocessing.util.get_temp_dir()  # made once, and kept by this process and the workers
    except OSError as error:
        raise UserError(
            f"TMPDIR is {folder}, {len(os.fsencode(folder))} bytes long, wanted at most {LONGEST_TEMPORARY} for "
            f"loader processes, and {SHORT_TEMPORARY} cannot be written ({error.strerror}): set a shorter one"
        ) from error
    finally:
        tempfile.tempdir = chosen


def _ignore_signals(worker: int) -> None:
    """Let workers outlive a request to stop: Slurm sends it to all processes, and the main one still needs them."""
    ignore_stop_signals()
