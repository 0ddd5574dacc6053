"""Questions to Slurm about jobs, asked on the login node."""

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from selfsup.job.lock import living_holder, read_holder, this_process

PATIENCE_S = 20  # clients wait for a controller that does not answer
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)


def holder_at_work(folder: Path) -> str | None:
    """Return, in words, the job that works in `folder` or will continue to; None if there is no such job.

    Asks Slurm about the job that the lock names: if it is suspended or queued again, it shows no sign of life.
    """
    holder = read_holder(folder)
    if holder is None:
        return None
    if holder.host == this_process("look").host:  # the process says more than its allocation
        return str(holder) if living_holder(folder) else None
    state = job_state(holder.job_id) if holder.job_id else None
    if state is not None:
        return None if state in ENDED else f"{holder}, which Slurm says is {state}"
    return str(holder) if living_holder(folder) else None


def job_state(job_id: str) -> str | None:
    """Return a job's state in Slurm's word, or None if there is no Slurm or no such job."""
    return job_states([job_id], PATIENCE_S).get(job_id)


def job_states(job_ids: Sequence[str], patience_s: float) -> dict[str, str]:
    """Return the states of the jobs that Slurm knows, in its words; none if it does not answer in time."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(job_ids)}", "--format=%A %T"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
        if done.returncode == 0:
            return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) == 2)
    return {}


@dataclass(frozen=True)
class Waiting:
    """A job in the queue. comment: its rule and wildcards, as Snakemake's executor writes them."""

    job_id: str
    comment: str


def waiting_jobs(folder: Path, patience_s: float) -> list[Waiting]:
    """Return this user's jobs submitted in `folder` that have not begun; none if Slurm does not answer in time."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["squeue", "--noheader", "--me", "--states=PENDING,CONFIGURING", "--format=%A|%k|%Z"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
        jobs = [line.split("|", maxsplit=2) for line in done.stdout.splitlines() if line.count("|") >= 2]
        return [Waiting(job, comment) for job, comment, where in jobs if Path(where) == folder]
    return []


def queue_seconds(job_ids: Sequence[str], patience_s: float = PATIENCE_S) -> dict[str, int]:
    """Return how many seconds each job waited in the queue, by sacct; none if the site keeps no accounts.

    For a requeued job it is the last wait: Slurm keeps no other under its number.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
        command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(job_ids)}"]
        command += ["--format=JobIDRaw,Eligible,Start"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
        if done.returncode == 0:
            rows = [line.split("|") for line in done.stdout.splitlines()]
            return {
                job: _seconds(eligible, start)
                for job, eligible, start in rows
                if eligible[:1].isdigit() and start[:1].isdigit()
            }
    return {}


def _seconds(begin: str, end: str) -> int:
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds())
