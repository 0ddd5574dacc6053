"""Command-line arguments that several scripts share."""

import argparse
import os
from pathlib import Path

import torch

from selfsup.training.device import choose_device, choose_precision
from selfsup.training.distributed import Ranks, discover_place


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --recipe and --seed: what is computed."""
    parser.add_argument(
        "--recipe", required=True, type=str, help="a name in workflow/recipes, or a whole recipe as JSON"
    )
    parser.add_argument("--seed", type=seed, default=0, help="0 to 4294967295; default 0")


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device, --precision and --cpus: how it is computed."""
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument(
        "--precision",
        choices=["auto", "bf16", "fp16", "fp32"],
        default="auto",
        help="auto: what the device does in hardware",
    )
    parser.add_argument(
        "--cpus",
        type=int,
        default=1,
        help="processor cores of each rank: threads on CPU, loader workers on GPU; default 1",
    )


def start_compute(arguments: argparse.Namespace) -> tuple[Ranks, torch.device, str, int]:
    """Join the other ranks and take the device. Returns ranks, device, precision, loader workers."""
    torch.set_num_threads(arguments.cpus)
    # fp32 means fp32: TensorFloat-32, cuDNN's default, rounds to 10 bits. For speed there is bf16.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    place = discover_place(os.environ)
    device = choose_device(arguments.device, place.local_rank, place.shared_node)
    workers = max(arguments.cpus - 1, 1) if device.type == "cuda" else 0
    return Ranks(place, device), device, choose_precision(arguments.precision, device), workers


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
