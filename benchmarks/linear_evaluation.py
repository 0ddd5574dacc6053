"""A step of the linear evaluation against the plain form, each lever removed one at a time, and several rates at once.

    python benchmarks/linear_evaluation.py [--recipe imagenet] [--rounds 5] [--precision bf16] [--json FILE] [--quick]

A step is all of it: draws, views of pictures in memory, the frozen encoder's features, the classifier's update. All
forms run in turn in one process; a ratio is the median over rounds, each round's steps compared with their neighbours',
of wall time and of processor time, which other work on the machine disturbs less; on a GPU the latter is the host's.
Memory: the peak over two steps in a process of its own, beyond what it held before the encoder was made; on a GPU what
torch's allocator held.
"""

import argparse
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

import selfsup  # noqa: F401  says how long idle threads spin, which torch reads when it loads

# isort: split
import numpy as np
import torch

from selfsup import provenance
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.evaluation.features import FrozenFeatures
from selfsup.evaluation.linear import LinearEvaluation
from selfsup.models import Backbone, fold_batch_norms, initial_backbone
from selfsup.recipe import load_recipe
from selfsup.training.compute import Compute
from selfsup.training.device import autocast, choose_device, choose_precision
from selfsup.training.distributed import Ranks


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
    further: int = 0


def forms(precision: str) -> dict[str, Form]:
    """Return what is measured. The weights of an encoder with batch norms as modules are always autocast's to cast."""
    shipped = Form(precision)
    return {
        SHIPPED: shipped,
        PLAIN: Form("fp32", fold=False, cast_once=False, channels_last=False),
        "without folding": replace(shipped, fold=False, cast_once=False),
        "in fp32": replace(shipped, precision="fp32"),
        "without channels-last": replace(shipped, channels_last=False),
        "without casting once": replace(shipped, cast_once=False),
        f"{len(RATES)} further rates": replace(shipped, further=len(RATES)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(SIZES), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=5, help="how often each form is measured, in turn")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: to see that it runs, not to report")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    figures = {name: measure(name, options) for name in options.recipe or SIZES}
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "linear_evaluation", "figures": figures}, indent=1) + "\n")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one recipe's forms, print a line for each, and return the figures."""
    torch.set_num_threads(options.threads)
    device = choose_device(options.device, 0)
    precision = choose_precision(options.precision, device)
    size = SIZES[name]
    images = QUICK_IMAGES if options.quick else size.images_cpu if device.type == "cpu" else size.images_gpu
    kinds = forms(precision)
    figures = {"images": images, **provenance.numerics(device, precision, options.threads, 1), "forms": {}}
    print(
        f"\n{name}, {images} images a step: " + ", ".join(f"{key} {value}" for key, value in figures.items() if value)
    )
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), size, 2 * images)
        tasks = {kind: (name, form, Path(folder), images, device, options.threads) for kind, form in kinds.items()}
        memory = {kind: peak_memory(task) for kind, task in tasks.items()}
        seconds = in_turn({kind: one_step(*task) for kind, task in tasks.items()}, options.rounds)
    for kind in kinds:
        wall, processor = (ratio(mine, shipped) for mine, shipped in zip(seconds[kind], seconds[SHIPPED], strict=True))
        speed = images / statistics.median(seconds[kind][0])
        figures["forms"][kind] = {
            "images_per_s": speed,
            "seconds_over_shipped": wall,
            "processor_seconds_over_shipped": processor,
            "peak_memory_bytes": memory[kind],
        }
        told = "" if kind == SHIPPED else f"  {wall:.2f} times the shipped form's time ({processor:.2f} of processors)"
        print(f"  {kind:22} {speed:8,.0f} images/s {memory[kind] / 1e6:8,.0f} MB{told}", flush=True)
    return figures


def make_store(folder: Path, size: Size, images: int) -> None:
    random = np.random.default_rng(0)
    writer = StoreWriter(folder, [str(number) for number in range(size.classes)])
    for split in ("train", "test"):
        pictures = random.integers(0, 256, (images, 3, size.pixels, size.pixels), np.uint8)
        writer.write_raw(split, pictures, random.integers(0, size.classes, images))
    writer.finish()


def one_step(
    name: str, form: Form, folder: Path, images: int, device: torch.device, threads: int
) -> Callable[[], None]:
    """Return a function that does the next step of an evaluation in this form."""
    further = [{"peak_lr": rate, "initial_weights": 0} for rate in RATES[: form.further]]
    recipe = load_recipe(name, {"linear": {"batch": images, "further": further}})
    encoder = initial_backbone(recipe, 0).eval().requires_grad_(False).to(device)
    compute = Compute(Ranks(), device, form.precision, threads, 0, channels_last=form.channels_last)
    evaluation = LinearEvaluation(encoder, PackedStore(folder), recipe, seed=0, compute=compute, identity={})
    evaluation.features = features(encoder, form, compute)

    def step() -> None:
        evaluation.train_step(evaluation.batches[evaluation.step])
        if device.type == "cuda":
            torch.cuda.synchronize()

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


def in_turn(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return each one's wall and processor seconds in every round, after a round that fills caches."""
    seconds = {name: ([], []) for name in runs}
    for number in range(-1, rounds):
        for name, run in runs.items():
            began = time.perf_counter(), time.process_time()
            run()
            taken = time.perf_counter() - began[0], time.process_time() - began[1]
            if number >= 0:
                seconds[name][0].append(taken[0])
                seconds[name][1].append(taken[1])
    return seconds


def ratio(slower: list[float], faster: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def peak_memory(task: tuple) -> int:
    """Return the bytes that two steps took at most, measured in a process of their own: freed pages are used again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_memory, task).result()


def _peak_memory(task: tuple) -> int:
    *_, device, threads = task
    torch.set_num_threads(threads)
    before = _most_resident()
    step = one_step(*task)
    step(), step()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _most_resident() - before


def _most_resident() -> int:
    """Return the bytes of memory that this process held at most. getrusage's would begin with its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux; there getrusage(2) counts in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


if __name__ == "__main__":
    main()
