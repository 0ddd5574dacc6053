"""The moving average of a network that a second one is."""

import torch


@torch.no_grad()
def follow(
    averages: list[torch.Tensor], values: list[torch.Tensor], momentum: float, skipped: torch.Tensor | None
) -> None:
    """average <- momentum average + (1 - momentum) value, for each pair; nothing where `skipped`, a bool, is true."""
    if skipped is not None:
        values = [torch.where(skipped, old, new) for old, new in zip(averages, values, strict=True)]
    torch._foreach_lerp_(averages, values, 1 - momentum)
