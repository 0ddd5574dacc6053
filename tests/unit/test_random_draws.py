import numpy as np
import pytest

from selfsup.random_draws import Stream, network_seeds, philox, torch_seed, uniform, words

# Known answers published with the Random123 library (kat_vectors, philox4x32 10 rounds): counter, key, result.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, wanted):
    assert philox(np.array(counter, np.uint32), key).tolist() == wanted


def test_every_part_of_key_and_counter_changes_the_draw():
    base = {"seed": 1, "stream": Stream.PRETRAIN, "epoch": 2, "view": 0, "operation": 3}
    drawn = {}
    for change in ({}, {"seed": 2}, {"stream": Stream.LINEAR}, {"epoch": 3}, {"view": 1}, {"operation": 4}):
        settings = {**base, **change}
        seed, stream = settings.pop("seed"), settings.pop("stream")
        for index in (5, 6):
            drawn[str(change), index] = tuple(words(seed, stream, indices=np.array([index]), **settings)[0])
    assert len(set(drawn.values())) == len(drawn)


def test_uniform_stays_below_one():
    assert uniform(np.array([0, 0xFFFFFFFF], np.uint32)).tolist() == [0.0, 1 - 2**-32]


def test_torch_seed_fits_torch_and_separates_purposes():
    seeds = {torch_seed(seed, Stream.WEIGHTS, purpose) for seed in (0, 1) for purpose in (0, 1, 2)}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seeds_of_what_networks_draw_never_change():
    wanted = [5207083169567321155, 6734461391465412170, 8242418844610409682]
    assert network_seeds(1, steps=range(5, 8), rank=2, micro_batch=3) == wanted
