"""The checks of preflight.py. All ranks take part in each; rank 0 collects the findings and gives the verdict."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfsup import provenance
from selfsup.data.store import PackedStore
from selfsup.engine.compute import Compute
from selfsup.errors import UserError
from selfsup.job.place import Place, node_name
from selfsup.models import BatchNorm, configure_batch_norm

MEGABYTES = {"cuda": 256, "cpu": 16}  # in the timed all-reduce: on GPUs more than the gradients of a ResNet-50
ROUNDS = 5
SKEW_S = 5.0  # allowed between the nodes' clocks: heartbeats come every ten seconds
VISIBLE_S = 60.0  # a network file system may take this long to show a new file to another node


@dataclass(frozen=True)
class Verdict:
    """One line of the table. advice: what to do if `good` is false."""

    check: str
    good: bool
    found: str
    advice: str = ""


class Preflight:
    """The checks of one job. world_size: the number of ranks that config.yaml asks for. data: packed datasets."""

    def __init__(
        self,
        compute: Compute,
        place: Place,
        world_size: int,
        data: list[Path],
        results: Path,
        time_limit_s: float | None,
    ):
        self._compute, self._place, self._wanted = compute, place, world_size
        self._data, self._results, self._time_limit_s = data, results, time_limit_s
        self._host = node_name()
        self._hosts = compute.ranks.gather(self._host)

    def run(self) -> list[Verdict]:
        """Do all checks, ordered so that the first failure explains later ones."""
        checks = [self._ranks(), self._devices(), self._software(), self._all_reduce(), self._batch_norm()]
        checks += [self._store(folder) for folder in self._data]
        return [*checks, self._shared_folder(), self._clocks(), self._limit()]

    def _ranks(self) -> Verdict:
        nodes = Counter(self._hosts)
        found = f"{self._compute.ranks.size} ranks on {len(nodes)} nodes: " + ", ".join(
            f"{host} {count}" for host, count in sorted(nodes.items())
        )
        good = self._compute.ranks.size == self._wanted and len(set(nodes.values())) == 1
        return Verdict(
            "ranks", good, found, f"wanted {self._wanted}, equally many on each node: see the srun line in the log"
        )

    def _devices(self) -> Verdict:
        device = self._compute.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
        everyones = self._compute.ranks.gather(f"{name}, {self._compute.precision}")
        kinds = Counter(everyones)
        found = "; ".join(f"{count} x {kind}" for kind, count in kinds.items())
        advice = "all devices wait for the slowest kind: set cluster.constraint"
        return Verdict("devices", len(kinds) == 1, found, advice)

    def _software(self) -> Verdict:
        mine = {**provenance.versions(), "code": provenance.code_revision()[:12], "driver": _driver()}
        return self._same_everywhere("software", mine, "the nodes have different software: fix modules or PATH")

    def _all_reduce(self) -> Verdict:
        ranks, device = self._compute.ranks, self._compute.device
        elements = MEGABYTES[device.type] * 2**20 // 4
        values = torch.full((elements,), float(ranks.rank + 1), device=device)
        wanted = ranks.size * (ranks.size + 1) / 2
        right = bool((ranks.all_reduce(values.clone()) == wanted).all())
        self._wait_for_device()
        began = time.perf_counter()
        for _ in range(ROUNDS):
            ranks.all_reduce(values)
        self._wait_for_device()
        seconds = (time.perf_counter() - began) / ROUNDS
        gigabytes = elements * 4 / 1e9 * 2 * (ranks.size - 1) / ranks.size
        speed = f"{gigabytes / seconds:.2f} GB/s" if ranks.size > 1 else "a single rank"
        found = f"{MEGABYTES[device.type]} MB in {1000 * seconds:.1f} ms, {speed} of each rank's network"
        return Verdict(
            "all-reduce", not ranks.any(not right), found, "the sum over ranks is wrong: report this, do not train"
        )

    def _batch_norm(self) -> Verdict:
        norm = BatchNorm(8).to(self._compute.device)
        configure_batch_norm(norm, groups=2, ranks=self._compute.ranks)
        generator = torch.Generator().manual_seed(self._place.rank)
        norm(torch.randn(8, 8, 4, 4, generator=generator).to(self._compute.device))
        statistics = self._compute.ranks.gather([norm.running_mean.tolist(), norm.running_var.tolist()])
        good = all(one == statistics[0] for one in statistics)
        return Verdict(
            "batch norm",
            good,
            "statistics " + ("equal on all ranks" if good else "differ"),
            "report this, do not train",
        )

    def _store(self, folder: Path) -> Verdict:
        try:
            store = PackedStore(folder)
            place = self._place.rank * (len(store.train) - 1) // max(self._compute.ranks.size, 1)
            began = time.perf_counter()
            store.train.image(place)
            mine, problem = {"images": len(store.train), "fingerprint": store.fingerprint[:16]}, ""
            milliseconds = 1000 * (time.perf_counter() - began)
        except (UserError, OSError) as error:
            mine, problem, milliseconds = {}, f"{self._host}: {error}", 0.0
        problems = [text for text in self._compute.ranks.gather(problem) if text]
        slowest = max(self._compute.ranks.gather(milliseconds))
        if problems:
            return Verdict(
                f"store {folder}", False, problems[0], "put data_dir where all nodes see it; pack the dataset"
            )
        verdict = self._same_everywhere(
            f"store {folder}", mine, "the nodes see different files: use one shared data_dir"
        )
        return Verdict(verdict.check, verdict.good, f"{verdict.found}; first image in {slowest:.0f} ms", verdict.advice)

    def _shared_folder(self) -> Verdict:
        ranks, problem = self._compute.ranks, ""
        mine = self._results / f".preflight_{self._place.rank}"
        try:
            self._results.mkdir(parents=True, exist_ok=True)
            mine.write_text(self._host)
        except OSError as error:
            problem = f"{self._host}: {error.strerror}"
        ranks.barrier()
        unseen = []
        if ranks.is_main:
            end = time.monotonic() + VISIBLE_S
            paths = [self._results / f".preflight_{rank}" for rank in range(ranks.size)]
            while not problem and (unseen := [path for path in paths if not path.exists()]) and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    os.listdir(self._results)  # refreshes a network file system's cache of the folder
                time.sleep(0.2)
        ranks.barrier()
        with contextlib.suppress(OSError):
            mine.unlink()
        problems = [text for text in ranks.gather(problem) if text]
        if unseen and not problems:
            hosts = sorted({self._hosts[int(path.name.rsplit("_", 1)[1])] for path in unseen})
            problems = [f"files written on {', '.join(hosts)} do not appear on {self._host}"]
        found = problems[0] if problems else f"{self._results.absolute()}: written by every rank, seen by the first"
        return Verdict("results folder", not problems, found, "run in a folder with free space that all nodes share")

    def _clocks(self) -> Verdict:
        self._compute.ranks.barrier()
        times = self._compute.ranks.gather(time.time())
        skew = max(times) - min(times)
        return Verdict(
            "clocks", skew < SKEW_S, f"{skew:.2f} s apart", "ask the administrators to synchronise the clocks"
        )

    def _limit(self) -> Verdict:
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        limits = [f"--time-limit {self._time_limit_s / 60:.0f} min"] if self._time_limit_s else []
        limits += [f"Slurm: {int(end) - time.time():.0f} s left"] if end.isdigit() else []
        needed = "SLURM_JOB_ID" in os.environ
        found = ", ".join(limits) or ("not known" if needed else "none, and none is needed here")
        return Verdict("time limit", bool(limits) or not needed, found, "a job cannot save in time: pass --time-limit")

    def _same_everywhere(self, check: str, mine: Mapping[str, Any], advice: str) -> Verdict:
        everyones = self._compute.ranks.gather(dict(mine))
        first = everyones[0]
        others = [
            f"{host} has {key} {one.get(key)}, {self._hosts[0]} has {first[key]}"
            for host, one in zip(self._hosts, everyones, strict=True)
            for key in first
            if one.get(key) != first[key]
        ]
        found = others[0] if others else ", ".join(f"{key} {value}" for key, value in first.items())
        return Verdict(check, not others, found, advice)

    def _wait_for_device(self) -> None:
        if self._compute.device.type == "cuda":
            torch.cuda.synchronize()


def to_text(verdicts: list[Verdict]) -> str:
    """Return the table: a line for each verdict, and below a failed one what to do."""
    width = max(len(one.check) for one in verdicts)
    lines = []
    for one in verdicts:
        lines.append(f"{'ok    ' if one.good else 'FAILED'}  {one.check.ljust(width)}  {one.found}")
        if not one.good:
            lines.append(f"        {' ' * width}  -> {one.advice}")
    failed = sum(not one.good for one in verdicts)
    lines.append(f"preflight: {failed} of {len(verdicts)} checks failed" if failed else "preflight: all is well")
    return "\n".join(lines) + "\n"


def _driver() -> str:
    """Return the NVIDIA driver's version, or "none"."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().split("Module")[1].split()[0]
    except (OSError, IndexError):
        return "none"
