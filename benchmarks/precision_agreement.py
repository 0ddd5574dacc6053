"""How far reduced precision, compiled networks and another layout lead training away from fp32, beside plain noise.

    python benchmarks/precision_agreement.py [--steps 50]

The same recipe, seed and pictures are trained for --steps steps in each way. For each: the loss at some steps, and the
distance of the online weights from fp32's, relative to how far fp32 has moved them. Noise to compare with: fp32 once
more with another number of threads (on a GPU: in another layout, whose kernels sum in another order), and fp32 with
another seed, whose pictures and draws differ while the initial weights are the same.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import measuring
import torch
from our_byol import OurStep, as_shipped
from pictures import small_store

from selfsup.data.preparing import prepare
from selfsup.data.store import PackedStore
from selfsup.engine.compute import Compute
from selfsup.recipe import load_recipe

SEED, OTHER_SEED = 0, 1
TOLD = 6  # losses in the table


@dataclass(frozen=True)
class Trained:
    """What a way of computing led to: a loss for each step, and the online weights, flat, float64."""

    losses: list[float]
    weights: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="default 50, quick 5")
    parser.add_argument("--recipe", help="default digits, on a GPU cifar10")
    parser.add_argument("--compile", action="store_true", help="compiled networks too, and whatever is shipped")
    with measuring.report("precision_agreement", parser) as (report, options), tempfile.TemporaryDirectory() as name:
        steps = options.steps or (5 if options.quick else 50)
        recipe = load_recipe(options.recipe or ("cifar10" if options.device.type == "cuda" else "digits"))
        store = store_for(recipe, Path(name) / "store")
        tell(report, recipe, store, Path(name), ways(options), steps)


def store_for(recipe: Mapping, folder: Path) -> PackedStore:
    """Return the digits, or made pictures of CIFAR-10's size."""
    if recipe["augment"]["size"] == 32:
        return small_store(folder, 4 * recipe["global_batch"])
    prepare("digits", None, folder)
    return PackedStore(folder)


def ways(options: argparse.Namespace) -> dict[str, tuple[Compute, int]]:
    """Return what to train with, by name, and the seed; the first is what the others are compared with."""
    shipped = as_shipped(options.device)
    exact = replace(shipped, precision="fp32", channels_last=False, compile=False)
    if options.device.type == "cpu":
        noise = {"fp32, another number of threads": replace(exact, threads=max(exact.threads - 1, 1))}
    else:
        noise = {"fp32, channels-last": replace(exact, channels_last=True)}
    found = {"fp32": (exact, SEED), **{name: (compute, SEED) for name, compute in noise.items()}}
    found["fp32, another seed"] = exact, OTHER_SEED
    reduced = [shipped.precision] if shipped.precision != "fp32" else ["bf16"]
    for precision in reduced:
        found[precision] = replace(exact, precision=precision), SEED
        found[f"{precision}, channels-last"] = replace(exact, precision=precision, channels_last=True), SEED
    if options.compile:
        found["compiled"] = replace(shipped, compile=True), SEED
    return found


def train(recipe: Mapping, store: PackedStore, folder: Path, compute: Compute, seed: int, steps: int) -> Trained:
    """Train from the same initial weights."""
    torch.set_num_threads(compute.threads)
    step = OurStep(store, recipe, compute, folder, seed=seed)
    training = step.training
    if seed != SEED:
        training.method.load_state_dict(OurStep(store, recipe, compute, folder, seed=SEED).training.method.state_dict())
    losses = [training.train_step(batch) for batch in step.batches(steps)]
    return Trained([float(loss) for loss in losses], weights_of(training))


def weights_of(training) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten().cpu() for p in training.method.networks["online"].parameters()])


def tell(
    report: measuring.Report,
    recipe: Mapping,
    store: PackedStore,
    folder: Path,
    found: Mapping[str, tuple[Compute, int]],
    steps: int,
) -> None:
    exact, _ = found["fp32"]
    start = weights_of(OurStep(store, recipe, exact, folder, seed=SEED).training)
    shown = sorted({round(place * (steps - 1) / (TOLD - 1)) for place in range(TOLD)})
    report.say(f"{recipe['model']['backbone']}, batch {recipe['global_batch']}, {steps} steps; losses at steps {shown}")
    reference: Trained | None = None
    for name, (compute, seed) in found.items():
        trained = train(recipe, store, folder, compute, seed, steps)
        reference = reference or trained
        moved = float((reference.weights - start).norm())
        apart = float((trained.weights - reference.weights).norm()) / moved
        gap = max(abs(a - b) for a, b in zip(trained.losses, reference.losses, strict=True))
        curve = " ".join(f"{trained.losses[step]:.4f}" for step in shown)
        report.say(
            f"{name:34} losses {curve}   furthest from fp32's {gap:.4f}   weights apart {apart:.4f} of the way",
            **{name: {"losses": trained.losses, "loss_gap": gap, "weights_apart": apart}},
        )


if __name__ == "__main__":
    main()
