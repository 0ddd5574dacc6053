"""Counter-based random numbers: every draw is a pure function of its key and counter, so nothing needs to be replayed.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised in NumPy on the host.
key = (seed, stream), counter = (epoch, sample index, view, operation). No torch, no state, equal on every machine.
"""

from enum import IntEnum

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """What a draw is for. Numbers are part of every result: add new ones, never change these."""

    PRETRAIN = 1
    LINEAR = 2
    SHUFFLE = 3
    SHUFFLE_LINEAR = 4
    KNN = 5
    WEIGHTS = 6


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the four random words of each counter.

    counter: uint32 [..., 4]; key: two numbers below 2**32. Returns uint32 [..., 4].
    """
    c0, c1, c2, c3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0), product1 & _LOW
        c2, c3 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1), product0 & _LOW
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & 0xFFFFFFFF, (k1 + _KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(
    seed: int, stream: Stream, *, epoch: int, indices: np.ndarray, view: int = 0, operation: int = 0
) -> np.ndarray:
    """Return four random words for each sample: uint32 [N, 4] for indices [N]."""
    counter = np.empty((len(indices), 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 2], counter[:, 3] = epoch, indices, view, operation
    return philox(counter, (seed, int(stream)))


def uniform(word: np.ndarray) -> np.ndarray:
    """Return uint32 words as float64 in [0, 1), in steps of 2**-32."""
    return word * 2.0**-32


def permutation(seed: int, stream: Stream, *, epoch: int, size: int) -> np.ndarray:
    """Return a random order of `size` samples, int64 [size]: the samples sorted by 64 random bits of their own."""
    drawn = words(seed, stream, epoch=epoch, indices=np.arange(size)).astype(np.uint64)
    return np.argsort((drawn[:, 0] << _SHIFT) | drawn[:, 1], kind="stable")


def torch_seed(seed: int, stream: Stream, purpose: int = 0, draw: int = 0) -> int:
    """Return a seed for torch's CPU generator, which draws initial weights: 63 bits of what is given."""
    drawn = words(seed, stream, epoch=0, indices=np.array([draw]), operation=purpose)[0]
    return (int(drawn[0]) << 31) ^ int(drawn[1])
