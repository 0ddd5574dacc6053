"""Every key of fine-tuning changes what is computed. A new key without an entry here fails the first test."""

import json
from functools import cache, reduce

import pytest
import torch
from test_recipe_keys import BUSY, VIEW, digest, pair

from many_ranks import on_ranks
from runs import TINY_TUNING, evaluate, fine_tuning, on_cpu
from selfsup.engine.distributed import Ranks
from selfsup.evaluation.fine_tune import FineTuning
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.models import initial_backbone
from selfsup.recipe import canonical, load_recipe, merge
from selfsup.settings.described import leaves
from tiny import TINY

# Another momentum than 0.1, which is that of so few steps.
RECIPE = merge(load_recipe("digits", TINY), {"model": {"batch_norm": {"momentum": 0.2}}})
BASE = {
    **TINY_TUNING,
    "lengths": [1],
    "weight_decays": [0.01],
    "train_view": merge(RECIPE["linear"]["train_view"], BUSY),
    "test": {"resize": 11, "crop": 8, "interpolation": "bicubic"},
}
# A change, or the settings to change and a change.
KEYS = {
    "labels": {"labels": 80},
    "subset_seed": {"subset_seed": 1},
    "held_out": {"held_out": 6},
    "held_out_of": {"held_out_of": "rest"},
    "unit": {"unit": "steps"},
    "lengths": {"lengths": [2]},
    "batch": {"batch": 6},
    "peak_lrs": {"peak_lrs": [0.02, 0.1]},
    "lr_floor": {"lr_floor": 0.01},
    "momentum": {"momentum": 0.5},
    "nesterov": {"nesterov": False},
    "weight_decays": {"weight_decays": [0.02]},
    "decay_over_lr": {"decay_over_lr": True},
    "batch_norm_momentum": {"batch_norm_momentum": "by_steps"},
    "train_view": {"train_view": None},
    "test": {"test": None},
    "test.resize": {"test": {"resize": 9}},
    "test.crop": {"test": {"crop": 7}},
    "test.interpolation": {"test": {"interpolation": "bilinear"}},
    **{f"train_view.{key}": {"train_view": change} for key, change in VIEW.items()},
}
ELSEWHERE = ("labels_list",)  # tests/unit/test_labels_list.py: of a dataset with file names
OVER_DEVICES = {"batch_norm_statistics": {"batch_norm_statistics": "each_device"}}


class Watched(FineTuning):
    """Keeps the logits of held-out and test images: figures of so few would often be alike."""

    def _logits(self, *arguments):
        found = super()._logits(*arguments)
        self.__dict__.setdefault("logits", []).append(found)
        return found


def computed(ranks: Ranks, store, folder, settings: dict) -> str:
    """The digest of all rows and logits of a fine-tuning."""
    encoder = initial_backbone(RECIPE, 0).eval().requires_grad_(False)
    task = fine_tuning(encoder, store, RECIPE, settings, compute=on_cpu(ranks, threads=1))
    task.__class__ = Watched
    rows = evaluate(task, folder / str(ranks.size))
    return digest([torch.tensor([[row["step"], row["lr"], row["train_loss"]] for row in rows]), *task.logits])


@pytest.fixture(scope="module")
def tuned(shallow, tiny_store, tmp_path_factory):
    """A function of changes to BASE: the digest; each is computed once."""

    @cache
    def known(text: str) -> str:
        return computed(Ranks(), tiny_store, tmp_path_factory.mktemp("tuned"), json.loads(text))

    return lambda *changes: known(canonical(reduce(merge, changes, BASE)))


def test_every_key_has_an_entry_here_and_a_meaning():
    found = list(leaves(FineTuneSettings))
    assert {leaf.path for leaf in found} == {*KEYS, *OVER_DEVICES, *ELSEWHERE}
    assert [leaf.path for leaf in found if not leaf.meaning] == []


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_changes_fine_tuning(key, tuned):
    before, change = pair(KEYS[key])
    assert tuned(before, change) != tuned(before)


@pytest.mark.parametrize("key", OVER_DEVICES)
def test_a_changed_key_changes_fine_tuning_over_devices(key, tiny_store, tmp_path):
    parts = {"before": {}, "after": OVER_DEVICES[key]}.items()
    found = [on_ranks(computed, 2, tiny_store, tmp_path / part, {**BASE, **change}) for part, change in parts]
    assert found[0] != found[1]
