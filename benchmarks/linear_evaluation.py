"""A step of the linear evaluation against the plain form, each lever removed one at a time, and several rates at once.

    python benchmarks/linear_evaluation.py [--recipe imagenet] [--rounds 5] [--precision bf16]

A step is all of it: draws, views of pictures in memory, the frozen encoder's features, the classifier's update. All
forms run in turn in one process; a ratio is the median over rounds, of wall time and of processor time, on a GPU the
host's. Memory: the peak over two steps in a process of its own, beyond what it held before the encoder was made.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import measuring
import numpy as np
import torch

from selfsup.data.store import PackedStore, StoreWriter
from selfsup.engine.compute import Compute
from selfsup.engine.device import autocast, choose_precision
from selfsup.engine.distributed import Ranks
from selfsup.engine.host_memory import keep_freed_memory
from selfsup.evaluation.features import FrozenFeatures
from selfsup.evaluation.linear import LinearEvaluation
from selfsup.evaluation.task import Judged
from selfsup.models import Backbone, fold_batch_norms, initial_backbone
from selfsup.recipe import load_recipe


@dataclass(frozen=True)
class Size:
    """What is evaluated. pixels: of a stored picture's side; images: of a step, on a CPU and on a GPU."""

    pixels: int
    classes: int
    images_cpu: int
    images_gpu: int = 256  # paper, section 6.5


SIZES = {"cifar10": Size(32, 10, 256), "imagenet": Size(256, 1000, 32)}
QUICK_IMAGES = 8  # to see that it runs
RATES = [0.02 * 2**number for number in range(10)]  # from a tenth of the paper's rate to fifty times it
SHIPPED, PLAIN = "as shipped", "plain"


@dataclass(frozen=True)
class Form:
    """One way to do it. cast_once: the folded encoder's weights; otherwise autocast casts them in each forward pass."""

    precision: str
    fold: bool = True
    cast_once: bool = True
    channels_last: bool = True
    keeps_memory: bool = True
    further: int = 0


def forms(precision: str) -> dict[str, Form]:
    """Return what is measured. The weights of an encoder with batch norms as modules are always autocast's to cast."""
    shipped = Form(precision)
    return {
        SHIPPED: shipped,
        PLAIN: Form("fp32", fold=False, cast_once=False, channels_last=False, keeps_memory=False),
        "without folding": replace(shipped, fold=False, cast_once=False),
        "in fp32": replace(shipped, precision="fp32"),
        "without channels-last": replace(shipped, channels_last=False),
        "without casting once": replace(shipped, cast_once=False),
        "freed memory given back": replace(shipped, keeps_memory=False),
        f"{len(RATES)} further rates": replace(shipped, further=len(RATES)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(SIZES), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="how often each form is measured, in turn")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto")
    with measuring.report("linear_evaluation", parser) as (report, options):
        for name in options.recipe or SIZES:
            measure(report, name, options)


def measure(report: measuring.Report, name: str, options: argparse.Namespace) -> None:
    """Measure one recipe's forms."""
    device, size = options.device, SIZES[name]
    precision = choose_precision(options.precision, device)
    images = QUICK_IMAGES if options.quick else size.images_cpu if device.type == "cpu" else size.images_gpu
    report.say(f"\n{name}: {images} images a step, {precision}")
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), size, (2 if device.type == "cpu" else 16) * images)
        tasks = {
            kind: (name, form, Path(folder), images, device, torch.get_num_threads())
            for kind, form in forms(precision).items()
        }
        memory = {kind: peak_memory(task) for kind, task in tasks.items()}
        steps = {kind: one_step(*task) for kind, task in tasks.items()}
        taken = measuring.in_turn(steps, 1 if options.quick else options.rounds)
    figures = {}
    for kind, mine in taken.items():
        wall = measuring.ratio(mine, taken[SHIPPED])
        processor = measuring.processor_ratio(mine, taken[SHIPPED])
        figures[kind] = {
            "images_per_s": images / mine.wall,
            "seconds_over_shipped": wall,
            "processor_seconds_over_shipped": processor,
            "peak_memory_bytes": memory[kind],
        }
        told = "" if kind == SHIPPED else f"  {wall:.2f} times the shipped form's time ({processor:.2f} of processors)"
        report.say(f"  {kind:23} {images / mine.wall:8,.0f} images/s {memory[kind] / 1e6:8,.0f} MB{told}")
    report.say(None, **{name: {"images": images, "precision": precision, "forms": figures}})


def make_store(folder: Path, size: Size, images: int) -> None:
    random = np.random.default_rng(0)
    writer = StoreWriter(folder, [str(number) for number in range(size.classes)])
    for split in ("train", "test"):
        pictures = random.integers(0, 256, (images, 3, size.pixels, size.pixels), np.uint8)
        writer.write_raw(split, pictures, random.integers(0, size.classes, images))
    writer.finish()


def one_step(
    name: str, form: Form, folder: Path, images: int, device: torch.device, threads: int
) -> Callable[[], float]:
    """Return a function that does the next step of an evaluation in this form."""
    further = [{"peak_lr": rate, "initial_weights": 0} for rate in RATES[: form.further]]
    recipe = load_recipe(name, {"linear": {"batch": images, "further": further}})
    encoder = initial_backbone(recipe, 0).eval().requires_grad_(False).to(device)
    compute = Compute(Ranks(), device, form.precision, threads, 0, channels_last=form.channels_last)
    judged = Judged(encoder, PackedStore(folder), recipe, seed=0, compute=compute)
    evaluation = LinearEvaluation(judged, recipe.linear, identity={})
    evaluation.features = features(encoder, form, compute)

    def step() -> float:
        """Return the seconds of a step: on a GPU its share of the steps that have one forward pass."""
        keep_freed_memory(form.keeps_memory and device.type == "cpu")
        began, group = time.perf_counter(), evaluation.batches.group_of(evaluation.step)
        steps = sum(1 for _ in evaluation.train_group(group, evaluation.batches[group]))
        measuring.synchronize()
        return (time.perf_counter() - began) / steps

    return step


def features(encoder: Backbone, form: Form, compute: Compute) -> Callable[[torch.Tensor], torch.Tensor]:
    if form.fold and form.cast_once:
        return FrozenFeatures(encoder, compute)
    network = fold_batch_norms(encoder, torch.float32) if form.fold else encoder
    network = network.to(memory_format=compute.memory_format)

    @torch.no_grad()
    def forward(pictures: torch.Tensor) -> torch.Tensor:
        with autocast(compute.device, compute.precision):
            return network(pictures.to(memory_format=compute.memory_format)).float()

    return forward


def peak_memory(task: tuple) -> int:
    """Return the bytes that two steps took at most, measured in a process of their own: freed pages are used again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_memory, task).result()


def _peak_memory(task: tuple) -> int:
    *_, device, threads = task
    torch.set_num_threads(threads)
    peak = measuring.PeakMemory(device)
    peak.reset()
    step = one_step(*task)
    step(), step()
    return peak.bytes()


if __name__ == "__main__":
    main()
