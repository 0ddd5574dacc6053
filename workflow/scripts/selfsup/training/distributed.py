"""Ranks: one process per device, started by srun, by torchrun, or alone in a plain shell."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from selfsup.errors import UserError

BUCKET_ELEMENTS = 8 * 2**20  # of a gradient all-reduce: 32 MB in float32, enough to fill a network link

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank of `size`, its place on its node, and where rank 0 listens.

    `shared_node`: its node's other ranks see the same devices; srun may show each task a device of its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    shared_node: bool = True


def discover_place(environment: Mapping[str, str]) -> Place:
    """Read the process's place from torchrun's or srun's variables; none of them means a single process.

    Raises UserError when only a part of them is set: guessing would start a run with the wrong number of ranks.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        values = _all_of(TORCHRUN, environment, "torchrun")
        return Place(
            int(values["RANK"]),
            int(values["WORLD_SIZE"]),
            int(values["LOCAL_RANK"]),
            values["MASTER_ADDR"],
            int(values["MASTER_PORT"]),
        )
    if "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        values = _all_of(SLURM, environment, "srun")
        port = 20_000 + int(values["SLURM_JOB_ID"]) % 10_000
        return Place(
            int(values["SLURM_PROCID"]),
            int(values["SLURM_NTASKS"]),
            int(values["SLURM_LOCALID"]),
            first_host(values["SLURM_STEP_NODELIST"]),
            port,
            shared_node=False,
        )
    return Place()


def first_host(node_list: str) -> str:
    """Return the first host of a Slurm node list: "gpu[003-005,9],login" gives "gpu003"."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", node_list)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST is {node_list!r}, wanted a list of hosts")
    prefix, numbers = match.groups()
    return prefix + (re.split(r"[,-]", numbers)[0] if numbers else "")


def _all_of(names: tuple[str, ...], environment: Mapping[str, str], launcher: str) -> Mapping[str, str]:
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(
            f"half an environment of {launcher}: {', '.join(missing)} not set; start with {launcher}, or unset "
            "the others for a single process"
        )
    return environment


class Ranks:
    """The processes of a run, as seen by one of them. Methods are collective: every rank calls them, in one order."""

    def __init__(self, place: Place | None = None, device: torch.device | None = None):
        place = place or Place()
        self.rank, self.size = place.rank, place.size
        self._control = None
        if self.size > 1:
            backend = "nccl" if device is not None and device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, init_method=f"tcp://{place.address}:{place.port}", rank=self.rank, world_size=self.size
            )
            # Decisions travel over a group of the host's own: on NCCL they would make the host wait for the device.
            self._control = dist.new_group(backend="gloo") if backend == "nccl" else dist.group.WORLD

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor`, made the sum over ranks in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean over ranks."""
        return self.all_reduce(tensor.clone()) / self.size

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all ranks' tensors stacked: [size, ...]."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; does not touch the device."""
        if self.size == 1:
            return flag
        answer = torch.tensor(int(flag))
        dist.all_reduce(answer, dist.ReduceOp.MAX, group=self._control)
        return bool(answer)

    def from_main(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.any(False)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make each gradient the mean over ranks.

        The buckets are a function of the parameter list alone, in every step: torch's DDP cuts them anew after its
        first backward pass, which changes the order of sums, and so the bits, after a resume.
        """
        if self.size == 1:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            for gradient, averaged in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(averaged.view_as(gradient))

    def close(self) -> None:
        """Leave the group, after all ranks have come here."""
        if self.size > 1:
            self.barrier()
            dist.destroy_process_group()


def _buckets(tensors: list[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    bucket, elements = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        elements += tensor.numel()
        if elements >= BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
    if bucket:
        yield bucket
