"""What the benchmarks share: measuring in turn, peak memory, facts about the machine, text with JSON beside it.

Speeds are compared within one process, in turn, because a machine's speed changes from minute to minute: ratios hold,
seconds do not. Imported before torch, so that threads behave as in a run (see `selfsup`).
"""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))  # byol_in_one_page
sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

import selfsup  # noqa: F401  says how long idle threads spin, which torch reads when it loads

# isort: split
import torch

from selfsup import provenance
from selfsup.atomic_files import write_atomically
from selfsup.engine.device import choose_device

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "bf16")  # what decides how fast a CPU multiplies
Way = Callable[[], float | None]


@dataclass
class Taken:
    """The seconds that a way took in each round: by the clock, and of processors, ended child processes included."""

    walls: list[float] = field(default_factory=list)
    processors: list[float] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def processor(self) -> float:
        return statistics.median(self.processors)


def in_turn(ways: Mapping[str, Way], rounds: int, *, warm_up: int = 1) -> dict[str, Taken]:
    """Run all ways in turn, `rounds` times after `warm_up` rounds that fill caches and do not count.

    A way that returns a number says itself how many seconds count; of others the whole call does, until the device is
    done.
    """
    taken = {name: Taken() for name in ways}
    for number in range(-warm_up, rounds):
        for name, run in ways.items():
            synchronize()
            began = time.perf_counter(), processor_seconds()
            own = run()
            synchronize()
            wall, processor = time.perf_counter() - began[0], processor_seconds() - began[1]
            if number >= 0:
                taken[name].walls.append(wall if own is None else own)
                taken[name].processors.append(processor)
    return taken


def processor_seconds() -> float:
    """Return what this process and its ended children have taken of processors so far."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def ratio(slower: Taken, faster: Taken) -> float:
    """Return how many times longer the first took: the median over rounds, each compared with its neighbour in time."""
    return statistics.median(a / b for a, b in zip(slower.walls, faster.walls, strict=True))


def processor_ratio(slower: Taken, faster: Taken) -> float:
    """Return the same of processor time: what is left to compare where other work takes the cores."""
    return statistics.median(a / b for a, b in zip(slower.processors, faster.processors, strict=True))


def spread(slower: Taken, faster: Taken) -> tuple[float, float]:
    """Return the lowest and the highest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(slower.walls, faster.walls, strict=True)]
    return min(ratios), max(ratios)


def synchronize() -> None:
    """Wait for the GPU, where one is used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class PeakMemory:
    """The most memory held at once since `reset`, in bytes, beyond what was held then.

    On a GPU what torch's allocator held, from 0; on a CPU this process's resident pages (Linux; elsewhere since its
    start). Contenders that are to be compared need a process each: freed pages are used again.
    """

    def __init__(self, device: torch.device):
        self._device, self._base = device, 0

    def reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the high-water mark VmHWM
        self._base = _resident("VmRSS") or 0

    def bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        own = _resident("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
        return (own if own is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) - self._base


def _resident(key: str) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    return None


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, instruction set, device, software, code."""
    facts = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": f"{torch.backends.cpu.get_cpu_capability()} ({' '.join(_flags()) or 'flags unknown'})",
        "load": round(os.getloadavg()[0], 2),  # of the last minute: what else went on
        "device": str(device.type),
        **provenance.versions(),
        "code": provenance.code_revision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _flags() -> list[str]:
    with contextlib.suppress(OSError):
        found = re.search(r"(?:flags|Features)\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return [name for name in INSTRUCTIONS if found and name in found[1].split()]
    return []


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the arguments that every benchmark has: --quick, --device, --threads, --json."""
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: to see that it runs, not to report")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="of torch; default: the cores that this process may use")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    arguments.device = choose_device(arguments.device, 0)
    torch.set_num_threads(arguments.threads or machine(torch.device("cpu"))["cores"])
    return arguments


class Report:
    """A benchmark's text, printed as it comes, and its figures, written as JSON with each that is said."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        self._name, self._path = name, arguments.json
        self._arguments = {key: str(value) for key, value in vars(arguments).items() if key != "json"}
        self._machine = {**machine(arguments.device), "threads": torch.get_num_threads()}
        self._text: list[str] = []
        self._figures: dict[str, Any] = {}
        self.say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in self._machine.items()))

    def say(self, line: str | None = None, **figures: Any) -> None:
        """Print a line, if any; `figures` are what it says, for the JSON file, which then has all that was said."""
        if line is not None:
            print(line, flush=True)
            self._text.append(line)
        self._figures |= figures
        if figures:
            self.write()

    def write(self) -> None:
        if not self._path:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "benchmark": self._name,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": self._machine,
            "arguments": self._arguments,
            "figures": self._figures,
            "text": self._text,
        }
        write_atomically(self._path, json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def report(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[Report, argparse.Namespace]]:
    """Read the arguments, give the report to be filled, and write it; what was measured before an error is kept.

    So it is when SIGTERM says that the time is over.
    """
    arguments = arguments_of(parser)
    made = Report(name, arguments)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield made, arguments
    finally:
        signal.signal(signal.SIGTERM, before)
        made.write()


def _leave(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
