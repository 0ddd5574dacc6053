"""What holds for every method of one projector: exact over ranks and resumes, refused in one line, seen collapsing.

And for every method that there is: a kill changes no bit.
"""

import json

import numpy as np
import pytest
import torch
from test_equimod import ON_BYOL, ON_SIMCLR
from test_simclr import SIMCLR

from kills import kill_in_process
from many_ranks import on_ranks
from runs import StopAfter, compute_in, equal_states, on_cpu, state_of, train
from selfsup.augment import build_views
from selfsup.bands import collapsed
from selfsup.engine.distributed import Ranks
from selfsup.methods import build_method
from selfsup.recipe import RecipeError, load_recipe
from selfsup.settings.registries import METHODS
from selfsup.training.pretraining import Pretraining, Run
from tiny import BLOCKS, TINY, with_method

pytestmark = pytest.mark.usefixtures("shallow")

STEPS = 7  # the warm-up's five, in the first of which the rate is 0, and two more


def _weights_of_all(ranks: Ranks, store, folder) -> dict[str, list[float]]:
    """For each method the weights and running statistics after some steps in float64, on these ranks."""
    found = {}
    for name in BLOCKS:
        recipe = load_recipe("digits", with_method(name))
        training = Pretraining(Run(recipe, 0, 1, store, folder, on_cpu(ranks, threads=1), 60))
        compute_in(torch.float64, training)
        for step in range(STEPS):
            training.train_step(training.batches[step])
        state = training.method.state_dict()
        found[name] = torch.cat([value.double().flatten() for value in state.values()]).tolist()
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_many_ranks_train_as_one_does(tiny_store, tmp_path, size):
    """float64, to 1e-9 relative, equal to the bit between the ranks."""
    wanted = _weights_of_all(Ranks(), tiny_store, tmp_path)
    first, *others = on_ranks(_weights_of_all, size, tiny_store, tmp_path)
    assert all(other == first for other in others)
    for name in BLOCKS:
        one, many = (torch.tensor(found[name], dtype=torch.float64) for found in (wanted, first))
        assert (one - many).norm() < 1e-9 * one.norm(), name


@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_stopped_in_mid_epoch_and_continued_to_the_bit(tiny_store, tmp_path, name):
    runs = {}
    for part in ("whole", "parts"):
        (tmp_path / part).mkdir()
        runs[part] = Run(load_recipe("digits", with_method(name)), 0, 1, tiny_store, tmp_path / part, on_cpu(), 60)
    assert train(runs["whole"], 4)
    assert not train(runs["parts"], 2, stop=StopAfter(3)) and train(runs["parts"], 2, 4)
    assert equal_states(*map(state_of, runs.values()))


EVERY = {
    "byol": TINY,
    "simclr": SIMCLR,
    "equimod on simclr": ON_SIMCLR,
    "equimod on byol": ON_BYOL,
    **{name: with_method(name) for name in BLOCKS},
}


LONGER = [pytest.param(name, marks=pytest.mark.long) for name in EVERY if name not in ("byol", "vicreg")]


@pytest.mark.parametrize("name", ["byol", "vicreg", *LONGER])
def test_a_process_that_is_killed_in_mid_epoch_is_continued_by_another_to_the_bit(tiny_store, tmp_path, name):
    """A real SIGKILL, after 7 or 8 of 10 steps. What the process had written is gone on with."""
    overrides, runs = {**EVERY[name], "epochs": 2}, {}
    for part in ("whole", "killed"):
        (tmp_path / part).mkdir()
        runs[part] = Run(load_recipe("digits", overrides), 0, 1, tiny_store, tmp_path / part, on_cpu(), 60)
    kill_in_process(overrides, tiny_store, tmp_path / "killed", step=7)
    assert train(runs["whole"], 2) and train(runs["killed"], 2)
    whole, killed = (state_of(run, 2) for run in runs.values())
    assert equal_states(whole, killed) and [one["start_step"] for one in whole["attempts"]] == [0]
    before, after = (one["start_step"] for one in killed["attempts"])
    assert before == 0 < after < 10


def test_every_method_is_killed():
    own = {name for name in METHODS if METHODS[name].__module__.startswith("selfsup.")}
    assert {name.split()[0] for name in EVERY} == own


@pytest.mark.parametrize("name", BLOCKS)
def test_views_that_cannot_be_paired_are_one_line(name):
    overrides, views = with_method(name), load_recipe("digits")["augment"]["views"]
    with pytest.raises(RecipeError, match=rf"augment\.views has 3 views, wanted 2 for {name}"):
        load_recipe("digits", {**overrides, "augment": {**overrides["augment"], "views": [*views, views[0]]}})
    with pytest.raises(RecipeError, match=rf"augment\.views have different sizes, wanted one size for {name}"):
        load_recipe("digits", {**overrides, "augment": {**overrides["augment"], "views": {0: {"size": 6}}}})


@pytest.mark.parametrize("name", BLOCKS)
def test_projections_of_one_point_are_below_the_floors_and_fresh_ones_above(name):
    """Whatever the encoder; and looking changes nothing."""
    recipe = load_recipe("digits", with_method(name))
    method = build_method(recipe, seed=0, total_steps=20)
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (40, 3, 12, 12), np.uint8))
    views = build_views(recipe, 12)(images, seed=0, epoch=0, indices=np.arange(40))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    assert collapsed(method.health(views), method.floors) == []
    assert all(value.equal(before[key]) for key, value in method.state_dict().items())
    last = [layer for layer in method.networks["projector"] if isinstance(layer, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    below = {one.figure for one in collapsed(method.health(views), method.floors)}
    assert "projection_rank" in below and below <= {"projection_rank", "projection_spread", "projection_deviation"}
    assert len(below) == (1 if name == "barlow_twins" else 2)


def test_vicreg_without_its_variance_collapses_and_is_seen(tiny_store, tmp_path):
    recipe = load_recipe("digits", with_method("vicreg", variance=0.0))
    assert train(Run(recipe, 0, 1, tiny_store, tmp_path, on_cpu(), 60), 4)
    card = json.loads((tmp_path / "epoch_0004.json").read_text())
    assert "projection_deviation" in {one.figure for one in collapsed(card["health"], card["floors"])}
