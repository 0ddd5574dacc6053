"""Where a result comes from: code revision, software versions, the conditions of bitwise equality, checksums."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
import torchvision

from selfsup.recipe import differences
from selfsup.settings.extensions import loaded_extensions

PACKAGES = ("torch", "torchvision", "numpy")


def code_revision() -> str:
    """Return this code's git commit, with "+changes" where files differ from it, or "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed.strip() else "")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute, and checksums of the extensions in use."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    extensions = {f"extension {name}": checksum for name, checksum in loaded_extensions().items()}
    return {"python": platform.python_version(), **packages, **extensions}


def numerics(device: torch.device, precision: str, threads: int, world_size: int) -> dict[str, str | int]:
    """Return the conditions under which runs agree to the bit. Not part of a fingerprint: a resume may change them."""
    if device.type == "cuda":
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if world_size > 1 else "none"
        hardware = {"device": torch.cuda.get_device_name(device), "cudnn": str(torch.backends.cudnn.version())}
        hardware |= {"nccl": nccl}
    else:
        hardware = {"device": "cpu", "instructions": torch.backends.cpu.get_cpu_capability()}
    software = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}  # it decodes and resizes
    return {"ranks": world_size, "threads": threads, "precision": precision, **software, **hardware}


def numerics_differences(wanted: Mapping, found: Mapping) -> list[str]:
    """Return a line for each condition in which two numerics differ.

    One that only one of them tells does not count: the other is of code that did not know it yet, or of another device.
    """
    known = wanted.keys() & found.keys()
    return differences(*({key: one[key] for key in known} for one in (wanted, found)))


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
