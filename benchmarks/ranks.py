"""How the training step scales over ranks: 1, 2 and 4 processes, over NCCL on GPUs, else over gloo on CPU.

    python benchmarks/ranks.py [--ranks 1 2 4] [--threads 1]

Each rank trains with --threads threads and the same number of pictures, so that perfect scaling is a rank's time that
stays. On a CPU with fewer cores than ranks times threads they share cores: then the total of images per second can only
stay, and what it loses is what ranks cost (all-reduce, synchronised batch norm, waiting for each other), but nothing is
said about a network or about many devices. All numbers of ranks are measured in turn, in processes of their own; the
slowest rank's time counts.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring
import torch
from our_byol import OurStep, as_shipped
from pictures import small_store

from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.job.place import Place, discover_place
from selfsup.recipe import load_recipe

IMAGES = {"cpu": 32, "cuda": 512}  # of each rank, of 32 pixels
STEPS = {"cpu": 2, "cuda": 30}
PATIENCE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)  # a rank that the benchmark has started
    if "--rank-of" in sys.argv:
        train(measuring.arguments_of(parser))
        return
    with measuring.report("ranks", parser) as (report, options), tempfile.TemporaryDirectory() as name:
        options.threads = options.threads or 1
        store, kind = Path(name) / "store", options.device.type
        small_store(store, 2 * max(options.ranks) * IMAGES[kind])
        compare(report, store, numbers_of_ranks(report, options), options)


def numbers_of_ranks(report: measuring.Report, options: argparse.Namespace) -> list[int]:
    """Return the numbers that can be measured here."""
    if options.device.type == "cpu":
        return options.ranks
    devices = torch.cuda.device_count()
    report.say(f"{devices} GPUs here: {[count for count in options.ranks if count > devices] or 'no'} ranks left out")
    return [count for count in options.ranks if count <= devices]


def compare(report: measuring.Report, store: Path, numbers: list[int], options: argparse.Namespace) -> None:
    rounds, images = options.rounds or (1 if options.quick else 3), IMAGES[options.device.type]
    measured = [{count: measure(store, count, options) for count in numbers} for _ in range(rounds)]
    cores = measuring.machine(options.device)["cores"]
    report.say(f"{images} pictures and {options.threads} threads a rank, {cores} cores, median of {rounds} rounds")
    for count in numbers:
        seconds = statistics.median(one[count]["step_s"] for one in measured)
        kept = statistics.median(one[numbers[0]]["step_s"] / one[count]["step_s"] for one in measured)
        throughput = kept * count / numbers[0]
        memory = max(one[count]["peak_bytes"] for one in measured)
        shared = ", which share cores" if options.device.type == "cpu" and count * options.threads > cores else ""
        report.say(
            f"{count} ranks: {count * images / seconds:9.2f} images/s, {throughput:.2f} times those of {numbers[0]}, "
            f"a rank's speed {kept:.0%}; peak memory of a rank {memory / 1e6:.0f} MB{shared}",
            **{f"{count} ranks": {"step_s": seconds, "throughput": throughput, "kept": kept, "peak_bytes": memory}},
        )


def measure(store: Path, count: int, options: argparse.Namespace) -> dict[str, float]:
    """Return what `count` ranks, started for it, take for a step, and the most that one of them holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--rank-of", str(store), "--device", options.device.type]
    command += ["--threads", str(options.threads), "--recipe", options.recipe, *["--quick"] * options.quick]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise UserError(f"{count} ranks: one ended with {process.returncode}: {errors.strip()[-500:]}")
    return json.loads(outputs[0][0].splitlines()[-1])


def train(options: argparse.Namespace) -> None:
    """Be one of the ranks: train, and as the first tell how long a step took."""
    place: Place = discover_place(os.environ)
    kind = options.device.type
    compute = as_shipped(options.device, place=place)
    recipe = load_recipe(options.recipe, {"global_batch": IMAGES[kind] * place.size})
    memory = measuring.PeakMemory(compute.device)
    memory.reset()
    with tempfile.TemporaryDirectory() as folder:
        step = OurStep(PackedStore(options.rank_of), recipe, compute, Path(folder))
        steps = STEPS[kind] // (2 if options.quick else 1)
        step.turn(1)
        seconds = max(compute.ranks.gather(step.turn(steps))) / steps
        peak = max(compute.ranks.gather(memory.bytes()))
    if place.is_main:
        print(json.dumps({"step_s": seconds, "peak_bytes": peak}))
    compute.ranks.close()


if __name__ == "__main__":
    main()
