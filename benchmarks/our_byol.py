"""Our training step as a benchmark drives it: as a run would compute it, or with one of its levers removed."""

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import measuring
import torch
from byol_in_one_page import LARS, move_average
from plain_byol import TwoViews

from selfsup.arguments import add_compute_arguments
from selfsup.augment import Views
from selfsup.data.store import PackedStore
from selfsup.engine.compute import Compute, start_compute
from selfsup.engine.host_memory import keep_freed_memory
from selfsup.job.place import Place
from selfsup.methods import Batch, Output, Step
from selfsup.methods.byol import byol_loss
from selfsup.training.pretraining import Pretraining, Run


def as_shipped(device: torch.device, precision: str = "auto", place: Place | None = None) -> Compute:
    """Return what a run without any option computes with, on the cores that torch was given."""
    parser = argparse.ArgumentParser()
    add_compute_arguments(parser)
    cores = torch.get_num_threads()
    return start_compute(
        parser.parse_args(["--device", device.type, "--precision", precision, "--cpus", str(cores)]), place or Place()
    )


class OurStep:
    """A pretraining whose steps are timed."""

    def __init__(self, store: PackedStore, recipe: Mapping, compute: Compute, folder: Path, seed: int = 0):
        self.compute, self.keeps_memory = compute, compute.device.type == "cpu"
        self.training = Pretraining(Run(recipe, seed, 1, store, folder, compute, checkpoint_minutes=10))

    def batches(self, steps: int) -> Iterator:
        """Yield the batches of the next steps, read as a run reads them."""
        start = self.training.step
        pinned = self.compute.device.type == "cuda"
        return self.training.batches.read(start, start + steps, workers=self.compute.workers, pin_memory=pinned)

    def turn(self, steps: int) -> float:
        """Train a step that does not count and `steps` that do, with reading, and return their seconds."""
        keep_freed_memory(self.keeps_memory)
        with contextlib.closing(self.batches(steps + 1)) as batches:
            self.training.train_step(next(batches))
            measuring.synchronize()
            began = time.perf_counter()
            for batch in batches:
                self.training.train_step(batch)
            measuring.synchronize()
        return time.perf_counter() - began

    def parts(self, steps: int) -> dict[str, float]:
        """Return the mean seconds of a step's parts, the device made to finish each: data, views, the rest."""
        seconds = {"data": 0.0, "views": 0.0, "networks": 0.0}
        make_views = self.training.make_views

        def timed(name: str, run: Callable):
            measuring.synchronize()
            began = time.perf_counter()
            made = run()
            measuring.synchronize()
            seconds[name] += time.perf_counter() - began
            return made

        with contextlib.closing(self.batches(steps)) as batches:
            for _ in range(steps):
                batch = timed("data", lambda: next(batches))
                views = timed("views", lambda batch=batch: make_views(batch))
                self.training.make_views = lambda _, views=views: views
                timed("networks", lambda batch=batch: self.training.train_step(batch))
        self.training.make_views = make_views
        return {name: total / steps for name, total in seconds.items()}

    def ready_views(self) -> Views:
        """Return the next batch's views."""
        with contextlib.closing(self.batches(1)) as batches:
            self._batch = next(batches)
        return self.training.make_views(self._batch)

    def on(self, views: Views) -> Callable[[], torch.Tensor]:
        """Return a step on views that `ready_views` made."""
        self.training.make_views = lambda _: views
        return lambda: self.training.train_step(self._batch)

    def on_ready_views(self) -> Callable[[], torch.Tensor]:
        """Return a step on views that are made already: what networks, loss, optimiser and average cost."""
        step = self.on(self.ready_views())
        step()  # momentum buffers come with the first
        return step


def gives_memory_back(step: OurStep) -> None:
    """Remove the freed memory that is kept for the next step."""
    step.keeps_memory = False


def one_picture_at_a_time(step: OurStep, loader: Callable[[TwoViews], Iterator]) -> None:
    """Remove the batched augmentation: views come from torchvision's transforms in a DataLoader."""
    pairs = itertools.chain.from_iterable(loader() for _ in itertools.count())
    device = step.compute.device

    def make_views(batch) -> Views:
        views, _ = next(pairs)
        return Views(tuple(view.to(device, non_blocking=True) for view in views), batch.draws)

    step.training.make_views = make_views


def two_forwards(step: OurStep) -> None:
    """Remove the one forward over both views: online and target see one view after the other."""
    method = step.training.method
    online, target = method.networks["online"], method.networks["target"]

    def loss(batch: Batch, number: Step) -> Output:
        predictions = [online["predictor"](online["projector"](online["backbone"](view))) for view in batch.views]
        with torch.no_grad():
            projections = [target["projector"](target["backbone"](view)) for view in batch.views]
        return Output(byol_loss(predictions[0], projections[1]) + byol_loss(predictions[1], projections[0]))

    method.loss = loss


def loops_over_parameters(step: OurStep) -> None:
    """Remove the foreach optimiser and average: loops over the parameters, as in the plain reference."""
    training, settings = step.training, step.training.run.recipe["optimizer"]
    groups = [{**group, "lars": group["lars_weight"] > 0} for group in training.optimizer.param_groups]
    training.optimizer = LARS(groups, 0.1, settings["momentum"], settings["trust_coefficient"])
    method, networks = training.method, training.method.networks

    def average(step: Step) -> None:
        for name in ("backbone", "projector"):
            online, target = networks["online"][name], networks["target"][name]
            move_average(target.parameters(), online.parameters(), method.schedules(step.number)["tau"])

    method.before_step = average
