"""What networks draw while they train, as drop-path and dropout do: a function of seed, step, rank and micro-batch."""

from functools import lru_cache

import torch

from selfsup.random_draws import network_seeds

BLOCK = 256  # steps whose seeds are drawn together: one by one they would take a tenth of a millisecond


class NetworkDraws:
    """Seeds torch's generators, of the CPU and of the device, before a forward pass.

    Recomputed activations draw the same once more: torch's checkpoints keep the generators' states. A network that
    draws nothing is none the worse.
    """

    def __init__(self, seed: int, rank: int, device: torch.device):
        self._seed, self._rank = seed, rank
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._block = lru_cache(maxsize=64)(self._drawn)

    def begin(self, step: int, micro_batch: int) -> None:
        """Seed for the forward pass of a step's micro-batch. The host does not wait for the device.

        Not while a CUDA graph records: that forbids it, and would replay one step's draws in all.
        """
        if len(self._generators) > 1 and torch.cuda.is_current_stream_capturing():
            return
        block, place = divmod(step, BLOCK)
        for generator in self._generators:
            generator.manual_seed(self._block(block, micro_batch)[place])

    def _drawn(self, block: int, micro_batch: int) -> list[int]:
        steps = range(block * BLOCK, (block + 1) * BLOCK)
        return network_seeds(self._seed, steps=steps, rank=self._rank, micro_batch=micro_batch)
