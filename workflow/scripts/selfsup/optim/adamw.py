"""torch's AdamW, fused: one kernel for a group, and fp16's verdict on a step stays on the device."""

import torch

from selfsup.optim.adamw_settings import AdamWSettings


def build(groups: list[dict], settings: AdamWSettings) -> torch.optim.AdamW:
    """Return the optimiser of parameter groups."""
    optimizer = torch.optim.AdamW(
        groups, lr=settings.peak_lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
    # torch would make the state in the first step, which then were unlike the others.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer
