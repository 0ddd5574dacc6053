"""What a checkpoint costs: how long training waits for it, and how long a resume takes beyond reading the file.

    python benchmarks/checkpoint_stall.py [--recipe imagenet] [--rounds 5]

Builds the recipe's whole state at full size (networks, target, momentum), on the GPU where there is one, and saves it
alternately in the background and waiting for the disk. No images are read and no step is trained.
"""

import argparse
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

import torch

from selfsup.job.attempt import Attempt
from selfsup.recipe import load_recipe
from selfsup.training.checkpoint import load_checkpoint
from selfsup.training.compute import Compute
from selfsup.training.distributed import Ranks
from selfsup.training.pretraining import Pretraining, Run
from selfsup.training.saving import Saver

MINUTES = 10  # between checkpoints, as config.yaml has it
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "digits": 1_437}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(IMAGES), default="imagenet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        training = whole_state(load_recipe(arguments.recipe), device, Path(name), IMAGES[arguments.recipe])
        attempt = Attempt(Path(name), stage="benchmark", goal="its end", fingerprint="")
        with attempt:
            attempt.begin(0, 1)
            waits = measure_saves(training, Saver(training.ranks, attempt, MINUTES), arguments.rounds)
        background, synchronous = (statistics.median(waits[wait]) for wait in (False, True))
        path = max(training.run.partial.glob("*.pt"))
        size = path.stat().st_size / 1e6
        reading, resuming = measure_resume(training, path, arguments.rounds)
    print(f"\n{arguments.recipe} on {device}: a checkpoint of {size:.0f} MB, median of {arguments.rounds}")
    print(f"training waits {background:.3f} s in the background, {synchronous:.3f} s for the disk")
    print(f"ratio to the {MINUTES} minutes between two: {background / (60 * MINUTES):.5%} (wanted under 1 %)")
    print(f"resume: {reading:.2f} s to read and check the file, {resuming:.2f} s beyond it (wanted under 2 s)")


def whole_state(recipe: dict, device: torch.device, folder: Path, images: int) -> Pretraining:
    """Return a pretraining as after its first step, momentum buffers included."""
    store = types.SimpleNamespace(train=range(images), fingerprint="none", folder=folder)
    compute = Compute(Ranks(), device, "fp32", torch.get_num_threads(), 0)
    training = Pretraining(Run(recipe, 0, 1, store, folder, compute, MINUTES))
    for one in training.treatments:
        one.parameter.grad = torch.full_like(one.parameter, 1e-3)
    training.optimizer.step()
    return training


def measure_saves(training: Pretraining, saver: Saver, rounds: int) -> dict[bool, list[float]]:
    """Return the seconds that the loop waits, for saves in the background (False) and for the disk (True)."""
    waits: dict[bool, list[float]] = {False: [], True: []}
    loss = torch.zeros((), device=training.run.compute.device)
    for number in range(-1, rounds):  # the first round takes memory, which later ones use again
        for wait in waits:
            training.step += 1
            began = time.perf_counter()
            training.save(training.run.partial / f"step_{training.step:09d}.pt", loss, saver, wait=wait)
            if number >= 0:
                waits[wait].append(time.perf_counter() - began)
            saver.finish()
    return waits


def measure_resume(training: Pretraining, path: Path, rounds: int) -> tuple[float, float]:
    """Return the median seconds for reading and checking a checkpoint, and for building and restoring the rest."""
    readings, rests = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        state = load_checkpoint(path)
        read = time.perf_counter()
        again = Pretraining(training.run)
        again.restore(path, state)
        if again.run.compute.device.type == "cuda":
            torch.cuda.synchronize()
        readings.append(read - began)
        rests.append(time.perf_counter() - read)
    return statistics.median(readings), statistics.median(rests)


if __name__ == "__main__":
    main()
