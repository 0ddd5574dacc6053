"""What is read from a published file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from selfsup.errors import UserError

GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Published:
    """A backbone's weights and buffers under the names of its library, and what the file says of its training.

    method, head: which method's networks are in the file, and the widths of its projector's layers; None if not told.
    """

    weights: dict[str, torch.Tensor]
    facts: dict[str, Any]
    method: str | None = None
    head: list[int] | None = None


def read_tensors(path: Path, wanted: str) -> Any:
    """Return what a file .safetensors holds, or else one of torch, read with weights_only=True.

    wanted: what the file should be, for the UserError where it is no such file.
    """
    with open(path, "rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise UserError(f"{path} is Git LFS's pointer to the file, not the file: run `git lfs pull` in its clone")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise whatever their reader comes across
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: no {wanted} ({first})") from error
