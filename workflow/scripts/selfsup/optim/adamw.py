"""torch's AdamW, fused: one kernel for a group, and fp16's verdict on a step stays on the device."""

import torch

from selfsup.optim.adamw_settings import AdamWSettings


def build(groups: list[dict], settings: AdamWSettings) -> torch.optim.AdamW:
    """Return the optimiser of parameter groups."""
    return torch.optim.AdamW(
        groups, lr=settings.peak_lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
