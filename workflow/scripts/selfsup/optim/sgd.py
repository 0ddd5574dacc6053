"""torch's SGD, fused: one kernel for a group, and fp16's verdict on a step stays on the device."""

import torch

from selfsup.optim.sgd_settings import SGDSettings


def build(groups: list[dict], settings: SGDSettings) -> torch.optim.SGD:
    """Return the optimiser of parameter groups."""
    optimizer = torch.optim.SGD(
        groups, lr=settings.peak_lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True
    )
    if settings.momentum:
        # torch leaves new buffers as they come where the first step is skipped, and reads them at the second.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
