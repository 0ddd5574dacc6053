"""Command-line arguments that several scripts share. Imports no torch, so that errors in them are reported at once."""

import argparse
import os
import sys
from pathlib import Path

from selfsup.job.attempt import Attempt
from selfsup.job.local_ranks import run_local_ranks
from selfsup.job.place import Place, discover_place, node_name
from selfsup.jobs import AUTO, DEFAULTS, SWITCHES
from selfsup.logs import start_logging


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and --seed, which say what is computed."""
    parser.add_argument(
        "--recipe",
        required=True,
        help="a name in workflow/recipes, a file (.json) with a whole recipe, or such a recipe as JSON",
    )
    parser.add_argument("--seed", type=seed, default=0, help="0 to 4294967295; default 0")


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a job computes with, and for how long."""
    _add_device_arguments(parser)
    _add_switches(parser)
    _add_time_arguments(parser)


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default=DEFAULTS["device"])
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp16", "fp32"],
        default=DEFAULTS["precision"],
        help="auto: what the device does in hardware",
    )
    parser.add_argument(
        "--cpus",
        type=int,
        default=DEFAULTS["cpus_per_device"],
        help="processor cores for each rank: threads on CPU, loader workers on GPU; default 1",
    )
    parser.add_argument(
        "--local-ranks",
        type=int,
        default=1,
        help="processes to start on this machine, one per device; default 1; ignored under srun or torchrun",
    )
    parser.add_argument(
        "--local-copy",
        metavar="FOLDER",
        help="a folder on each node's own disk, to which the dataset is copied first, once; $VARIABLES are the node's",
    )


def _add_switches(parser: argparse.ArgumentParser) -> None:
    for name, (default, text) in SWITCHES.items():
        flag, told = f"--{name.replace('_', '-')}", f"{text}; default {'on' if default else 'off'}"
        if name != "one_graph":
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=told)
            continue
        off = flag.replace("--", "--no-")
        told += f"; {AUTO}: on where it is known to pay, on a single GPU; {off}: off"
        parser.add_argument(flag, nargs="?", const=True, choices=[AUTO], default=default, help=told)
        parser.add_argument(off, dest=name, action="store_false", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_time_arguments(parser: argparse.ArgumentParser) -> None:
    minutes = DEFAULTS["checkpoint_minutes"]
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=minutes, help=f"time between rolling checkpoints; default {minutes}"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="MINUTES",
        help="save and exit with status 75 before this many minutes have passed; default: only Slurm's own limit",
    )
    parser.add_argument(
        "--hang-minutes",
        type=float,
        default=DEFAULTS["hang_minutes"],
        help="if a step takes longer, print the stacks of all ranks and end; default 10",
    )


def start_local_ranks(arguments: argparse.Namespace) -> None:
    """If --local-ranks asks for several ranks, start them and exit with their status; not under srun or torchrun."""
    if arguments.local_ranks > 1 and "RANK" not in os.environ and discover_place(os.environ).size == 1:
        sys.exit(run_local_ranks(arguments.local_ranks))


def own_place() -> Place:
    """Return this process's place among the ranks, which its log lines name from now on."""
    place = discover_place(os.environ)
    start_logging(place.rank, place.size, node_name() if place.several_nodes else None)
    return place


def begin_attempt(arguments: argparse.Namespace, folder: Path, *, stage: str, goal: str, fingerprint: str) -> Attempt:
    """Start the requested local ranks, and return this process's attempt at the job. See `Attempt`."""
    start_local_ranks(arguments)
    return Attempt(
        folder,
        stage=stage,
        goal=goal,
        fingerprint=fingerprint,
        place=own_place(),
        time_limit_s=arguments.time_limit and arguments.time_limit * 60,
        hang_s=arguments.hang_minutes * 60,
    )


def seed(text: str) -> int:
    """Read a seed, which is a 32-bit word of the random draws' key; argparse reports an invalid one."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a seed, wanted 0 to 4294967295")
    return int(text)


def existing_path(text: str) -> Path:
    """Read a path; argparse reports one that does not exist."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return path
