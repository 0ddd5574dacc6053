"""The order of an epoch: a permutation for every size, and a uniform one as far as counting can tell.

Seeds and epochs are fixed, so the counts are the same each time; a sound order would fail at one in a thousand choices
of them (SIGNIFICANCE).
"""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import chi2

from selfsup.data.loader import Batches
from selfsup.errors import PermanentError
from selfsup.random_draws import SHUFFLE_ROUNDS, Stream, shuffled, words
from selfsup.recipe import load_recipe

SIGNIFICANCE = 1e-3
BLOCKS = 8  # that places and samples are counted in
DIGITS, CIFAR10, IMAGENET = 1_437, 50_000, 1_281_167


def whole_order(size: int, epoch: int = 0, seed: int = 0) -> np.ndarray:
    return shuffled(np.arange(size), seed=seed, stream=Stream.SHUFFLE, epoch=epoch, size=size)


def assert_by_chance(statistic: float, degrees: float) -> None:
    """Neither further from what is expected than chance brings, nor nearer."""
    assert SIGNIFICANCE / 2 < chi2.sf(statistic, degrees) < 1 - SIGNIFICANCE / 2


@pytest.mark.parametrize("size", [*range(1, 301), DIGITS, CIFAR10, 1 << 16, (1 << 16) + 1, IMAGENET])
def test_an_order_has_every_sample_once(size):
    assert np.array_equal(np.sort(whole_order(size)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 7, DIGITS, IMAGENET])
def test_a_place_holds_the_same_sample_whatever_else_is_asked_for(size):
    whole, places = whole_order(size), np.random.default_rng().integers(0, size, 50)
    assert np.array_equal(shuffled(places, seed=0, stream=Stream.SHUFFLE, epoch=0, size=size), whole[places])
    assert len(shuffled(places[:0], seed=0, stream=Stream.SHUFFLE, epoch=0, size=size)) == 0


def test_orders_stay_what_they_were():
    """They are part of every trained encoder."""
    assert whole_order(10).tolist() == [2, 6, 9, 8, 1, 5, 7, 4, 0, 3]
    places = np.array([0, 1, 2, 4096, IMAGENET - 1])
    found = shuffled(places, seed=7, stream=Stream.SHUFFLE_LINEAR, epoch=89, size=IMAGENET)
    assert found.tolist() == [1084471, 645043, 355049, 346545, 459991]


def by_the_book(number: int, side: int, seed: int, epoch: int) -> int:
    """One pass of the network on a number of two digits of base `side`: each round adds a random one to the first."""
    left, right = divmod(number, side)
    for turn in range(SHUFFLE_ROUNDS):
        drawn = words(seed, Stream.SHUFFLE, epoch=epoch, indices=np.array([right]), operation=turn // 4)
        left, right = right, (left + int(drawn[0, turn % 4]) * side // 2**32) % side
    return left * side + right


def test_an_order_is_a_feistel_network_that_is_walked_until_a_sample_comes():
    random = np.random.default_rng()
    for _ in range(20):
        size, seed, epoch = (int(random.integers(1, high)) for high in (3000, 1 << 32, 1000))
        side = next(side for side in itertools.count(2, 2) if side * side >= size)
        place = int(random.integers(size))
        sample = by_the_book(place, side, seed, epoch)
        while sample >= size:
            sample = by_the_book(sample, side, seed, epoch)
        found = shuffled(np.array([place]), seed=seed, stream=Stream.SHUFFLE, epoch=epoch, size=size)
        assert found.tolist() == [sample]


@pytest.mark.long
def test_all_orders_of_five_samples_are_as_frequent():
    """Over seeds and epochs. Four rounds, or an odd side of the network, fail by hundreds."""
    counts = dict.fromkeys(itertools.permutations(range(5)), 0)
    for seed, epoch in itertools.product(range(60), range(200)):
        counts[tuple(whole_order(5, epoch, seed))] += 1
    expected = 60 * 200 / math.factorial(5)
    assert_by_chance(sum((count - expected) ** 2 for count in counts.values()) / expected, len(counts) - 1)


@pytest.mark.parametrize(("size", "epochs"), [(DIGITS, 400), (CIFAR10, 60)])
def test_every_sample_comes_in_every_part_of_an_epoch(size, epochs):
    """Each sample's places, counted in BLOCKS of them."""
    counts, block = np.zeros((size, BLOCKS)), np.arange(size) * BLOCKS // size
    for epoch in range(epochs):
        counts[whole_order(size, epoch), block] += 1
    expected = epochs * np.bincount(block) / size
    assert_by_chance(((counts - expected) ** 2 / expected).sum() * (size - 1) / size, (size - 1) * (BLOCKS - 1))


@pytest.mark.parametrize("apart", [1, 2, 38, 224])  # 38 and 224: rows of the square that the network works on
@pytest.mark.parametrize(("size", "epochs"), [(DIGITS, 400), (CIFAR10, 60)])
def test_samples_that_follow_each_other_have_nothing_to_do_with_each_other(size, epochs, apart):
    """Distances between the samples at places some way apart, counted in BLOCKS of their circle."""
    counts = np.zeros(BLOCKS)
    for epoch in range(epochs):
        order = whole_order(size, epoch)
        distance = (order - np.roll(order, apart)) % size - 1  # 0 to size - 2, all as likely
        counts += np.bincount(distance * BLOCKS // (size - 1), minlength=BLOCKS)
    expected = epochs * size * np.bincount(np.arange(size - 1) * BLOCKS // (size - 1)) / (size - 1)
    assert_by_chance(((counts - expected) ** 2 / expected).sum(), BLOCKS - 1)


@pytest.mark.parametrize(
    ("change", "size", "orders"), [("epoch", DIGITS, 400), ("epoch", CIFAR10, 60), ("seed", DIGITS, 400)]
)
def test_consecutive_orders_are_not_correlated(change, size, orders):
    """Rank correlation of each order with the next: 0 with a variance of 1 / (size - 1), and independent."""
    made = [np.argsort(whole_order(size, **{change: number})) - (size - 1) / 2 for number in range(orders)]
    pairs = list(itertools.pairwise(made))
    correlations = np.array([(one @ other) / (one @ one) for one, other in pairs])
    assert_by_chance((correlations**2).sum() * (size - 1), len(pairs))


def test_a_split_has_as_many_images_as_draws_can_number():
    """Beyond 2**32 two images would have the same draws, and nobody would see it."""

    class Huge:
        raw = labels = None
        sizes = ()

        def __init__(self, images):
            self.images = images

        def __len__(self):
            return self.images

    recipe = load_recipe("imagenet")
    assert Batches(Huge(2**32), recipe, seed=0, stage="pretrain").steps_per_epoch == 2**32 // recipe["global_batch"]
    with pytest.raises(PermanentError, match=r"^a split of 4,294,967,297 images, wanted at most 4,294,967,296"):
        Batches(Huge(2**32 + 1), recipe, seed=0, stage="pretrain")
