"""What Slurm knows of a job, asked on the login node."""

import contextlib
import subprocess
from pathlib import Path

from selfsup.job.lock import living_holder, read_holder, this_process

PATIENCE_S = 20  # a controller that is away makes its clients wait
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
    """Return in words the job that works in `folder`, or will again, or None.

    Asks Slurm for the job that a lock names: it may be suspended or in the queue again, and give no sign of life.
    """
    holder = read_holder(folder)
    if holder is None:
        return None
    if holder.host == this_process("look").host:  # its process tells more than the allocation that it was part of
        return str(holder) if living_holder(folder) else None
    state = job_state(holder.job_id) if holder.job_id else None
    if state is not None:
        return None if state in ENDED else f"{holder}, which Slurm says is {state}"
    return str(holder) if living_holder(folder) else None


def job_state(job_id: str) -> str | None:
    """Return Slurm's word for a job's state, or None where there is no Slurm or it knows no such job."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        words = done.stdout.split()
        if done.returncode == 0 and words:
            return words[0]
    return None
