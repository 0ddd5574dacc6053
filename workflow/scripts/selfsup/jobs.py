"""What a job asks of the machine: pure functions of a `compute` block and the cluster of config.yaml.

Imports no torch. `block` is such a block, `cluster` the key of that name, both checked.
"""

import math
import shlex
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from selfsup.errors import UserError
from selfsup.settings.notes import NAME, Count, Hours, NotNegative, OrWord, Pattern, Positive
from selfsup.settings.typed import Settings, since

AUTO = "auto"  # of one_graph: the job decides, by `selfsup.engine.compute.one_graph_applies`
# Keys of a `compute` block that are on or off, with their defaults; docs/performance.md says what each brings.
SWITCHES = {
    "channels_last": (True, "keep the channels of each pixel together in memory, which fast convolutions prefer"),
    "combined_kernels": (
        False,
        "with one_graph or compile on a GPU: put kernels that do not wait for each other into one launch",
    ),
    "compile": (False, "compile each network: fewer and larger kernels, half a minute or more at each start"),
    "compiled_update": (
        False,
        "with one_graph, for LARS: compile the update too, with rates that come in the step's one copy",
    ),
    "deterministic": (False, "GPU: only algorithms that repeat to the bit, none chosen by timing them"),
    "one_graph": (False, "compile views, networks and loss together as one graph: more than `compile`"),
    "recompute": (False, "keep fewer activations and compute them again in the backward pass: same bits, less memory"),
    "static_views": (False, "make views by the same operators in every step: fewer kernels, same bits on a CPU"),
    "tf32": (False, "GPU: round factors of fp32 convolutions to 10 bits of mantissa"),
}

SINGLE_GB = 8  # of memory for a job that packs, exports or imports
SIGNAL_S = 120  # ahead of the time limit: time for the largest checkpoint
LAST_RANKS_S = 600  # that srun waits for the other ranks when the first has ended: all leave together
# Snakemake's names of sbatch's flags for those of config.yaml; null means that the flag is left out.
SITE = {"account": "slurm_account", "partition": "slurm_partition", "constraint": "constraint", "qos": "qos"}

# What the scripts take when they are not told, by the keys of a `compute` block: commands say what differs.
DEFAULTS = {"device": "auto", "precision": "auto", "cpus_per_device": 1, "checkpoint_minutes": 10, "hang_minutes": 10}

# sbatch's flags that Snakemake's plugin or the jobs of this workflow set: what to write instead of them in `extra`.
_COMPUTE = "experiments.<name>.compute.<stage>"
_NODES = f"nodes and devices_per_node of {_COMPUTE}"
_MEMORY = f"memory_gb of {_COMPUTE} or of cluster"
_GPUS = f"devices_per_node and gpu_type of {_COMPUTE}"
_CORES = f"cpus_per_device of {_COMPUTE}"
_OWN = "the workflow sets it itself"
INSTEAD = {
    ("--account", "-A"): "cluster.account",
    ("--partition", "-p"): "cluster.partition",
    ("--constraint", "-C"): "cluster.constraint",
    ("--qos", "-q"): "cluster.qos",
    ("--mem",): _MEMORY,
    ("--mem-per-cpu",): _MEMORY,
    ("--gres",): _GPUS,
    ("--gpus", "-G"): _GPUS,
    ("--gpus-per-node",): _GPUS,
    ("--time", "-t"): f"hours of {_COMPUTE}",
    ("--nodes", "-N"): _NODES,
    ("--ntasks", "-n"): _NODES,
    ("--ntasks-per-node",): _NODES,
    ("--ntasks-per-gpu",): _NODES,
    ("--cpus-per-task", "-c"): _CORES,
    ("--cpus-per-gpu",): _CORES,
    ("--job-name", "-J"): _OWN,
    ("--output", "-o"): _OWN,
    ("--error", "-e"): _OWN,
    ("--parsable",): _OWN,
    ("--export",): _OWN,
    ("--comment",): _OWN,
    ("--workdir", "--chdir", "-D"): _OWN,
    ("--clusters", "--cluster", "-M"): "no key has it: submit on a login node of that cluster",
}


RESERVATION = "reservation: letters, digits, '_', '.', ',', ':' and '-'"


class Cluster(Settings):
    """config.yaml's `cluster`: where jobs go. null leaves sbatch's flag out."""

    account: str | None
    """sbatch --account"""
    partition: str | None
    """sbatch --partition"""
    constraint: str | None
    """sbatch --constraint"""
    qos: str | None
    """sbatch --qos"""
    extra: str
    """further flags of sbatch"""
    reservation: Annotated[str, Pattern(r"^[A-Za-z0-9_.,:-]+$", RESERVATION)] | None = None
    """sbatch --reservation"""
    memory_gb: NotNegative = SINGLE_GB
    """of jobs that pack, export or import; 0 asks for none"""


class Compute(Settings):
    """A `compute` block of config.yaml: what a job computes on, and how."""

    nodes: Count = since(1)
    """how many nodes"""
    devices_per_node: Count = since(1)
    """GPUs, or processes on a CPU"""
    cpus_per_device: Count = since(2)
    """cores of each device"""
    hours: Annotated[float, Positive, Hours()] = since(20)
    """time limit of a job; the next job continues from there"""
    device: Literal["auto", "cuda", "cpu"] = since("auto")
    """auto: a GPU if there is one"""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = since("auto")
    """auto: the fastest that the device has and that keeps the result"""
    checkpoint_minutes: Positive = since(10)
    """time between two checkpoints"""
    memory_gb: NotNegative = 0
    """of each node, sbatch --mem; 0: the share that comes with the cores"""
    gpu_type: Annotated[str, Pattern(r"^[A-Za-z0-9_.-]+$", NAME)] = ""
    """as `sinfo -o "%G"` calls it; empty: any"""
    hang_minutes: Positive = DEFAULTS["hang_minutes"]
    """a job whose ranks make no progress for this long prints their stacks, ends and is retried"""
    channels_last: bool = SWITCHES["channels_last"][0]
    """keep the channels of each pixel together in memory, which fast convolutions prefer"""
    combined_kernels: bool = SWITCHES["combined_kernels"][0]
    """with one_graph or compile on a GPU: put kernels that do not wait for each other into one launch"""
    compile: bool = SWITCHES["compile"][0]
    """compile each network: fewer and larger kernels, half a minute or more at each start"""
    compiled_update: bool = SWITCHES["compiled_update"][0]
    """with one_graph, for LARS: compile the update too, with rates that come in the step's one copy"""
    deterministic: bool = SWITCHES["deterministic"][0]
    """GPU: only algorithms that repeat to the bit, none chosen by timing them"""
    one_graph: Annotated[bool, OrWord(AUTO)] = SWITCHES["one_graph"][0]
    """compile views, networks and loss together as one graph: more than `compile`; auto: on a single GPU"""
    recompute: bool = SWITCHES["recompute"][0]
    """keep fewer activations and compute them again in the backward pass: same bits, less memory"""
    static_views: bool = SWITCHES["static_views"][0]
    """make views by the same operators in every step: fewer kernels, same bits on a CPU"""
    tf32: bool = SWITCHES["tf32"][0]
    """GPU: round factors of fp32 convolutions to 10 bits of mantissa"""


def tasks(block: Mapping[str, Any]) -> int:
    """One task per device."""
    return block["nodes"] * block["devices_per_node"]


def threads(block: Mapping[str, Any]) -> int:
    """Cores of one node's devices; what a local run takes."""
    return block["cpus_per_device"] * block["devices_per_node"]


def minutes(block: Mapping[str, Any]) -> int:
    return round(60 * block["hours"])


def site(cluster: Mapping[str, Any]) -> dict[str, str]:
    """Return the resources that every job has: where it goes, on whose account, and the site's own flags."""
    named = {resource: cluster[key] for key, resource in SITE.items() if cluster[key] is not None}
    return {**named, "slurm_extra": _joined(*_site_flags(cluster))}


def single(cluster: Mapping[str, Any], minutes: int) -> dict[str, str | int]:
    """Return the resources of a job that packs, exports or imports: one process, and no device."""
    return {**site(cluster), "mem_mb": _megabytes(cluster.get("memory_gb", SINGLE_GB)), "runtime": minutes}


def resources(block: Mapping[str, Any], cluster: Mapping[str, Any]) -> dict[str, str | int]:
    """Return the resources of a job with a process per device, by the names of Snakemake's Slurm plugin."""
    return {
        **site(cluster),
        "mpi": "srun" if tasks(block) > 1 else "",  # "this rule calls srun itself"; empty where there is a single task
        "nodes": block["nodes"],
        "tasks": tasks(block),
        "cpus_per_task": block["cpus_per_device"],
        "mem_mb": _megabytes(block.get("memory_gb", 0)),  # 0: no --mem, the share of a node that comes with the cores
        "runtime": minutes(block),
        "slurm_extra": _sbatch_flags(block, cluster),
    }


def _sbatch_flags(block: Mapping[str, Any], cluster: Mapping[str, Any]) -> str:
    """What the plugin has no resource for: geometry of GPUs, the signal before the time limit, the site's flags."""
    per_node = block["devices_per_node"]
    # Without "B:" the signal reaches every task and not the batch shell.
    signal = f"--signal=USR1@{SIGNAL_S}"
    return _joined(
        f"--ntasks-per-node={per_node}", _gpus("--gpus-per-node", block, per_node), signal, *_site_flags(cluster)
    )


def _site_flags(cluster: Mapping[str, Any]) -> tuple[str, str]:
    reservation = cluster.get("reservation")
    return f"--reservation={reservation}" if reservation else "", cluster["extra"]


def _gpus(flag: str, block: Mapping[str, Any], number: int) -> str:
    """Ask for so many GPUs, of a type where the block names one."""
    kind = f"{block['gpu_type']}:" if block.get("gpu_type") else ""
    return "" if block["device"] == "cpu" else f"{flag}={kind}{number}"


def _joined(*words: str) -> str:
    return " ".join(word for word in words if word).strip()


def _megabytes(gigabytes: float) -> int:
    return math.ceil(1000 * gigabytes)


def sbatch(resources: Any, threads: int, settings: Any = None) -> str:
    """Return what the plugin will type for a job, without the names of its log and of this run.

    resources: Snakemake's, by key and by attribute. settings: the plugin's.
    """
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command

    account, partition = resources.get("slurm_account"), resources.get("slurm_partition")
    names = dict.fromkeys(("run_uuid", "slurm_logfile", "comment_str"), "x")
    place = {
        "account": f"-A {shlex.quote(account)}" if account else "",
        "partition": f"-p {shlex.quote(partition)}" if partition else "",
        "workdir": None,
    }
    command = get_submit_command(SimpleNamespace(resources=resources, threads=threads), {**names, **place}, settings)
    return f"sbatch {' '.join(command.partition(' --comment x ')[2].split())}"


def refuse_flags(extra: str) -> None:
    """Raise UserError, which names the key to use, for a flag in cluster.extra that the workflow or its plugin sets."""
    try:
        words = shlex.split(extra)
    except ValueError as error:
        raise UserError(f"cluster.extra is {extra!r}, which has an open quote ({error})") from error
    for word in words:
        for flags, instead in INSTEAD.items():
            if any(_is_flag(word, flag) for flag in flags):
                raise UserError(f"cluster.extra has {word}, which sbatch gets from elsewhere; instead: {instead}")


def _is_flag(word: str, flag: str) -> bool:
    """Whether a word of a command line is a flag, its value attached or not: --mem=4G, -N4."""
    return word.split("=")[0] == flag if flag.startswith("--") else word.startswith(flag) and not word.startswith("--")


def launcher(block: Mapping[str, Any], python: str, *, in_slurm: bool) -> str:
    """What starts one process per device: srun in a Slurm job; on this machine the script does it itself."""
    if not in_slurm:
        return python
    # The plugin's job step strips Slurm's variables, so srun needs the whole geometry again. -K1: a rank that fails
    # ends the others. -W: of ranks whose daemon on a node, slurmstepd, died alone, srun never hears; without a limit
    # it waits for them to the end of the job's time, though all others have ended (seen with Slurm 22.05).
    return _joined(
        f"srun -N{block['nodes']} -n{tasks(block)} --ntasks-per-node={block['devices_per_node']}",
        f"-c{block['cpus_per_device']}",
        _gpus("--gpus-per-task", block, 1),
        f"-K1 -W{LAST_RANKS_S} {python}",
    )


def arguments(block: Mapping[str, Any], *, in_slurm: bool, local_copy: str | None = None) -> str:
    """What a script is told of the machine, as words of its command line."""
    given = {name: block[name] for name, default in DEFAULTS.items() if block.get(name, default) != default}
    words = [f"--{_flag(name)} {value}" for name, value in given.items()]
    words += [_switch(_flag(name), block[name]) for name in SWITCHES if name in block]
    words += [f"--local-copy {shlex.quote(local_copy)}"] if local_copy else []
    # A local run has no time limit; Slurm's is told, for sites that send no signal ahead of it.
    words += [f"--time-limit {minutes(block)}" if in_slurm else f"--local-ranks {block['devices_per_node']}"]
    return " ".join(words)


def _switch(flag: str, value: bool | str) -> str:
    return f"--{flag} {value}" if value == AUTO else f"--{'' if value else 'no-'}{flag}"


def _flag(name: str) -> str:
    return {"cpus_per_device": "cpus"}.get(name, name).replace("_", "-")
