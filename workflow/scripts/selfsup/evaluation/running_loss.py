"""The mean loss since the last row of history.csv, kept on the device, and part of a saved state."""

import torch

from selfsup.engine.compute import Compute


class RunningLoss:
    """Sums each step's mean loss of a global batch. `own`: this rank's share, a scalar on the device."""

    def __init__(self, compute: Compute):
        self._compute = compute
        self.own = torch.zeros((), device=compute.device)

    def add(self, share: torch.Tensor) -> None:
        """Take a step's: this rank's share of the mean over the global batch. The host does not wait."""
        self.own += share.detach()

    def taken(self, steps: int) -> float:
        """Return the mean over so many steps and all ranks, and begin again. Collective."""
        mean = float(self._compute.ranks.all_reduce(self.own)) / steps
        self.own = torch.zeros((), device=self._compute.device)
        return mean

    def state(self) -> torch.Tensor:
        """Return each rank's share. Collective."""
        return self._compute.ranks.all_gather(self.own).cpu()

    def load_state(self, shares: torch.Tensor) -> None:
        ranks = self._compute.ranks
        if len(shares) == ranks.size:
            self.own.copy_(shares[ranks.rank])
        elif ranks.is_main:  # the number of ranks has changed: only the sum counts
            self.own.copy_(shares.sum())
