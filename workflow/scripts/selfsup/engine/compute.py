"""The means by which a job computes: ranks, device, precision, threads, loader workers."""

import argparse
import importlib.util
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from selfsup import provenance
from selfsup.engine.device import choose_device, choose_precision
from selfsup.engine.distributed import Ranks
from selfsup.engine.host_memory import keep_freed_memory
from selfsup.engine.shared_cores import tell_shared_cores
from selfsup.job.place import Place
from selfsup.jobs import SWITCHES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compute:
    """The means by which a job computes. threads: of each rank; workers: processes that load batches for a rank.

    The switches are those of `selfsup.jobs.SWITCHES`.
    """

    ranks: Ranks
    device: torch.device
    precision: str
    threads: int
    workers: int
    channels_last: bool = True
    combined_kernels: bool = False
    compile: bool = False
    compiled_update: bool = False
    deterministic: bool = False
    one_graph: bool = False
    recompute: bool = False
    static_views: bool = False
    tf32: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of pictures and of convolutions' weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def inductor_options(self) -> dict[str, bool]:
        """The settings of torch's compiler that differ from its own."""
        return {"combo_kernels": True} if self.combined_kernels else {}

    def numerics(self) -> dict[str, str | int]:
        """Return the conditions for results that agree to the bit. `recompute` is not among them: it changes no bit."""
        switches = {name: getattr(self, name) for name in SWITCHES if name != "recompute"}
        return provenance.numerics(self.device, self.precision, self.threads, self.ranks.size) | switches

    def ledger_columns(self) -> dict[str, str | int]:
        """Return the ledger's columns about it."""
        numerics = self.numerics()
        columns = {key: numerics[key] for key in ("ranks", "threads", "precision", "torch", "device")}
        return {**columns, "devices": self.ranks.size, "code_revision": provenance.code_revision()}


def start_compute(arguments: argparse.Namespace, place: Place) -> Compute:
    """Set up the device and join the other ranks. `one_graph: auto` is off until a training has decided."""
    torch.set_num_threads(arguments.cpus)
    # fp32 means fp32: TensorFloat-32, cuDNN's default, rounds to 10 bits, and bf16 is there for speed. Matrix products
    # never use TensorFloat-32, because they crop pictures and compute the figures of classifiers and neighbours.
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = arguments.tf32, False
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would only help to find bugs, and slows down
    torch.backends.cudnn.benchmark = not arguments.deterministic  # worth its trials, because shapes do not change
    device = choose_device(arguments.device, place.local_rank, place.shared_node)
    if device.type == "cpu":
        keep_freed_memory()  # torch itself keeps a GPU's
    workers = max(arguments.cpus - 1, 1) if device.type == "cuda" else 0
    precision = choose_precision(arguments.precision, device)
    if device.type == "cpu" and place.local_rank == 0 and not place.several_nodes:
        tell_shared_cores(precision, arguments.cpus, place.size)
    switches = {name: getattr(arguments, name) for name in SWITCHES}
    switches["one_graph"] = arguments.one_graph is True
    return Compute(Ranks(place, device), device, precision, arguments.cpus, workers, **switches)


def one_graph_applies(
    device: torch.device, ranks: int, switches: Mapping[str, Any], begun: Mapping[str, Any] | None
) -> bool:
    """Say what `one_graph: auto` is: true where it was measured to be faster, on a single GPU, and can be compiled.

    A run that goes on is computed as its newest checkpoint was, because the graph changes bits. switches: the others of
    the job; begun: that checkpoint's numerics, None for a new run.
    """
    if device.type != "cuda" or ranks > 1 or switches["recompute"] or switches["compile"]:
        return False
    if begun is not None and not begun.get("one_graph", False):
        return False
    if lacking := _lacks_for_compiling():
        logger.info("note: one_graph is auto, and stays off: %s, which torch's compiler needs", lacking)
    return not lacking


def _lacks_for_compiling() -> str | None:
    """Return what is missing for compiling for a GPU; None if all is there."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    compilers = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    return None if any(name and shutil.which(name) for name in compilers) else "no C compiler is found (CC, cc, gcc)"
