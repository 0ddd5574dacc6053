"""What a job asks of the machine: pure functions of a `compute` block and the cluster of config.yaml.

Imports no torch. `block` is such a block, `cluster` the key of that name, both checked.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from selfsup.arguments import SWITCHES

SIGNAL_S = 120  # ahead of the time limit: time for the largest checkpoint
# Snakemake's names of sbatch's flags for those of config.yaml; null means that the flag is left out.
SITE = {"account": "slurm_account", "partition": "slurm_partition", "constraint": "constraint", "qos": "qos"}


def tasks(block: Mapping[str, Any]) -> int:
    """One task per device."""
    return block["nodes"] * block["devices_per_node"]


def threads(block: Mapping[str, Any]) -> int:
    """Cores of one node's devices; what a local run takes."""
    return block["cpus_per_device"] * block["devices_per_node"]


def minutes(block: Mapping[str, Any]) -> int:
    return round(60 * block["hours"])


def site(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Return the resources that every job has: where it goes, and on whose account."""
    return {resource: cluster[key] for key, resource in SITE.items() if cluster[key] is not None}


def resources(block: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, str | int]:
    """Return the resources of a job with a process per device, by the names of Snakemake's Slurm plugin."""
    return {
        **site(cluster),
        "mpi": "srun" if tasks(block) > 1 else "",  # "this rule calls srun itself"; empty where there is a single task
        "nodes": block["nodes"],
        "tasks": tasks(block),
        "cpus_per_task": block["cpus_per_device"],
        "mem_mb": 0,  # no --mem: the share of a node that comes with the cores
        "runtime": minutes(block),
        "slurm_extra": sbatch_flags(block, cluster),
    }


def sbatch_flags(block: Mapping[str, Any], cluster: Mapping[str, Any]) -> str:
    """What the plugin has no resource for: geometry of GPUs, the signal before the time limit, the site's flags."""
    per_node = block["devices_per_node"]
    gpus = "" if block["device"] == "cpu" else f" --gpus-per-node={per_node}"
    # Without "B:" the signal reaches every task and not the batch shell.
    return f"--ntasks-per-node={per_node}{gpus} --signal=USR1@{SIGNAL_S} {cluster['extra']}".strip()


def launcher(block: Mapping[str, Any], python: str, *, in_slurm: bool) -> str:
    """What starts one process per device: srun in a Slurm job; on this machine the script does it itself."""
    if not in_slurm:
        return python
    # The plugin's job step strips Slurm's variables, so srun needs the whole geometry again.
    gpus = "" if block["device"] == "cpu" else "--gpus-per-task=1 "
    return (
        f"srun --nodes={block['nodes']} --ntasks={tasks(block)} --ntasks-per-node={block['devices_per_node']} "
        f"--cpus-per-task={block['cpus_per_device']} {gpus}--kill-on-bad-exit=1 {python}"
    )


def arguments(block: Mapping[str, Any], *, in_slurm: bool, local_copy: str | None = None) -> str:
    """What a script is told of the machine, as words of its command line."""
    words = f"--device {block['device']} --precision {block['precision']} --cpus {block['cpus_per_device']}"
    words += f" --checkpoint-minutes {block['checkpoint_minutes']}"
    words += f" --hang-minutes {block['hang_minutes']}" if "hang_minutes" in block else ""
    for name in SWITCHES:
        if name in block:
            words += f" --{'' if block[name] else 'no-'}{name.replace('_', '-')}"
    words += f" --local-copy {shlex.quote(local_copy)}" if local_copy else ""
    # A local run has no time limit; Slurm's is told, for sites that send no signal ahead of it.
    return words + (f" --time-limit {minutes(block)}" if in_slurm else f" --local-ranks {block['devices_per_node']}")
