"""A step's numbers, sent to the device in one copy for which the host does not wait."""

import numpy as np
import torch

SLOTS = 4  # copies that may be on their way: the host is never so many steps ahead


class PackedCopies:
    """Sends the arrays of one step after the other, float32, in every step of the same shapes.

    To a GPU they go through page-locked pieces of memory, taken in turn; an event tells when a piece has been read and
    may be written again. Elsewhere a tensor shares the array's memory.
    """

    def __init__(self, device: torch.device):
        self._device, self._turn = device, 0
        self._slots: list[tuple[torch.Tensor, torch.cuda.Event]] = []

    def __call__(self, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Return the arrays on the device, views of one tensor, to be written over as the caller likes."""
        flat = arrays[0].reshape(-1) if len(arrays) == 1 else np.concatenate([one.reshape(-1) for one in arrays])
        parts = self._sent(torch.from_numpy(flat)).split([one.size for one in arrays])
        return tuple(part.view(one.shape) for part, one in zip(parts, arrays, strict=True))

    def _sent(self, host: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return host
        slot, read = self._free_slot(host)
        slot.copy_(host)
        there = slot.to(self._device, non_blocking=True)
        read.record()
        return there

    def _free_slot(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        self._turn = (self._turn + 1) % SLOTS
        if len(self._slots) < SLOTS:
            self._slots.append((torch.empty_like(like, pin_memory=True), torch.cuda.Event()))
            return self._slots[-1]
        self._slots[self._turn][1].synchronize()  # of a copy SLOTS steps ago: done
        return self._slots[self._turn]
