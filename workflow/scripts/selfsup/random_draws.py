"""Counter-based random numbers: every draw is a pure function of its key and counter, so nothing needs to be replayed.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised in NumPy on the host.
key = (seed, stream), counter = (epoch, sample index, view, operation). No torch, no state, equal on every machine.
"""

import math
from enum import IntEnum

import numpy as np

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_INCREMENTS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
# As in Thrust's shuffle (Mitchell et al., "Bandwidth-optimal random shuffling for GPUs", 2022). Each round halves the
# distance from uniform: over the 6 orders of 3 samples it is 0.02 after 4 rounds and 2e-8 after 24, by enumeration.
SHUFFLE_ROUNDS = 24
MOST_IMAGES = 2**32  # of a split: an image's number is a word of the counter


class Stream(IntEnum):
    """What a draw is for. Numbers are part of every result: add new ones, never change these."""

    PRETRAIN = 1
    LINEAR = 2
    SHUFFLE = 3
    SHUFFLE_LINEAR = 4
    KNN = 5
    WEIGHTS = 6
    NETWORK = 7
    FINE_TUNE = 8
    SHUFFLE_FINE_TUNE = 9
    SUBSET = 10


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the four random words of each counter.

    counter: uint32 [..., 4]; key: two numbers below 2**32. Returns uint32 [..., 4].
    """
    state = counter.reshape(-1, 4).T.astype(np.uint64, order="C")
    even, odd = state[0::2], state[1::2]  # words 0 and 2, which are multiplied, and words 1 and 3
    keys = np.array(key, np.uint64)
    for _ in range(_ROUNDS):
        products = (even * _MULTIPLIERS)[::-1]
        even, odd = (products >> _SHIFT) ^ odd ^ keys[:, None], products & _LOW
        keys = (keys + _KEY_INCREMENTS) & _LOW
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).astype(np.uint32).reshape(counter.shape)


def words(
    seed: int,
    stream: Stream,
    *,
    epoch: int,
    indices: np.ndarray,
    view: int | np.ndarray = 0,
    operation: int | np.ndarray = 0,
) -> np.ndarray:
    """Return four random words for each sample: uint32 [N, 4] for indices [N].

    view, operation: one of all, or arrays that broadcast with `indices`: uint32 [..., N, 4] then, in one call, for each
    call costs as much as thousands of samples.
    """
    counter = np.empty((*np.broadcast(indices, view, operation).shape, 4), np.uint32)
    counter[..., 0], counter[..., 1], counter[..., 2], counter[..., 3] = epoch, indices, view, operation
    return philox(counter, (seed, int(stream)))


def uniform(word: np.ndarray) -> np.ndarray:
    """Return uint32 words as float64 in [0, 1), in steps of 2**-32."""
    return word * 2.0**-32


def shuffled(places: np.ndarray, *, seed: int, stream: Stream, epoch: int, size: int) -> np.ndarray:
    """Return which of `size` samples stand at `places` of an epoch's random order: int64 [M] for places [M].

    Only what is asked for is computed, so the memory taken is that of the places and of the square root of `size`.
    places: int [M], each at least 0 and below `size`; different places give different samples.

    A balanced Feistel network on side x side >= size numbers (Luby and Rackoff, SIAM J. Comput. 1988), with additions
    modulo `side`; a number that is no sample is enciphered again until it is one (Black and Rogaway, "Ciphers with
    arbitrary finite domains", CT-RSA 2002: the generalised Feistel cipher, and cycle walking).
    """
    side = math.isqrt(size - 1) + 1
    side += side % 2  # of an odd side a round's parity is fixed: orders of 5 samples then stay 0.14 from uniform
    functions = _round_functions(seed, stream, epoch, side)
    found = _enciphered(np.asarray(places, np.int64), functions, side)
    while len(outside := np.flatnonzero(found >= size)):
        found[outside] = _enciphered(found[outside], functions, side)
    return found


def _round_functions(seed: int, stream: Stream, epoch: int, side: int) -> np.ndarray:
    """Return each round's random function as a table of numbers below `side`: int64 [rounds, side]."""
    blocks = SHUFFLE_ROUNDS // 4  # a counter gives four words, so four rounds
    numbers = np.tile(np.arange(side), blocks)
    drawn = words(seed, stream, epoch=epoch, indices=numbers, operation=np.repeat(np.arange(blocks), side))
    scaled = (drawn.astype(np.uint64) * np.uint64(side)) >> _SHIFT  # uniform but for side / 2**32
    return scaled.astype(np.int64).reshape(blocks, side, 4).swapaxes(1, 2).reshape(SHUFFLE_ROUNDS, side)


def _enciphered(numbers: np.ndarray, functions: np.ndarray, side: int) -> np.ndarray:
    left, right = np.divmod(numbers, side)
    for function in functions:
        left, right = right, (left + function[right]) % side
    return left * side + right


def torch_seed(seed: int, stream: Stream, purpose: int = 0, draw: int = 0) -> int:
    """Return a seed for torch's CPU generator, which draws initial weights: 63 bits of what is given."""
    return _joined(words(seed, stream, epoch=0, indices=np.array([draw]), operation=purpose)[0])


def network_seeds(seed: int, *, steps: range, rank: int, micro_batch: int) -> list[int]:
    """Return for each step a seed, 63 bits, of torch's generators, from which networks draw while they train."""
    drawn = words(seed, Stream.NETWORK, epoch=micro_batch, indices=np.array(steps), operation=rank)
    return [_joined(one) for one in drawn]


def _joined(drawn: np.ndarray) -> int:
    return (int(drawn[0]) << 31) ^ int(drawn[1])
