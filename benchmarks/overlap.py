"""A step over several ranks of this machine, eager, compiled and as one graph, and where its gradients' sums lie.

    python benchmarks/overlap.py [--ranks 2 4] [--images 8]

The ways take turns in the same processes, a step each, one thread a rank, over gloo. Of each: a step's time beside
eager's, when in the backward pass the first sum over ranks of gradients begins, and how long after its end the last
one has come. Ranks that share cores say nothing of a network: only where the sums lie, and what the ways cost beside
each other. Inductor takes minutes; `--backend aot_eager --ways eager "one graph"` shows where the sums lie without it.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import measuring
import torch
from pictures import small_store
from torch import multiprocessing

from selfsup.data.store import PackedStore
from selfsup.engine.compute import Compute
from selfsup.engine.device import choose_precision
from selfsup.engine.distributed import Ranks
from selfsup.job.local_ranks import reserved_port
from selfsup.job.place import Place
from selfsup.recipe import load_recipe
from selfsup.training import static_step
from selfsup.training.pretraining import Pretraining, Run

WAYS = {"eager": {}, "compile": {"compile": True}, "one graph": {"one_graph": True}}


class Watched:
    """A pretraining whose steps tell their times, in seconds."""

    def __init__(self, run: Run):
        self.training = Pretraining(run)
        self._honest, self.training.averager.last_backward = self.training.averager.last_backward, self._backward
        self.times: list[dict[str, float]] = []

    @contextlib.contextmanager
    def _backward(self) -> Iterator[None]:
        ranks, began, sums = self.training.ranks, time.perf_counter(), []
        start = ranks.start_all_reduce
        ranks.start_all_reduce = lambda tensor: sums.append(time.perf_counter()) or start(tensor)
        with self._honest():
            yield
            ended = time.perf_counter()
        ranks.start_all_reduce = start
        behind = time.perf_counter() - ended
        first = (sums[0] - began) / (ended - began)
        self.times.append({"first": first, "sums": len(sums), "behind": behind})

    def step(self) -> None:
        batch = self.training.batches[self.training.step % self.training.steps_per_epoch]
        self.training.ranks.barrier()
        began = time.perf_counter()
        self.training.train_step(batch)
        self.times[-1]["step"] = time.perf_counter() - began


def of_a_rank(rank: int, size: int, port: int, store: Path, options: argparse.Namespace, told) -> None:
    torch.set_num_threads(1)
    static_step.BACKEND = options.backend
    ranks, cpu = Ranks(Place(rank, size, rank, "127.0.0.1", port)), torch.device("cpu")
    recipe = load_recipe(options.recipe, {"global_batch": options.images * size})
    with tempfile.TemporaryDirectory() as folder:
        ways = {}
        for name in options.ways:
            compute = Compute(ranks, cpu, choose_precision("auto", cpu), 1, 0, **WAYS[name])
            ways[name] = Watched(Run(recipe, 0, 1, PackedStore(store), Path(folder), compute, 60))
        for number in range(2 + options.rounds):
            for way in ways.values():
                way.step()
                if number < 2:
                    way.times.clear()  # it was compiled, and memory taken
    if ranks.is_main:
        told.put({name: way.times for name, way in ways.items()})
    ranks.close()


def measure(size: int, store: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    told = multiprocessing.get_context("spawn").Queue()
    with reserved_port() as port:
        processes = multiprocessing.start_processes(
            of_a_rank, (size, port, store, options, told), size, join=False, start_method="spawn"
        )
        while told.empty():
            processes.join(timeout=1)  # raises a rank's own error
        found = told.get()
        while not processes.join():
            pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--images", type=int, default=8, help="of each rank, of 32 pixels")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--backend", default=static_step.BACKEND, help="of the one graph; aot_eager compiles no code")
    with measuring.report("overlap", parser) as (report, options), tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        small_store(store, 4 * max(options.ranks) * options.images)
        for size in options.ranks:
            found = measure(size, store, options)
            for way, times in found.items():
                middle = {key: statistics.median(one[key] for one in times) for key in times[0]}
                pairs = zip(times, found["eager"], strict=True)
                ratio = statistics.median(one["step"] / eager["step"] for one, eager in pairs)
                report.say(
                    f"{size} ranks, {way}: {1e3 * middle['step']:.0f} ms, {ratio:.2f} times eager; the first of "
                    f"{middle['sums']:.0f} sums begins at {middle['first']:.0%} of the backward pass, "
                    f"and the last has come {1e3 * middle['behind']:.0f} ms after its end",
                    **{f"{size} ranks, {way}": {**middle, "ratio": ratio}},
                )


if __name__ == "__main__":
    main()
