"""How trainings read a split: what a recipe says of its two, to the bit, and parts of a split."""

import hashlib
from dataclasses import fields, replace

import numpy as np
import pytest

from selfsup.augment import policies_of
from selfsup.data.loader import Batches, Reading, reading_of
from selfsup.random_draws import Stream

# Of the images and draws of steps 0, 6 and 13, as they have been since the first version.
GOLDEN = {"pretrain": "5c84b564515a8b9e", "linear": "42cb91f59c9a4fab"}
SOME = np.array([40, 3, 17, 22, 8, 9, 30, 31, 41, 2])


def digest(batches: Batches) -> str:
    hashed = hashlib.sha256()
    for step in (0, 6, 13):
        batch = batches[step]
        hashed.update(batch.indices.tobytes())
        for view in batch.draws.views:
            for field in fields(view):
                hashed.update(np.ascontiguousarray(getattr(view, field.name)).tobytes())
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize("stage", GOLDEN)
def test_what_the_recipe_says_is_read_as_ever(tiny_store, tiny_recipe, stage):
    assert digest(Batches(tiny_store.train, tiny_recipe, seed=3, stage=stage)) == GOLDEN[stage]
    described = reading_of(tiny_recipe, stage)
    assert digest(Batches(tiny_store.train, tiny_recipe, seed=3, stage=described)) == GOLDEN[stage]


def test_of_some_images_an_epoch_shows_each_once_and_draws_for_them_as_among_all(tiny_store, tiny_recipe):
    policies = replace(policies_of(tiny_recipe, "linear"), stream=Stream.FINE_TUNE)
    reading = Reading(policies, batch=4, drop_last=False, order=Stream.SHUFFLE_FINE_TUNE)
    some = Batches(tiny_store.train, tiny_recipe, seed=0, stage=replace(reading, images=SOME))
    everything = Batches(tiny_store.train, tiny_recipe, seed=0, stage=reading)
    assert (some.steps_per_epoch, everything.steps_per_epoch) == (3, 11)
    seen = [some[step] for step in range(3)]
    assert sorted(np.concatenate([one.indices for one in seen])) == sorted(SOME)
    assert [one.total for one in seen] == [4, 4, 2]
    flips = {int(i): v for s in range(11) for i, v in pairs(everything[s])}
    assert all(np.array_equal(flips[int(image)], box) for one in seen for image, box in pairs(one))


def pairs(batch):
    return zip(batch.indices, batch.draws.views[0].boxes, strict=True)
