"""Where a process stands among the ranks of its run: told by srun, by torchrun or by `run_local_ranks`, or alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from selfsup.errors import UserError

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

    @property
    def is_main(self) -> bool:
        return self.rank == 0


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
    if _in_slurm_step(environment):
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


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    return "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment


def _all_of(names: tuple[str, ...], environment: Mapping[str, str], launcher: str) -> Mapping[str, str]:
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(
            f"half an environment of {launcher}: {', '.join(missing)} not set; start with {launcher}, or unset "
            "the others for a single process"
        )
    return environment
