"""A method is one file, its name and its block in the schema: SimSiam with a memory of its own."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.methods import METHODS
from selfsup.methods.byol import byol_loss
from selfsup.methods.health import alignment, encoder_floors, evaluation_mode, feature_spread
from selfsup.models import build_backbone, build_head, configure_batch_norm, seeded_weights
from selfsup.optim import parameter_treatments
from selfsup.recipe import RecipeError, load_recipe, pretraining_part
from selfsup.schema import read_schema
from selfsup.training.pretraining import Run
from tiny import TINY

HEAD = {"hidden": 16, "out": 8, "bias_before_bn": False, "bias_last": True}


class SimSiam:
    """Chen and He 2021: no target, the gradient stopped; and a centre that follows the projections, to be kept."""

    def __init__(self, recipe, *, seed, total_steps):
        self._recipe, self._settings, self._total_steps = recipe, recipe["simsiam"], total_steps
        norm = recipe["model"]["batch_norm"]
        with seeded_weights(seed, 0):
            backbone = build_backbone(recipe)
            projector = build_head(backbone.out_features, self._settings["projector"], norm)
            predictor = build_head(HEAD["out"], self._settings["predictor"], norm)
        self.networks = nn.ModuleDict({"backbone": backbone, "projector": projector, "predictor": predictor})
        self.floors = encoder_floors(backbone.out_features)
        self._centre = torch.zeros(HEAD["out"])

    def connect(self, ranks):
        configure_batch_norm(self.networks, groups=1, ranks=ranks)

    def parameter_groups(self):
        return parameter_treatments(self.networks, self._recipe["optimizer"])

    def schedules(self, step):
        return {"pull": self._settings["pull"] * step / self._total_steps}

    def before_step(self, step):
        pass

    def loss(self, views, step, ranks):
        projections = self.networks["projector"](self.networks["backbone"](torch.cat(tuple(views))))
        predictions, wanted = self.networks["predictor"](projections), projections.detach() - self._centre
        (one, two), (first, second) = predictions.chunk(2), wanted.chunk(2)
        self._centre.lerp_(projections.detach().float().mean(0), self.schedules(step)["pull"])
        length = projections.detach().norm(dim=1).mean()
        return (byol_loss(one, second) + byol_loss(two, first)) / 2, {"projection_length": length}

    def after_step(self, step):
        pass

    def encoder(self):
        return self.networks["backbone"]

    def health(self, views):
        with evaluation_mode(self.networks):
            first, second = (self.networks["backbone"](view) for view in views)
        return {"feature_spread": feature_spread(first), "alignment": alignment(first, second)}

    def state_dict(self):
        return {**self.networks.state_dict(), "centre": self._centre}

    def load_state_dict(self, state):
        state = dict(state)
        self._centre.copy_(state.pop("centre"))
        self.networks.load_state_dict(state, strict=True)


@pytest.fixture
def simsiam(monkeypatch):
    """What a user adds beside the file: an entry in METHODS, in the schema a name and a block; and overrides."""
    schema = copy.deepcopy(read_schema("recipe"))
    schema["properties"]["method"]["enum"].append("simsiam")
    head = {"$ref": "#/$defs/head"}
    block = {"projector": head, "predictor": head, "pull": {"type": "number"}}
    schema["properties"]["simsiam"] = {
        "type": "object",
        "additionalProperties": False,
        "required": [*block],
        "properties": block,
    }
    for module in ("selfsup.schema", "selfsup.recipe"):
        monkeypatch.setattr(f"{module}.read_schema", lambda name: schema)
    monkeypatch.setitem(METHODS, "simsiam", SimSiam)
    own = {"method": "simsiam", "simsiam": {"projector": HEAD, "predictor": HEAD, "pull": 0.5}}
    return {**{key: value for key, value in TINY.items() if key != "byol"}, **own}


def test_it_trains_is_stopped_in_mid_epoch_and_continues_to_the_bit(simsiam, tiny_store, tmp_path):
    recipe = load_recipe("digits", simsiam)
    assert "byol" not in recipe and "byol" not in pretraining_part(recipe)
    whole, parts = (Run(recipe, 0, 1, tiny_store, tmp_path / name, on_cpu(), 60) for name in ("whole", "parts"))
    for run in (whole, parts):
        run.folder.mkdir()
    assert train(whole, 4)
    assert not train(parts, 2, stop=StopAfter(3)) and train(parts, 2, 4)
    states = [state_of(run) for run in (whole, parts)]
    assert equal_states(*states) and states[0]["method"]["centre"].abs().sum() > 0
    history = pd.read_csv(whole.folder / "history.csv")
    assert history["pull"].iloc[-1] > history["pull"].iloc[0] and (history["projection_length"] > 0).all()
    assert {"feature_spread", "alignment"} <= set(history) and "tau" not in history


def test_the_block_is_wanted_by_its_method_and_by_no_other(simsiam):
    with pytest.raises(RecipeError, match=r"method is 'simsiam', wanted the block of that name .* found byol"):
        load_recipe("digits", {"method": "simsiam"})
    with pytest.raises(RecipeError, match="'simsiam' names no recipe key"):
        load_recipe("digits", {"simsiam": simsiam["simsiam"]})
    with pytest.raises(RecipeError, match="simsiam lacks the key 'pull'"):
        load_recipe("digits", {**simsiam, "simsiam": {"projector": HEAD, "predictor": HEAD}})
