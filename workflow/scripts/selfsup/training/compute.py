"""With what a job computes: ranks, device, precision, threads, loader workers."""

import argparse
from dataclasses import dataclass

import torch

from selfsup import provenance
from selfsup.job.place import Place
from selfsup.training.device import choose_device, choose_precision
from selfsup.training.distributed import Ranks


@dataclass(frozen=True)
class Compute:
    """What a job computes with. threads: of each rank; workers: further processes that read for a rank."""

    ranks: Ranks
    device: torch.device
    precision: str
    threads: int
    workers: int

    def numerics(self) -> dict[str, str | int]:
        """Return the conditions under which results agree to the bit."""
        return provenance.numerics(self.device, self.precision, self.threads, self.ranks.size)

    def ledger_columns(self) -> dict[str, str | int]:
        """Return what the ledger tells of it."""
        numerics = self.numerics()
        columns = {key: numerics[key] for key in ("ranks", "threads", "precision", "torch", "device")}
        return {**columns, "devices": self.ranks.size, "code_revision": provenance.code_revision()}


def start_compute(arguments: argparse.Namespace, place: Place) -> Compute:
    """Take the device and join the other ranks."""
    torch.set_num_threads(arguments.cpus)
    # fp32 means fp32: TensorFloat-32, cuDNN's default, rounds to 10 bits. For speed there is bf16.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = choose_device(arguments.device, place.local_rank, place.shared_node)
    workers = max(arguments.cpus - 1, 1) if device.type == "cuda" else 0
    precision = choose_precision(arguments.precision, device)
    return Compute(Ranks(place, device), device, precision, arguments.cpus, workers)
