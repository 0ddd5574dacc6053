"""Numbers on their way from the device to the host, for which nobody waits until they are read."""

from collections.abc import Sequence

import torch


class LateNumbers:
    """Scalars of a moment, copied to page-locked memory while the device goes on; an event tells when they are there.

    What is done to the scalars afterwards does not change them. Elsewhere than on a GPU they are there at once.
    """

    def __init__(self, scalars: Sequence[torch.Tensor], device: torch.device):
        """scalars: tensors of one element, of any type that float64 holds."""
        packed = torch.stack([one.detach().reshape(()).to(device, torch.float64) for one in scalars])
        self._there, self._arrived = packed, None
        if device.type == "cuda":
            self._there = torch.empty_like(packed, device="cpu", pin_memory=True).copy_(packed, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Return the scalars, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._there.tolist()
