"""Detects a loss or weight that is not finite, before it is written to a checkpoint, without slowing down the steps."""

import math
from collections.abc import Iterable

import torch

from selfsup.engine.distributed import Ranks
from selfsup.job.waiting import waiting_for_ranks


class FiniteGuard:
    """Remembers, on the device, the first step whose loss was not finite; reads it only when asked to.

    bad_step: that step, infinity as long as there is none: a scalar on the device.
    """

    def __init__(self, ranks: Ranks, device: torch.device, total_steps: int):
        self._ranks, self._total_steps = ranks, total_steps
        self.bad_step = torch.full((), math.inf, device=device)

    def note(self, step: int, loss: torch.Tensor) -> None:
        """Take a step's loss, a scalar on the device. Does not wait for the device."""
        bad = torch.where(torch.isfinite(loss), math.inf, float(step))
        self.bad_step = torch.minimum(self.bad_step, bad)

    def first_bad_step(self, step: int, weights: Iterable[torch.Tensor] = ()) -> int | None:
        """Return the first step on any rank whose loss was not finite, or None. Collective; waits for the device.

        weights: examined too, as they are after `step`.
        """
        bad_step, weights = self.bad_step, list(weights)
        if weights:
            finite = torch.stack([torch.isfinite(weight).all() for weight in weights]).all()
            bad_step = torch.minimum(bad_step, torch.where(finite, math.inf, float(step)))
        with waiting_for_ranks():  # on a GPU the host waits here for what all ranks compute together
            own = float(bad_step)
        return self.first_of_ranks(own)

    def first_of_ranks(self, own: float) -> int | None:
        """Return the lowest of the ranks' values of `bad_step`, or None. Collective; does not touch the device."""
        first = self._ranks.highest(0 if math.isinf(own) else self._total_steps - int(own))
        return self._total_steps - first if first else None
