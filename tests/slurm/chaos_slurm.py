"""Disturbs a run of four ranks on the two nodes of a real Slurm, and compares it with an undisturbed one without Slurm.

    make chaos-slurm                                        100 events, as root: half an hour on two cores
    python tests/slurm/chaos_slurm.py --events 40 --seed 7 --folder /tmp/chaos

`tests/chaos.py` on a cluster, with more that can happen: SIGKILL of any rank, of a node's daemon alone, of a node with
all that runs on it, of slurmctld; a time limit; a rank that is frozen for good. Kinds and moments are drawn from the
seed, which is printed.
"""

import random
import shutil
import signal
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent / "workflow" / "scripts"), str(TESTS), str(TESTS / "slurm")]

from cluster import Cluster, wait_for  # noqa: E402
from slurm_workflow import LONG  # noqa: E402

import chaos  # noqa: E402
from chaos import REPOSITORY, Plan, Run  # noqa: E402
from chaos_events import Event, gone, send  # noqa: E402

FROZEN_FOR_GOOD = "frozen for good"
# 9 epochs of 22 steps of a narrow network in three segments of seconds.
CHANGES = {"overrides": {**LONG, "global_batch": 64, "epochs": 9}, "segment_epochs": 3}
HANG_MINUTES = 0.5  # longer than four ranks take to import torch on two busy cores


class SlurmRun(Run):
    """A folder in which Snakemake makes the encoder of the experiment `digits`, on two nodes with two ranks each."""

    def __init__(self, folder: Path, plan: Plan, cluster: Cluster, data: Path):
        self.cluster = cluster
        super().__init__(folder, plan)
        shutil.copytree(data, folder / "data")

    def configuration(self, plan: Plan) -> dict:
        config = super().configuration(plan)
        config["cluster"]["partition"] = "main"
        how = {"nodes": 2, "devices_per_node": 2, "cpus_per_device": 1, "hours": 0.2, "hang_minutes": HANG_MINUTES}
        config["experiments"]["digits"]["compute"]["pretrain"].update(how)
        return config

    def command(self) -> list[str]:
        impatient = Path(__file__).with_name("impatient_snakemake.py")
        profile = ["--profile", str(REPOSITORY / "profiles" / "slurm")]
        return [sys.executable, str(impatient), "-s", str(REPOSITORY / "Snakefile"), *profile]

    def environment(self) -> dict[str, str]:
        return {**self.cluster.environment(), **self.faults.environment()}

    def ranks(self, pid: int) -> list[int]:
        return [one for one in self.cluster.processes("SLURM_PROCID=", "pretrain.py") if _is_rank(one)]

    def terminate(self, pid: int) -> bool:
        job = self.job(pid)
        return bool(job) and self.cluster.ask("scancel", job) is not None

    def job(self, pid: int) -> str:
        """The number of the job whose first rank is `pid`."""
        return self.cluster.variable(pid, "SLURM_JOB_ID")

    def close(self) -> None:
        for node in self.cluster.nodes:
            self.cluster.start_node(node)
        self.cluster.start_controller()
        self.cluster.ask("scancel", "--user=root")
        super().close()


class LocalRun(Run):
    """The same run without Slurm on four ranks of this machine, in one segment: neither may change a bit."""

    def configuration(self, plan: Plan) -> dict:
        config = super().configuration(plan)
        config["experiments"]["digits"]["compute"]["pretrain"].update(devices_per_node=4, cpus_per_device=1)
        config["experiments"]["digits"]["segment_epochs"] = plan.changes["overrides"]["epochs"]
        return config


def daemon_killed(run: SlurmRun, pid: int, draw: random.Random) -> bool:
    """SIGKILL of a node's slurmd alone: the steps and tasks on it go on; it comes back soon."""
    node = draw.choice(run.cluster.nodes)
    run.cluster.kill_daemon(f"slurmd-{node}")
    time.sleep(draw.uniform(0, 4))
    run.cluster.start_node(node)
    return True


def node_killed(run: SlurmRun, pid: int, draw: random.Random) -> bool:
    """A node with its daemon, steps and tasks. Back at once, as no real one is, it would not be counted as lost."""
    node = draw.choice(run.cluster.nodes)
    run.cluster.lose_node(node)
    time.sleep(draw.uniform(0, 4))
    run.cluster.start_node(node)
    return gone(run, pid)


def controller_killed(run: SlurmRun, pid: int, draw: random.Random) -> bool:
    if not (job := run.job(pid)):
        return False
    run.cluster.keep_job(job)
    run.cluster.kill_daemon("slurmctld")
    time.sleep(draw.uniform(0, 6))
    run.cluster.start_controller()
    return True


def time_limit(run: SlurmRun, pid: int, draw: random.Random) -> bool:
    """The job gets a limit of a minute: Slurm signals two minutes ahead of it, so at its next look, 30 s at most."""
    job = run.job(pid)
    if not job:
        return False
    run.cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    return gone(run, pid)


def frozen_for_good(run: SlurmRun, pid: int, draw: random.Random) -> bool:
    """A rank never goes on: the watchdogs of the others end the job."""
    ranks = run.ranks(pid)
    return bool(ranks) and send(run, draw.choice(ranks), signal.SIGSTOP) and gone(run, pid)


ON_SLURM: dict[str, Event] = {
    "SIGKILL of slurmd": daemon_killed,
    "SIGKILL of a node": node_killed,
    "SIGKILL of slurmctld": controller_killed,
    "time limit": time_limit,
    FROZEN_FOR_GOOD: frozen_for_good,
}
# Those that end a job cost the better part of a minute, until the next one trains: they are drawn less often.
ENDS_A_JOB = ("SIGKILL", "SIGTERM", "SIGKILL while it writes", "SIGKILL of Snakemake", "newest checkpoint damaged")
WEIGHTS = dict.fromkeys((*ENDS_A_JOB, "SIGKILL of a node", "time limit", FROZEN_FOR_GOOD), 0.15)


def possible_events() -> dict[str, Event]:
    """Return the events that a run on the cluster can have on this machine, by name."""
    return {**chaos.available(), **ON_SLURM}


def _is_rank(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("python") if Path(f"/proc/{pid}").exists() else False


def on_slurm(undisturbed: LocalRun, folder: Path, plan: Plan, cluster: Cluster, kinds: list[str]) -> list[Run]:
    """Disturb runs on a cluster by events of these kinds, and compare them with `undisturbed`, finished first."""
    print(f"seed {plan.seed}: {len(kinds)} events", flush=True)

    def make_run(number: int) -> SlurmRun:
        wait_for("an empty queue", lambda: not cluster.ask("squeue", "-h").strip(), 120)
        return SlurmRun(folder / f"disturbed{number}", plan, cluster, undisturbed.folder / "data")

    return chaos.compare(undisturbed, make_run, plan, possible_events(), kinds)


def main() -> None:
    arguments = chaos.options(__doc__, events=100)
    plan = Plan(CHANGES, arguments.events, arguments.seed, checkpoint_minutes=0.02, latest_s=5)
    weights = {name: WEIGHTS.get(name, 1.0) for name in possible_events()}
    kinds = chaos.drawn(weights, plan.events, random.Random(plan.seed))
    folder, cluster = arguments.folder.resolve(), Cluster()
    cluster.up()
    try:
        on_slurm(LocalRun(folder / "undisturbed", plan, disturbed=False), folder, plan, cluster, kinds)
    finally:
        cluster.down()


if __name__ == "__main__":
    main()
