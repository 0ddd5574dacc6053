"""Pictures that are looked at again and again, made once where there is room for them."""

from collections.abc import Callable

import numpy as np
import torch

KEPT_BYTES = 2**28  # at most, of each rank; of CIFAR-10 a milestone looks at 86 MB
DEVICE_SHARE = 0.05  # of a GPU's free memory, at most; the rest of them stays in the host's


class KeptPictures:
    """Pictures on a device. Those that were made before are not made again, as long as all take at most KEPT_BYTES.

    They lie on the device, or on the host if the device is short of memory. Nobody may change them.
    """

    def __init__(self, make: Callable[[np.ndarray], torch.Tensor], device: torch.device):
        """make: returns the pictures of some images, on the host; the same bits each time."""
        self._make, self._device = make, device
        self._kept: dict[bytes, torch.Tensor] = {}
        self._bytes = 0

    def of(self, indices: np.ndarray) -> torch.Tensor:
        """Return the pictures of some images, on the device. indices: int64 [N]."""
        key = indices.tobytes()
        if key in self._kept:
            return self._kept[key].to(self._device)
        pictures = self._make(indices)
        if self._bytes + pictures.nbytes > KEPT_BYTES:
            return pictures.to(self._device)
        self._bytes += pictures.nbytes
        if has_room(self._device, self._bytes):
            pictures = pictures.to(self._device)
        self._kept[key] = pictures
        return pictures.to(self._device)


def has_room(device: torch.device, size: int) -> bool:
    """Return whether `size` bytes are little of a device's memory; a CPU's is the host's."""
    return device.type == "cpu" or size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
