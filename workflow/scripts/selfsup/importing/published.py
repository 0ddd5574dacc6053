"""What is read from a published file."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Published:
    """A backbone's weights and buffers under torchvision's names, float32, and what the file says of its training.

    method, head: which method's networks are in the file, and the widths of its projector's layers; None if not told.
    """

    weights: dict[str, torch.Tensor]
    facts: dict[str, Any]
    method: str | None = None
    head: list[int] | None = None
