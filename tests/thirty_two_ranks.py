"""A pretraining on as many ranks as the paper had, 8 nodes with 4 each: all of them processes of this machine.

    make ranks                                                      17 minutes on two cores, 12 GB of memory
    python tests/thirty_two_ranks.py --nodes 4 --seed 7 --folder /tmp/ranks

A network of a few thousand weights, and real processes that talk over gloo, started as torchrun starts them on so many
nodes. Each claim is a line; the first that does not hold ends the script with an error:

1. A chain of two segments is trained. What starting took, and the memory of a rank.
2. A rank, which the seed chooses, is killed in the middle of the second segment: the others leave by themselves, and
   the next attempt ends with the bits of the chain that was left alone.
3. The second segment goes on from the first with half and with three quarters of the ranks, the batch as it was.
   A number of ranks that cannot share the batch is refused in a line.
4. In float64 the weights after parts on all, half and three quarters of the ranks are those of one rank, to 1e-9.
5. How many collectives a step has, by method.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
sys.path[:0] = [str(REPOSITORY / "workflow" / "scripts"), str(TESTS)]

from collectives import of_a_step  # noqa: E402
from many_ranks import on_ranks  # noqa: E402
from runs import equal_states, part_in_float64  # noqa: E402
from selfsup.data.store import PackedStore, StoreWriter  # noqa: E402
from selfsup.engine.checkpoint import load_checkpoint  # noqa: E402
from selfsup.engine.distributed import Ranks  # noqa: E402
from selfsup.job.ledger import read_ledger  # noqa: E402
from selfsup.job.local_ranks import reserved_port  # noqa: E402
from selfsup.layout import boundary_name  # noqa: E402
from selfsup.recipe import canonical, load_recipe  # noqa: E402
from tiny import TINY  # noqa: E402

EPOCHS = 4  # two segments of two
STEPS_IN_FLOAT64 = 12
TRIES = 20  # to kill a rank before the job has ended
IMAGES_PER_RANK = 3
PATIENCE_S = 900.0
MEGABYTES_PER_RANK = 400  # about what one holds of its own
METHODS = ("digits", "simclr_digits", "equimod_digits", "simsiam_digits", "barlow_twins_digits", "vicreg_digits")
METHODS += ("moco_v3_digits",)


def write_store(folder: Path, images: int) -> PackedStore:
    """Pack so many training images of noise."""
    draw, writer = np.random.default_rng(7), StoreWriter(folder, ["ant", "bee", "cat"])
    for split, count in {"train": images, "test": 24}.items():
        writer.write_raw(split, draw.integers(0, 256, (count, 3, 12, 10), np.uint8), draw.integers(0, 3, count))
    writer.finish()
    return PackedStore(folder)


@dataclass
class Cluster:
    """Nodes that are this machine, and the run that they train. recipe: for the global batch of all ranks.

    python: what starts a rank.
    """

    nodes: int
    per_node: int
    folder: Path
    steps_per_epoch: int = 3
    python: str = sys.executable

    def __post_init__(self):
        self.size = self.nodes * self.per_node
        batch = IMAGES_PER_RANK * self.size
        self.recipe = load_recipe("digits", {**TINY, "epochs": EPOCHS, "global_batch": batch})
        self.store = write_store(self.folder / "store", self.steps_per_epoch * batch + 1)

    def start(self, run: Path, until: int, size: int | None = None) -> "Job":
        """Start pretrain.py once for each rank, as torchrun would on so many nodes."""
        size = size or self.size
        kept = contextlib.ExitStack()
        port = kept.enter_context(reserved_port())
        told = [self.python, REPOSITORY / "workflow/scripts/pretrain.py", "--recipe", canonical(self.recipe)]
        told += ["--data", self.store.folder, "--run-folder", run, "--until-epoch", until, "--device", "cpu"]
        told += ["--precision", "fp32", "--cpus", 1, "--checkpoint-minutes", 0.001]
        place = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": self.per_node, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        logs = self.folder / "logs" / f"{run.name}_{until}_{time.monotonic_ns()}"
        logs.mkdir(parents=True)
        began, processes = time.monotonic(), []
        for rank in range(size):
            own = {"RANK": rank, "LOCAL_RANK": rank % self.per_node, "OMP_NUM_THREADS": 1, **place}
            with open(logs / f"rank_{rank:02d}", "w") as log:
                environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
                processes.append(subprocess.Popen([*map(str, told)], env=environment, stdout=log, stderr=log))
        return Job(processes, logs, run, began, kept)


@dataclass
class Job:
    """The processes of a job, one a rank. logs: a file for each. kept: their port, given back at their end."""

    processes: list[subprocess.Popen]
    logs: Path
    run: Path
    began: float
    kept: contextlib.ExitStack

    def wait_for_steps(self, more: int) -> float:
        """Wait until it has done so many steps since its start; return the seconds that took."""
        before = self.steps()
        while self.steps() < before + more:
            if any(process.poll() for process in self.processes) or time.monotonic() > self.began + PATIENCE_S:
                raise AssertionError(f"no step {before + more} in {self.run}:\n{self.said()}")
            time.sleep(0.02)
        return time.monotonic() - self.began

    def steps(self) -> int:
        """How many steps history.csv tells of."""
        path = self.run / "history.csv"
        return max(path.read_text().count("\n") - 1, 0) if path.exists() else 0

    def end(self) -> list[int]:
        """Wait for the end of all ranks; return their statuses."""
        try:
            left = self.began + PATIENCE_S - time.monotonic()
            return [process.wait(max(left, 1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
            self.kept.close()

    def succeed(self) -> None:
        statuses = self.end()
        if any(statuses):
            raise AssertionError(f"ranks ended with {statuses}:\n{self.said()}")

    def said(self, rank: int = 0) -> str:
        """The end of what a rank has said."""
        return (self.logs / f"rank_{rank:02d}").read_text()[-2000:]


def megabytes(pid: int) -> tuple[float, float]:
    """Return what a process holds of the machine's memory in MB: with its share of what others use too, and alone."""
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    parts = {row[0]: int(row[1]) / 1e3 for row in rows if row[-1] == "kB"}
    return parts["Pss:"], parts["Private_Clean:"] + parts["Private_Dirty:"]


def check_memory(ranks: int) -> None:
    """Refuse to start where so many ranks would have the machine kill other processes."""
    found = [line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line]
    free, wanted = int(found[0]) / 1e3, ranks * MEGABYTES_PER_RANK
    if free < wanted:
        raise SystemExit(
            f"error: {free:.0f} MB of memory are free, wanted {wanted} for {ranks} ranks: take fewer --nodes"
        )


def chain(cluster: Cluster) -> Path:
    """Claim 1. Returns the folder of the run."""
    run = cluster.folder / "chain"
    for until in (EPOCHS // 2, EPOCHS):
        job = cluster.start(run, until)
        try:
            seconds = job.wait_for_steps(1)
            cold = cluster.python == sys.executable  # else the processes are not the ranks
            held = [megabytes(process.pid) for process in job.processes] if cold else []
        finally:
            job.succeed()
        print(f"{cluster.size} ranks to epoch {until}: first step {seconds:.0f} s after their start", flush=True)
        if held:
            shared, own = (statistics.mean(values) for values in zip(*held, strict=True))
            whole = shared * cluster.size / 1e3
            print(f"  memory: {shared:.0f} MB a rank, {own:.0f} MB of it its own, {whole:.1f} GB in all", flush=True)
        shutil.copytree(run, cluster.folder / f"to_{until}")
    check_ledger(run, ["reached its goal"] * 2, [cluster.size] * 2)
    return run


def check_ledger(run: Path, ends: list[str], devices: list[int]) -> None:
    rows = read_ledger(run / "ledger.csv")
    found = [(row["how_it_ended"], int(row["devices"])) for row in rows]
    if found != list(zip(ends, devices, strict=True)):
        raise AssertionError(f"{run}: the ledger has {found}, wanted {ends} on {devices} ranks")


def killed(cluster: Cluster, draw: random.Random, left_alone: Path) -> None:
    """Claim 2."""
    unlucky = draw.randrange(cluster.size)
    for number in range(TRIES):
        run = first_segment(cluster, f"killed_{number}")
        job = cluster.start(run, EPOCHS)
        job.wait_for_steps(draw.randint(2, 4))
        job.processes[unlucky].send_signal(signal.SIGKILL)
        began = time.monotonic()
        statuses = job.end()
        if not (run / boundary_name(EPOCHS)).exists():  # else few ranks had done it meanwhile
            break
    if 0 in statuses:
        raise AssertionError(f"rank {unlucky} was killed, and ranks ended with {statuses}")
    took, reached = time.monotonic() - began, job.steps()
    cluster.start(run, EPOCHS).succeed()
    states = [load_checkpoint(folder / boundary_name(EPOCHS)) for folder in (run, left_alone)]
    if not equal_states(*states):
        raise AssertionError(f"{run} and {left_alone} have other bits")
    first_row, *_, last_row = read_ledger(run / "ledger.csv")
    assert first_row["how_it_ended"] == last_row["how_it_ended"] == "reached its goal"
    print(f"rank {unlucky} killed after step {reached}: all others had left {took:.0f} s later; then the same bits")


def first_segment(cluster: Cluster, name: str) -> Path:
    """Return a copy of the chain after its first segment."""
    run = cluster.folder / name
    shutil.copytree(cluster.folder / f"to_{EPOCHS // 2}", run)
    return run


def changed(cluster: Cluster, size: int, left_alone: Path) -> None:
    """Claim 3, for a number of ranks that can share the batch."""
    run = first_segment(cluster, f"on_{size}")
    job = cluster.start(run, EPOCHS, size)
    job.succeed()
    told = (job.logs / "rank_00").read_text()
    if f"world_size {cluster.size}" not in told and "under other numerics" not in told:
        raise AssertionError(f"the change of ranks was not told:\n{job.said()}")
    check_ledger(run, ["reached its goal"] * 2, [cluster.size, size])
    one, other = (load_checkpoint(folder / boundary_name(EPOCHS)) for folder in (run, left_alone))
    if one["step"] != other["step"] or one["recipe"] != other["recipe"]:
        raise AssertionError(f"{run} has other steps or another recipe than {left_alone}")
    print(
        f"{size} ranks went on from {cluster.size}, with the same batch of {cluster.recipe['global_batch']}", flush=True
    )


def refused(cluster: Cluster, size: int) -> None:
    """Claim 3, for a number of ranks that cannot: each is refused before they meet."""
    run = first_segment(cluster, f"on_{size}")
    job = cluster.start(run, EPOCHS, size)
    statuses, wanted = job.end(), f"cannot be shared equally by {size} ranks"
    if 0 in statuses or any(wanted not in job.said(rank) for rank in range(size)):
        raise AssertionError(f"{size} ranks ended with {set(statuses)}:\n{job.said()}")
    print(f"{size} ranks were refused: the batch {wanted}", flush=True)


def agreement(cluster: Cluster, sizes: list[int]) -> None:
    """Claim 4."""
    last = STEPS_IN_FLOAT64
    wanted = part_in_float64(Ranks(), cluster.store, cluster.recipe, cluster.folder / "one.pt", last)
    path = cluster.folder / "parts.pt"
    for number, size in enumerate(sizes, 1):
        until = last * number // len(sizes)
        found = on_ranks(part_in_float64, size, cluster.store, cluster.recipe, path, until)
        if any((one != found[0]).any() for one in found):
            raise AssertionError(f"the weights differ between the {size} ranks")
    off = np.linalg.norm(found[0] - wanted) / np.linalg.norm(wanted)
    if not off < 1e-9:
        raise AssertionError(f"float64 on {sizes} ranks in turn: {off:.1e} from one rank's, wanted below 1e-9")
    turns = ", ".join(map(str, sizes))
    print(f"float64, {last} steps on {turns} ranks in turn: weights {off:.1e} from one rank's, relative", flush=True)


def collectives(cluster: Cluster, methods: Sequence[str]) -> None:
    """Claim 5: on two ranks, for the number does not depend on how many there are; that is checked for the first."""
    changes = {"epochs": 1, "optimizer": {"warmup_epochs": 0}}
    small = write_store(cluster.folder / "small", 40)
    for name in methods:
        told = {**changes, "global_batch": 8}
        one = on_ranks(of_a_step, 2, small, cluster.folder / name, name, told)[0]
        print(f"{name}: {one.calls} collectives a step, {one.bytes / 1e6:.2f} MB given by each rank", flush=True)
        if name == methods[0]:
            told = {**changes, "global_batch": IMAGES_PER_RANK * cluster.size, "model": {"width": 4}}
            many = on_ranks(of_a_step, cluster.size, cluster.store, cluster.folder / "many", name, told)
            if {other.calls for other in many} != {one.calls}:
                raise AssertionError(f"{cluster.size} ranks have {many[0].calls} collectives, two {one.calls}")


def check(cluster: Cluster, seed: int, methods: Sequence[str] = METHODS) -> None:
    """Check all claims. methods: recipes whose collectives are counted."""
    fewer = sorted({cluster.size // 2, cluster.size * 3 // 4})
    print(f"seed {seed}: {cluster.nodes} nodes with {cluster.per_node} ranks each", flush=True)
    left_alone = chain(cluster)
    killed(cluster, random.Random(seed), left_alone)
    for size in fewer:
        changed(cluster, size, left_alone)
    refused(cluster, 5)
    agreement(cluster, [cluster.size, *fewer])
    collectives(cluster, methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--per-node", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a random one, printed")
    parser.add_argument("--folder", type=Path, required=True, help="a folder to make")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    check_memory(arguments.nodes * arguments.per_node)
    arguments.folder.mkdir(parents=True)
    check(Cluster(arguments.nodes, arguments.per_node, arguments.folder.resolve()), arguments.seed)


if __name__ == "__main__":
    main()
