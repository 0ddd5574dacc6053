"""The workflow through the shipped profile and the executor plugin, on the test cluster."""

import json
import subprocess
import sys
import time
from pathlib import Path

from cluster import Cluster

from workflows import QUICK, Workflow

# 44 steps of a narrow network: 20 s on four ranks of two cores, time enough to interfere.
LONG = {**QUICK, "epochs": 4, "global_batch": 128}
STEPS = 44
CHECKPOINT_MINUTES = 0.02  # of the undisturbed run, and of the one that it is compared with after several events
PATIENCE_S = 240.0
RUN = "results/digits/seed0"


class SlurmWorkflow(Workflow):
    """A folder in which snakemake runs on the cluster: two nodes with two ranks each, on the processor."""

    snakemake = (str(Path(__file__).with_name("impatient_snakemake.py")),)

    def __init__(self, folder: Path, repository: Path, cluster: Cluster):
        super().__init__(folder, repository)
        self.cluster, self.started = cluster, []
        self.config["cluster"]["partition"] = "main"
        how = {"nodes": 2, "devices_per_node": 2, "cpus_per_device": 1, "hours": 0.2, "checkpoint_minutes": 0.05}
        self.digits["compute"]["pretrain"].update(how)
        self.digits["compute"]["evaluate"].update({**how, "devices_per_node": 1})

    def start(self, *arguments: str) -> subprocess.Popen:
        self.started.append(super().start(*arguments))
        return self.started[-1]

    def close(self) -> None:
        """End what a test that failed has left behind: it would go on submitting jobs into the next test."""
        for process in self.started:
            process.kill()
            process.wait()
        for node in self.cluster.nodes:
            self.cluster.start_node(node)
        self.cluster.ask("scontrol", "update", "PartitionName=main", "State=UP")
        self.cluster.ask("scancel", "--user=root")
        self.wait_for("an empty queue", lambda: not self.cluster.ask("squeue", "-h").strip())

    def options(self) -> list[str]:
        return ["--profile", str(self.repository / "profiles" / "slurm")]

    def environment(self) -> dict[str, str]:
        return self.cluster.environment()

    def job(self, stage: str = "pretrain") -> str:
        """Wait for the job that holds the lock of a stage; return its number."""
        lock = self.path(f"{RUN}/{stage}/lock.json")
        self.wait_for(f"a job that holds {lock}", lock.exists)
        return json.loads(lock.read_text())["job_id"]

    def wait_for_step(self, step: int) -> None:
        """Wait until the training has done so many steps."""

        def reached() -> bool:
            history = self.path(f"{RUN}/pretrain/history.csv")
            rows = history.read_text().splitlines() if history.exists() else []
            return len(rows) > 1 and int(rows[-1].split(",")[0] or 0) >= step

        self.wait_for(f"step {step}", reached)

    def wait_for(self, what: str, condition) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {PATIENCE_S} s for {what}:\n{self.queue()}")
            time.sleep(0.1)

    def status(self) -> str:
        """What `make status` prints."""
        command = [sys.executable, str(self.repository / "workflow" / "scripts" / "status.py")]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=True
        )
        return done.stdout

    def queue(self) -> str:
        return self.cluster.ask("squeue", "--states=all", "-o", "%A %T %r %k")

    def state(self, job: str) -> str:
        return self.cluster.ask("squeue", "-h", "--states=all", "-j", job, "-o", "%T").strip()
