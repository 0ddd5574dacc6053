"""Initial weights as a function of the seed: drawn on the CPU in float32, whatever device trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from selfsup.random_draws import Stream, torch_seed


@contextmanager
def seeded_weights(seed: int, purpose: int = 0, draw: int = 0) -> Iterator[None]:
    """Build networks inside this block: their weights depend on the arguments alone, and torch's state is given back.

    Purposes are part of every result: 0 the online network, 1 an independent target, 2 the linear classifier,
    3 what is added to a method.
    draw: which of several with one purpose.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, Stream.WEIGHTS, purpose, draw))
        yield
