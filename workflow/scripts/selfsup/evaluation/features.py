"""Fast features of a frozen encoder, on which evaluations spend nearly all of their time."""

import torch

from selfsup.engine.compute import Compute
from selfsup.engine.device import DTYPES
from selfsup.models import Backbone, fold_batch_norms


class FrozenFeatures:
    """A frozen encoder with its batch norms folded, in the precision and memory format of a job.

    Its weights are cast once: autocast would cast a frozen network's weights again in every forward pass.
    """

    def __init__(self, encoder: Backbone, compute: Compute):
        """encoder: in eval mode; it is copied."""
        self._format, self._dtype = compute.memory_format, DTYPES.get(compute.precision, torch.float32)
        self._network = fold_batch_norms(encoder, self._dtype).to(compute.device, memory_format=self._format)

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features of float32 pictures [N, 3, H, W] on the device: float32 [N, out_features]."""
        return self._network(pictures.to(dtype=self._dtype, memory_format=self._format)).float()
