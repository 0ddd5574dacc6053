"""Where a process stands among the ranks of its run: told by srun, by torchrun or by `run_local_ranks`, or alone."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from selfsup.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The step's count of tasks: SLURM_NTASKS is the allocation's in a shell that salloc, sbatch or `srun --pty` has opened.
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")

STEP_APART = 101  # between the ports of a job's steps, which may run side by side
PORT_FROM_JOB = "Slurm's numbers of the job and its step give it; a former job's process that was left there?"


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank of `size`, its place on its node, and where rank 0 listens.

    `shared_node`: its node's other ranks see the same devices; srun may show each task a device of its own.
    `port_from`: in words, what has chosen the port.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    shared_node: bool = True
    port_from: str = "MASTER_PORT"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def url(self) -> str:
        """Where rank 0 listens, for torch; an IPv6 address stands in brackets there."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"tcp://{host}:{self.port}"


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
        _refuse_first_of_several_shells(environment)
        port = 20_000 + (int(values["SLURM_JOB_ID"]) + STEP_APART * int(environment.get("SLURM_STEP_ID", 0))) % 10_000
        return Place(
            int(values["SLURM_PROCID"]),
            int(values["SLURM_STEP_NUM_TASKS"]),
            int(values["SLURM_LOCALID"]),
            first_host(values["SLURM_STEP_NODELIST"]),
            port,
            shared_node=False,
            port_from=PORT_FROM_JOB,
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


def _refuse_first_of_several_shells(environment: Mapping[str, str]) -> None:
    """Refuse to wait for the other tasks of `srun -n4 --pty bash`: only the first is a shell that a person types into.

    Steps that are started from there have no terminal, though its variable.
    """
    count = int(environment["SLURM_STEP_NUM_TASKS"])
    if count > 1 and "SLURM_PTY_PORT" in environment and _has_terminal():
        raise UserError(
            f"this terminal is the first of {count} tasks of `srun --pty`; the others have none, and would be waited "
            "for: open it by srun --ntasks=1 --pty bash, or start the processes by srun without --pty"
        )


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _all_of(names: tuple[str, ...], environment: Mapping[str, str], launcher: str) -> Mapping[str, str]:
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(
            f"half an environment of {launcher}: {', '.join(missing)} not set; start with {launcher}, or unset "
            "the others for a single process"
        )
    return environment
