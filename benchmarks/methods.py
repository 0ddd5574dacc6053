"""A step of each method beside lightly's blocks: networks, loss, backward pass and optimiser, on views made already.

    python benchmarks/methods.py [--recipe simclr_cifar10 ...]

ResNet-18 on CIFAR-10's sizes, both in the same precision and memory layout, in turn in one process. Ratios are medians
over rounds of neighbours in time. EquiMod, which lightly lacks, is beside a plain restatement. The augmentation, in
which ours gains most, is left out: training_step.py has it. lightly is installed by `make bench`.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch
from our_byol import OurStep, as_shipped
from pictures import small_store

from selfsup.augment import Views
from selfsup.augment.transfer import sent
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.methods.equimod_parameters import normalisation
from selfsup.recipe import load_recipe

BATCH = {"cpu": 64, "cuda": 512}
STEPS = {"cpu": 2, "cuda": 30}
LEAST = 1.0  # wanted: a peer's time over ours


@dataclass(frozen=True)
class ReadyViews:
    """What a peer's step is given: views and pictures, float32 [N, 3, 32, 32], and EquiMod's parameters [2N, P]."""

    images: tuple[torch.Tensor, ...]
    plain: torch.Tensor | None
    vectors: torch.Tensor | None

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.images)


def main() -> None:
    if not importlib.util.find_spec("lightly"):
        raise UserError("lightly is not installed: pip install --no-deps -r requirements-bench.txt")
    from lightly_methods import PEERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, help="default 9, quick 1")
    with measuring.report("methods", parser) as (report, options), tempfile.TemporaryDirectory() as folder:
        store = small_store(Path(folder), 2_000)
        for recipe in options.recipe:
            compare(report, recipe, PEERS[recipe], store, options)


def compare(
    report: measuring.Report, name: str, peer: Callable, store: PackedStore, options: argparse.Namespace
) -> None:
    """Measure a recipe's method and its peer, in turn."""
    kind = options.device.type
    recipe = load_recipe(name, {"global_batch": BATCH[kind] // (4 if options.quick else 1)})
    compute = as_shipped(options.device)
    with tempfile.TemporaryDirectory() as folder:
        ours = OurStep(store, recipe, compute, Path(folder))
        views = ours.ready_views()
        theirs = peer(recipe, options.device, precision=compute.precision, channels_last=compute.channels_last)
        ready, steps = as_given(recipe, views, options.device), 1 if options.quick else STEPS[kind]
        ways = {
            "ours": lambda: timed(ours.on(views), steps),
            "peer": lambda: timed(lambda: theirs.train_step(ready), steps),
        }
        taken = measuring.in_turn(ways, options.rounds or (1 if options.quick else 9))
    times, (low, high) = measuring.ratio(taken["peer"], taken["ours"]), measuring.spread(taken["peer"], taken["ours"])
    millis = taken["ours"].wall / steps * 1e3
    report.say(
        f"{name:28} {compute.precision}, batch {recipe['global_batch']}: {millis:8.1f} ms a step; the peer takes "
        f"{times:.2f} ({low:.2f} to {high:.2f}) times as long, wanted {LEAST:g}",
        **{name: {"step_ms": millis, "peer": times, "spread": [low, high]}},
    )


def as_given(recipe, views: Views, device: torch.device) -> ReadyViews:
    """Return the views as a peer takes them."""
    vectors = None
    if views.plain is not None:
        settings = recipe["equimod"]["parameters"]
        vectors = sent(normalisation(recipe, settings).all_views(views.parameters), device)
    return ReadyViews(tuple(views), views.plain, vectors)


def timed(step: Callable[[], object], steps: int) -> float:
    """Return the seconds of some steps."""
    measuring.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    measuring.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
