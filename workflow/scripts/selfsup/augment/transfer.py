"""What the host has drawn, sent to the device that needs it."""

from collections.abc import Mapping

import numpy as np
import torch


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on a device. The host does not wait: a copy from memory that is not page-locked would make it."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def sent_together(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Return arrays of any types on a device, in one copy. The host does not wait."""
    widest_first = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # so each begins at a multiple of its width
    flat = [np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8) for name in widest_first]
    parts = sent(np.concatenate(flat), device).split([len(part) for part in flat])
    found = dict(zip(widest_first, parts, strict=True))
    return {name: _read_as(array, found[name]) for name, array in arrays.items()}


def _read_as(array: np.ndarray, content: torch.Tensor) -> torch.Tensor:
    """Return bytes as a tensor of an array's type and shape."""
    kind = torch.from_numpy(array[:0]).dtype
    read = content.view(kind) if len(content) else content.to(kind)  # torch takes no view of nothing
    return read.view(array.shape)
