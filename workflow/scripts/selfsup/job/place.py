"""The place of a process among the ranks of its run, as srun, torchrun or `run_local_ranks` state it, or alone."""

import os
import re
import socket
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
    """The rank of a process among `size`, its rank on its own node, and the address at which rank 0 listens.

    `shared_node`: the ranks of a node see the same devices; srun may show each task only a device of its own.
    `port_from`: what has chosen the port, in words. `several_nodes`: the ranks run on more than one machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    shared_node: bool = True
    port_from: str = "MASTER_PORT"
    several_nodes: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def url(self) -> str:
        """The address at which rank 0 listens, as torch wants it: an IPv6 address in brackets."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"tcp://{host}:{self.port}"


def discover_place(environment: Mapping[str, str]) -> Place:
    """Read a process's place from the variables of torchrun or srun; without any of them it is a single process.

    Raises UserError when only some of them are set: a guess could start a run with the wrong number of ranks.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        values = _all_of(TORCHRUN, environment, "torchrun")
        return Place(
            int(values["RANK"]),
            int(values["WORLD_SIZE"]),
            int(values["LOCAL_RANK"]),
            values["MASTER_ADDR"],
            int(values["MASTER_PORT"]),
            several_nodes=int(values["WORLD_SIZE"]) > int(values.get("LOCAL_WORLD_SIZE", values["WORLD_SIZE"])),
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
            several_nodes=int(environment.get("SLURM_STEP_NUM_NODES", 1)) > 1,
        )
    return Place()


def node_name() -> str:
    """Return this machine's name: Slurm's name for the node, if Slurm has started the process."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


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
    """Refuse the shell of `srun -n4 --pty bash`: its other three tasks have no terminal to start their ranks from.

    Steps started from such a shell inherit its variable, but not its terminal.
    """
    count = int(environment["SLURM_STEP_NUM_TASKS"])
    if count > 1 and "SLURM_PTY_PORT" in environment and _has_terminal():
        raise UserError(
            f"this terminal is the first of {count} tasks of `srun --pty`; the others have no terminal, and this one "
            "would wait for them: open it with srun --ntasks=1 --pty bash, or start the processes by srun without --pty"
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
            f"the environment of {launcher} is incomplete: {', '.join(missing)} not set; start with {launcher}, or "
            "unset the other variables for a single process"
        )
    return environment
