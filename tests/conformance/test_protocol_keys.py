"""Every key of a protocol changes what is computed. A new key or task without an entry here fails the first test."""

import hashlib
import json
from functools import cache

import pytest

from frozen import PROTOCOLS, VIEW, judged_of, run
from selfsup.recipe import canonical
from selfsup.settings.described import leaves
from selfsup.settings.registries import TASKS

FEATURES = {
    "test": {"test": None},
    "test.resize": {"test": {**VIEW, "resize": 11}},
    "test.crop": {"test": {**VIEW, "crop": 7}},
    "test.interpolation": {"test": {**VIEW, "interpolation": "bilinear"}},
    "precision": {"precision": "float16"},
}
# By task, a change of each key.
KEYS = {
    "knn": {**FEATURES, "neighbours": {"neighbours": [3, 5]}, "temperature": {"temperature": 0.5}},
    "logistic": {
        **FEATURES,
        "range": {"range": [1e-2, 10.0]},
        "strengths": {"strengths": 4},
        "validation": {"validation": 0.4},
        "tolerance": {"tolerance": 1e-3},
    },
}
# The keys of the linear evaluation are a recipe's: test_recipe_keys.py; of fine-tuning: test_tuning_keys.py.
ELSEWHERE = {"linear", "fine_tune"}
ALL = [(task, key) for task, keys in KEYS.items() for key in keys]


def test_every_key_has_an_entry_here_and_a_meaning():
    found = {task: list(leaves(settings)) for task, settings in TASKS.items() if task not in ELSEWHERE}
    assert {task: {leaf.path for leaf in keys} for task, keys in found.items()} == {t: set(k) for t, k in KEYS.items()}
    assert [leaf.path for keys in found.values() for leaf in keys if not leaf.meaning] == []


@pytest.fixture(scope="module")
def computed(shallow, tiny_recipe, tiny_store, tmp_path_factory):
    """A function of a task and of changes: the digest of its rows and of what it has computed."""
    recipe = {**tiny_recipe, "linear": tiny_recipe["linear"].changed(test={**VIEW, "resize": 12})}

    @cache
    def known(task: str, changes: str) -> str:
        done = run(task, judged_of(recipe, tiny_store), tmp_path_factory.mktemp("task"), **json.loads(changes))
        parts = [done._last.weight, done._last.bias] if task == "logistic" else [one.cosines for one in done.blocks]
        votes = [one.votes(3, 3, done.settings.temperature) for one in getattr(done, "blocks", [])]
        hashed = hashlib.sha256(repr((done.rows, done.figures())).encode())
        for part in [*parts, *votes]:
            hashed.update(part.contiguous().numpy().tobytes())
        return hashed.hexdigest()

    return lambda task, changes: known(task, canonical(changes))


@pytest.mark.parametrize(("task", "key"), ALL)
def test_a_changed_key_changes_what_is_computed(task, key, computed):
    assert computed(task, KEYS[task][key]) != computed(task, {})


@pytest.mark.parametrize("task", KEYS)
def test_unchanged_keys_change_nothing(task, computed):
    """So that a difference above is the key's. What is given is what stands there already."""
    assert computed(task, {"test": PROTOCOLS[task]["test"]}) == computed(task, {})
