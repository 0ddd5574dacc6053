"""Command-line arguments that several scripts share. Imports no torch: what is refused, is refused at once."""

import argparse
import os
import sys
from pathlib import Path

from selfsup.job.attempt import Attempt
from selfsup.job.local_ranks import run_local_ranks
from selfsup.job.place import discover_place
from selfsup.jobs import DEFAULTS, SWITCHES


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and --seed: what is computed."""
    parser.add_argument(
        "--recipe",
        required=True,
        help="a name in workflow/recipes, a file (.json) that holds a whole recipe, or that as JSON",
    )
    parser.add_argument("--seed", type=seed, default=0, help="0 to 4294967295; default 0")


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says how, and for how long, it is computed."""
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
        help="processor cores of each rank: threads on CPU, loader workers on GPU; default 1",
    )
    parser.add_argument(
        "--local-ranks",
        type=int,
        default=1,
        help="processes to start on this machine, one per device; default 1. Under srun or torchrun theirs count",
    )
    parser.add_argument(
        "--local-copy",
        metavar="FOLDER",
        help="of each node's own disk: copy the dataset there first, once; $VARIABLES are the node's",
    )
    for name, (default, text) in SWITCHES.items():
        flag, state = f"--{name.replace('_', '-')}", "on" if default else "off"
        parser.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=default, help=f"{text}; default {state}"
        )
    minutes = DEFAULTS["checkpoint_minutes"]
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=minutes, help=f"between rolling checkpoints; default {minutes}"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        metavar="MINUTES",
        help="save and leave with status 75 before so many minutes are over; none by default, but Slurm's own limit",
    )
    parser.add_argument(
        "--hang-minutes",
        type=float,
        default=DEFAULTS["hang_minutes"],
        help="end with the stacks of all ranks when a step takes longer; default 10",
    )


def start_local_ranks(arguments: argparse.Namespace) -> None:
    """Where --local-ranks asks for several and nobody else has, start them and leave with their exit status."""
    if arguments.local_ranks > 1 and "RANK" not in os.environ and discover_place(os.environ).size == 1:
        sys.exit(run_local_ranks(arguments.local_ranks))


def begin_attempt(arguments: argparse.Namespace, folder: Path, *, stage: str, goal: str, fingerprint: str) -> Attempt:
    """Start the local ranks that are asked for, and return this process's attempt at the job. See `Attempt`."""
    start_local_ranks(arguments)
    return Attempt(
        folder,
        stage=stage,
        goal=goal,
        fingerprint=fingerprint,
        place=discover_place(os.environ),
        time_limit_s=arguments.time_limit and arguments.time_limit * 60,
        hang_s=arguments.hang_minutes * 60,
    )


def seed(text: str) -> int:
    """Read a seed, a word of the random draws' key; argparse tells the user of one that is none."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is no seed, wanted 0 to 4294967295")
    return int(text)


def existing_path(text: str) -> Path:
    """Read a path; argparse tells the user of one that does not exist."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return path
