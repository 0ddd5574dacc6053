"""What happens to runs: each event is a function of a disturbed run, its trainer's process and a source of draws.

It returns whether it has happened: the trainer may have ended before. `EVENTS` has those that any run can meet; a
cluster adds its own (`slurm/chaos_slurm.py`).
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.engine.checkpoint import newest_by_card
from selfsup.job.lock import living_holder
from selfsup.layout import rolling_files

if TYPE_CHECKING:
    from chaos import Run

PATIENCE_S = 900.0  # longer than srun waits for a rank that is frozen once the others have ended: jobs.LAST_RANKS_S
Event = Callable[["Run", int, random.Random], bool]


def killed(run: "Run", pid: int, draw: random.Random) -> bool:
    return send(run, draw.choice(run.ranks(pid) or [pid]), signal.SIGKILL) and gone(run, pid)


def terminated(run: "Run", pid: int, draw: random.Random) -> bool:
    if not run.terminate(pid):
        return False
    # Half of the time the next event may meet it while it saves and leaves.
    return gone(run, pid) if draw.random() < 0.5 else True


def killed_while_it_writes(run: "Run", pid: int, draw: random.Random) -> bool:
    if not stop_in_a_write(run, pid):
        return False
    run.writes_hit += 1
    return send(run, pid, signal.SIGKILL) and gone(run, pid)


def snakemake_killed(run: "Run", pid: int, draw: random.Random) -> bool:
    run.snakemake.kill()
    run.snakemake.wait()
    return True


def frozen(run: "Run", pid: int, draw: random.Random) -> bool:
    """A rank stands still for seconds, and goes on."""
    unlucky = draw.choice(run.ranks(pid) or [pid])
    if not send(run, unlucky, signal.SIGSTOP):
        return False
    time.sleep(draw.uniform(1, 5))
    send(run, unlucky, signal.SIGCONT)
    return True


def newest_damaged(run: "Run", pid: int, draw: random.Random) -> bool:
    """The newest rolling checkpoint is damaged on the disk, when an older one is left; then the trainer is killed."""
    if len(rolling_files(run.pretrain / "partial")) < 2 or not send(run, pid, signal.SIGKILL) or not gone(run, pid):
        return False
    found = rolling_files(run.pretrain / "partial")
    newest = newest_by_card([*found, *run.pretrain.glob("epoch_*.pt")])
    if len(found) > 1 and newest in found:
        with open(newest, "r+b") as file:
            file.seek(newest.stat().st_size // 2)
            file.write(draw.randbytes(64))
        run.damaged.add(newest.stem)
    return True  # else it was a kill


def clock_jumps(run: "Run", pid: int, draw: random.Random) -> bool:
    """The host's time of day is another one for some seconds, then it is put right."""
    run.faults.jump(draw.choice([-7200, -600, -30, 30, 600, 7200]))
    time.sleep(draw.uniform(1, 8))
    run.faults.jump(0)
    return True


def disk_full(run: "Run", pid: int, draw: random.Random) -> bool:
    run.disk.fill()
    time.sleep(draw.uniform(1, 6))
    run.disk.clear()
    return True


def read_only(run: "Run", pid: int, draw: random.Random) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not run.disk.remount("ro"):  # some file is open for writing
        if time.monotonic() > deadline:
            raise AssertionError(f"{run.disk.folder} could not be made read-only")
    time.sleep(draw.uniform(1, 6))
    run.disk.remount("rw")
    return True


TERMINATED, SNAKEMAKE, WRITE = "SIGTERM", "SIGKILL of Snakemake", "SIGKILL while it writes"
EVENTS: dict[str, Event] = {
    "SIGKILL": killed,
    TERMINATED: terminated,
    WRITE: killed_while_it_writes,
    SNAKEMAKE: snakemake_killed,
    "frozen for seconds": frozen,
    "newest checkpoint damaged": newest_damaged,
}
WITH_CLOCK: dict[str, Event] = {"clock jumps": clock_jumps}
WITH_DISK: dict[str, Event] = {"disk full": disk_full, "results read-only": read_only}


def send(run: "Run", pid: int, number: int) -> bool:
    """Send a signal; False if there is no such process any more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def gone(run: "Run", pid: int) -> bool:
    """Wait until a process no longer holds the run."""
    deadline = time.monotonic() + PATIENCE_S
    while (holder := living_holder(run.pretrain)) is not None and holder.pid == pid:
        if time.monotonic() > deadline:
            raise AssertionError(f"process {pid} still holds {run.pretrain} after {PATIENCE_S} s")
        time.sleep(0.01)
    return True


def stop_in_a_write(run: "Run", pid: int) -> bool:
    """Stop the trainer while it writes a checkpoint. Returns False when it had ended before it wrote one."""
    deadline, folder = time.monotonic() + PATIENCE_S, run.pretrain / "partial"
    leftover = unfinished(folder)  # of an earlier kill
    while time.monotonic() < deadline:
        now = unfinished(folder)
        if now - leftover and _stopped_while(lambda new=now - leftover: new & unfinished(folder), pid):
            return True
        leftover &= now
        holder = living_holder(run.pretrain)
        if holder is None or holder.pid != pid:
            return False
    raise AssertionError(f"no checkpoint was written in {PATIENCE_S} s")


def _stopped_while(holds: Callable[[], Any], pid: int) -> bool:
    """Stop a process where it is; let it go on, and return False, if what should hold no longer does."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while not _stands_still(pid):  # the signal reaches a thread that is in a system call when that ends
            time.sleep(0.001)
        if holds():
            return True
        os.kill(pid, signal.SIGCONT)
    return False


def _stands_still(pid: int) -> bool:
    """Whether no thread of a process runs any more (Linux: its state follows its name, which is in brackets)."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state in "TtZX" for state in states)


def unfinished(folder: Path) -> set[str]:
    """The names of the files that are being written, or were when their writer was killed."""
    try:
        return {name for name in os.listdir(folder) if name.endswith(".tmp")}
    except FileNotFoundError:
        return set()
