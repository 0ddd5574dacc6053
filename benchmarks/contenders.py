"""Who takes part in the benchmark of the training step: ours, without each of its levers, and the peers; on what."""

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import measuring
import torch
from our_byol import OurStep, as_shipped, gives_memory_back, loops_over_parameters, one_picture_at_a_time, two_forwards
from pictures import jpegs, large_store, make_tree, small_store
from plain_byol import Pictures, PlainBYOL, TwoViews
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from selfsup.data.store import PackedStore
from selfsup.engine.compute import Compute
from selfsup.engine.host_memory import keep_freed_memory
from selfsup.recipe import load_recipe

OURS, PLAIN, LIGHTLY, EQUAL = "ours", "plain", "lightly", ", equal"


class Contender(Protocol):
    """Something that trains."""

    def turn(self, steps: int) -> float:
        """Train a step that does not count and `steps` that do, with reading, and return their seconds."""


@dataclass(frozen=True)
class Size:
    """What is trained: a recipe, and by device the batch, the pictures, the steps of a turn."""

    recipe: str
    batch: dict[str, int]
    pictures: dict[str, int]
    steps: dict[str, int]


# On a CPU a step of ResNet-18 with 64 pictures takes seconds; on a GPU the batches are the recipes' per device.
SIZES = {
    "cifar10": Size("cifar10", {"cpu": 64, "cuda": 512}, {"cpu": 2_000, "cuda": 50_000}, {"cpu": 2, "cuda": 30}),
    "resnet50": Size("imagenet", {"cpu": 8, "cuda": 128}, {"cpu": 200, "cuda": 8_000}, {"cpu": 1, "cuda": 10}),
}


class PeerStep:
    """A peer's steps, timed as ours."""

    def __init__(self, byol: PlainBYOL, loader: DataLoader, *, equal: bool):
        self._byol, self._loader, self._equal = byol, loader, equal

    def turn(self, steps: int) -> float:
        keep_freed_memory(self._equal)
        # As shipped torch's own choice holds, TensorFloat-32 in convolutions; equal is what our start has set.
        with nullcontext() if self._equal else torch.backends.cudnn.flags(enabled=True):
            return self._turn(steps)

    def _turn(self, steps: int) -> float:
        batches = self._endless()
        self._byol.train_on(next(batches))
        measuring.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            self._byol.train_on(next(batches))
        measuring.synchronize()
        seconds = time.perf_counter() - began
        batches.close()  # with its loader processes: they would read on into the others' turns
        return seconds

    def _endless(self) -> Iterator:
        while True:
            for batch in self._loader:
                yield batch[0]  # views, then labels (and names)


class Field:
    """The pictures and the recipe that all contenders share, and how each contender is built."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace):
        size, kind = SIZES[name], options.device.type
        self.device, self.batch = options.device, options.batch or size.batch[kind] // (2 if options.quick else 1)
        self.steps = options.steps or max(size.steps[kind] // (4 if options.quick else 1), 1)
        self.recipe = load_recipe(size.recipe, {"global_batch": self.batch})
        self.compute, self._folder = as_shipped(options.device), folder
        count = max(size.pictures[kind] // (4 if options.quick else 1), 4 * self.batch)
        self._tree = None
        if self.recipe["augment"]["size"] == 32:
            self._store = PackedStore(folder) if (folder / "store.json").exists() else small_store(folder, count)
        else:
            self._tree = folder / "tree"
            if not self._tree.exists():
                make_tree(self._tree, list(jpegs(None)), {"train": count, "test": 10})
            packed = folder / "store"
            self._store = PackedStore(packed) if packed.exists() else large_store(self._tree, packed)

    def _dataset(self, transform: Callable) -> Dataset:
        """The same pictures as torchvision's datasets hand them out."""
        if self._tree:
            return ImageFolder(self._tree / "train", transform)
        split = self._store.train
        return Pictures(split.raw, split.labels, transform)

    def _loader(self, transform: Callable, workers: int) -> DataLoader:
        pinned = self.device.type == "cuda"
        dataset = self._dataset(transform)
        return DataLoader(dataset, self.batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=pinned)

    def ours(self, change: Callable[[OurStep], None] | None = None, **settings) -> OurStep:
        """Our step; settings: what of Compute is otherwise; change: what else."""
        compute: Compute = replace(self.compute, **settings)
        step = OurStep(self._store, self.recipe, compute, self._folder)
        if change:
            change(step)
        return step

    def picture_by_picture(self) -> OurStep:
        workers = self.compute.workers
        return self.ours(partial(one_picture_at_a_time, loader=lambda: self._loader(TwoViews(self.recipe), workers)))

    def peer(self, kind: type[PlainBYOL], *, equal: bool) -> PeerStep:
        """A peer as shipped, or with our precision, layout and loader processes."""
        workers = self.compute.workers if equal else torch.get_num_threads()
        precision = self.compute.precision if equal else "fp32"
        byol = kind(self.recipe, self.device, precision=precision, channels_last=equal)
        return PeerStep(byol, self._loader(kind.transform(self.recipe), workers), equal=equal)

    def contenders(self, *, levers: bool) -> dict[str, Callable[[], Contender]]:
        """How each contender is built, by name."""
        found: dict[str, Callable] = {OURS: self.ours}
        kinds: dict[str, type[PlainBYOL]] = {PLAIN: PlainBYOL}
        if importlib.util.find_spec("lightly"):
            from lightly_byol import LightlyBYOL

            kinds[LIGHTLY] = LightlyBYOL
        for name, kind in kinds.items():
            found[name] = partial(self.peer, kind, equal=False)
            found[name + EQUAL] = partial(self.peer, kind, equal=True)
        if levers:
            found |= self._levers()
        return found

    def _levers(self) -> dict[str, Callable[[], OurStep]]:
        found: dict[str, Callable[[], OurStep]] = {}
        if self.compute.precision != "fp32":
            found["ours in fp32"] = partial(self.ours, precision="fp32")
        if self.compute.channels_last:
            found["ours in NCHW"] = partial(self.ours, channels_last=False)
        if self.compute.compile:
            found["ours, not compiled"] = partial(self.ours, compile=False)
        else:
            found["ours, compiled"] = partial(self.ours, compile=True)
        found["ours, a picture at a time"] = self.picture_by_picture
        found["ours, a forward for each view"] = partial(self.ours, two_forwards)
        if self.device.type == "cpu":
            found["ours, freed memory given back"] = partial(self.ours, gives_memory_back)
        found["ours, loops over parameters"] = partial(self.ours, loops_over_parameters)
        return found
