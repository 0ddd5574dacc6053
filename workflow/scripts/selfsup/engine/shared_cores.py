"""Whether a job's cores are its own: where not, bf16 on a processor may stand nearly still, and a line says so.

oneDNN's weight gradients in bf16 make their threads meet at barriers, at which they wait without sleeping. A thread
whose core works for somebody else lets all others spin until the system gives it a turn: one small convolution took 66
to 331 ms with two threads on shared cores, and 1.7 with one (docs/performance.md). Nothing is changed by itself: the
number of threads and the precision decide a run's bits, and both are the configuration's.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SAMPLE_S = 0.25  # over which other work is looked at
IDLE = (3, 4)  # of a line of /proc/stat: idle, and waiting for a disk (proc(5))
A_CORES_NOISE = 0.5  # of a core: what a system does besides
CGROUPS = Path("/sys/fs/cgroup")
STAT = Path("/proc/stat")


def tell_shared_cores(precision: str, threads: int, ranks_here: int = 1) -> str | None:
    """Log and return a line where threads that compute in bf16 on a processor share their cores; else return None.

    ranks_here: of this job on this node, each with so many threads; other work is looked at for a single one alone.
    """
    if precision != "bf16" or threads * ranks_here == 1 or threads == 1:
        return None
    reason = _shortage(threads * ranks_here, look=ranks_here == 1)
    if reason is None:
        return None
    line = (
        f"note: bf16 with {threads} threads on shared cores ({reason}): a step may take 100 times as long as with one "
        "thread. Give the job cores of its own, or set cpus_per_device: 1 or precision: fp32 in its compute block, "
        "either of which changes the bits of a run from there on"
    )
    logger.info("%s", line)
    return line


def _shortage(wanted: int, look: bool) -> str | None:
    allowed, quota = _allowed(), _quota()
    if len(allowed) < wanted:
        return f"{len(allowed)} may be used, wanted {wanted}"
    if quota is not None and quota < wanted:
        return f"the control group's quota is {quota:g}, wanted {wanted}"
    busy = _busy(allowed) if look else 0.0
    if len(allowed) - busy < wanted - A_CORES_NOISE:
        return f"{busy:.1f} of {len(allowed)} are busy with other work, wanted {wanted}"
    return None


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """Return how many cores' time the control group and those above it allow, by cgroup v2 or v1; None: no limit."""
    found = [limit for folder in _groups() if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def _groups() -> Iterator[Path]:
    """Yield this process's control groups and those above, as far as they are mounted here."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS
        group = root / name.lstrip("/")
        yield from (one for one in (group, *group.parents) if one == root or root in one.parents)


def _limit(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _busy(cores: Iterable[int]) -> float:
    """Return how many of the cores worked for others while this process slept; 0 where that cannot be known."""
    before = _ticks(cores)
    time.sleep(SAMPLE_S)
    after = _ticks(cores)
    shares = []
    for core, (idle, whole) in after.items():
        if core in before and whole > before[core][1]:
            shares.append(1 - (idle - before[core][0]) / (whole - before[core][1]))
    return sum(shares)


def _ticks(cores: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return each core's ticks so far: idle ones, and all."""
    names, found = {f"cpu{core}": core for core in cores}, {}
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, *numbers = line.split()
        if name in names:
            ticks = list(map(int, numbers[:8]))  # what follows, of guests, is counted in the others
            found[names[name]] = (sum(ticks[place] for place in IDLE), sum(ticks))
    return found
