"""A frozen encoder's features of a dataset's images, each computed once and kept in files that are memory-mapped.

A folder with, for each split, chunks of CHUNK images, `<split>_<number>.npy`, float32 or float16 [n, D], and
`features.json`, written last, which says what they are of. Chunks are computed alike whatever the number of ranks, so
that a job goes on where another was stopped, with as many ranks as it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from selfsup.augment import centre_view
from selfsup.data.store import Split
from selfsup.engine.device import full_fp32
from selfsup.evaluation.task import Judged
from selfsup.job.attempt import Attempt

CHUNK = 8192  # images
BATCH = 256


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a split. parts: arrays of CHUNK rows each, the last one of fewer."""

    split: Split
    parts: list[np.ndarray]

    @classmethod
    def of(cls, judged: Judged, name: str, settings: Any, attempt: Attempt) -> "SplitFeatures | None":
        """Return the features of a split, "train" or "test", computed in this job; None if asked to stop."""
        split = getattr(judged.store, name)
        parts = []
        for start in range(0, len(split), CHUNK):
            chunk = range(start, min(start + CHUNK, len(split)))
            found = _extracted(judged, split, chunk, settings, attempt)
            if found is None:
                return None
            parts.append(found)
        return cls(split, parts)

    def __len__(self) -> int:
        return len(self.split)

    def rows(self, places: Sequence[int]) -> torch.Tensor:
        """Return the features of some images: float32 [n, D], on the host."""
        places = np.asarray(places)
        chunks, within = places // CHUNK, places % CHUNK
        found = np.empty((len(places), self.parts[0].shape[1]), np.float32)
        for chunk in np.unique(chunks):
            found[chunks == chunk] = self.parts[chunk][within[chunks == chunk]]
        return torch.from_numpy(found)

    def labels(self, places: Sequence[int]) -> torch.Tensor:
        """Return the labels of some images: int64 [n], on the host."""
        return torch.from_numpy(self.split.labels[np.asarray(places)])


@torch.no_grad()
def _extracted(judged: Judged, split: Split, chunk: range, settings: Any, attempt: Attempt) -> np.ndarray | None:
    view, device, found = settings.view(judged.recipe), judged.compute.device, []
    for start in range(chunk.start, chunk.stop, BATCH):
        if judged.compute.ranks.any(attempt.stop.reason is not None):
            return None
        images = map(split.image, range(start, min(start + BATCH, chunk.stop)))
        with full_fp32():
            found.append(judged.encoder(centre_view(judged.recipe, images, view).to(device)).cpu())
        attempt.heartbeat(f"image {start}")
    return torch.cat(found).numpy().astype(settings.precision)
