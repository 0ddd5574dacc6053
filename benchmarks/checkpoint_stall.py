"""What a checkpoint costs: how long training waits for it, and how long a resume takes beyond reading the file.

    python benchmarks/checkpoint_stall.py [--recipe imagenet] [--rounds 5]

Builds the recipe's whole state at full size (networks, target, momentum), on the GPU where there is one, and saves it
alternately in the background and waiting for the disk. No images are read and no step is trained.
"""

import argparse
import statistics
import tempfile
import time
import types
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch

from selfsup.engine.checkpoint import load_checkpoint
from selfsup.engine.compute import Compute
from selfsup.engine.distributed import Ranks
from selfsup.engine.saving import Saver
from selfsup.job.attempt import Attempt
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Pretraining, Run

MINUTES = 10  # between checkpoints, as config.yaml has it
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "digits": 1_437}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(IMAGES), help="default imagenet, quick cifar10")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    with measuring.report("checkpoint_stall", parser) as (report, arguments):
        recipe = arguments.recipe or ("cifar10" if arguments.quick else "imagenet")
        rounds = arguments.rounds or (2 if arguments.quick else 5)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            measure(report, recipe, arguments.device, Path(name), rounds)


def measure(report: measuring.Report, recipe: str, device: torch.device, folder: Path, rounds: int) -> None:
    memory = measuring.PeakMemory(device)
    training = whole_state(load_recipe(recipe), device, folder, IMAGES[recipe])
    attempt = Attempt(folder, stage="benchmark", goal="its end", fingerprint="")
    memory.reset()
    with attempt:
        attempt.begin_steps(0, 1)
        waits = measure_saves(training, Saver(training.ranks, attempt, MINUTES), rounds)
    peak = memory.bytes()
    background, synchronous = (statistics.median(waits[wait]) for wait in (False, True))
    path = max(training.run.partial.glob("*.pt"))
    size = path.stat().st_size
    reading, resuming = measure_resume(training, path, rounds)
    report.say(
        f"{recipe}: a checkpoint of {size / 1e6:.0f} MB, median of {rounds}", recipe=recipe, checkpoint_bytes=size
    )
    report.say(
        f"training waits {background:.3f} s in the background, {synchronous:.3f} s for the disk; "
        f"peak memory beyond the training's own {peak / 1e6:.0f} MB",
        background_s=background,
        synchronous_s=synchronous,
        peak_bytes=peak,
    )
    share = background / (60 * MINUTES)
    report.say(f"ratio to the {MINUTES} minutes between two: {share:.5%} (wanted under 1 %)", share=share)
    report.say(
        f"resume: {reading:.2f} s to read and check the file, {resuming:.2f} s beyond it (wanted under 2 s)",
        reading_s=reading,
        resuming_s=resuming,
    )


@dataclass(frozen=True)
class Unread:
    """A split of which only the number of images is known."""

    count: int
    raw: None = None

    def __len__(self) -> int:
        return self.count


def whole_state(recipe: dict, device: torch.device, folder: Path, images: int) -> Pretraining:
    """Return a pretraining as after its first step, momentum buffers included."""
    store = types.SimpleNamespace(train=Unread(images), fingerprint="none", folder=folder)
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
        measuring.synchronize()
        readings.append(read - began)
        rests.append(time.perf_counter() - read)
    return statistics.median(readings), statistics.median(rests)


if __name__ == "__main__":
    main()
