"""What the host has drawn, sent to the device that needs it."""

import numpy as np
import torch


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on a device. The host does not wait: a copy from memory that is not page-locked would make it."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
