"""A method that looks at all that a batch has: views of two sizes, the unaugmented picture, labels, places, draws."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from many_ranks import on_ranks
from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.methods import Method, Output
from selfsup.models import build_backbone, build_head, seeded_weights
from selfsup.models.head_settings import HeadSettings
from selfsup.recipe import load_recipe
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings
from selfsup.training.pretraining import Run
from tiny import TINY

pytestmark = pytest.mark.usefixtures("shallow")

HEAD = {"hidden": 16, "out": 8, "bias_before_bn": False, "bias_last": True}
PLAIN = {"resize": 11, "crop": 10, "interpolation": "bilinear"}
IMAGES = 43  # of the tiny store


class LooksSettings(Settings):
    projector: HeadSettings


class Looks(Method):
    """Pulls views to their unaugmented picture, those mirrored and cut far from the middle harder; learns labels too.

    It counts how often it has seen each image, on all ranks together.
    """

    def __init__(self, settings, context):
        super().__init__(settings, context)
        with seeded_weights(context.seed, 0):
            backbone = build_backbone(context.recipe)
            projector = build_head(backbone.out_features, settings.projector, context.recipe.model.batch_norm)
        self.networks = nn.ModuleDict({"backbone": backbone, "projector": projector})
        self._seen, self._now = torch.zeros(IMAGES), torch.zeros(IMAGES)

    def _projected(self, pictures):
        return normalize(self.networks["projector"](self.networks["backbone"](pictures)), dim=1)

    def loss(self, batch, step):
        assert [view.shape[1:] for view in batch.views] == [(3, 8, 8), (3, 6, 6)]
        assert batch.plain.shape == (len(batch.indices), 3, 10, 10)
        anchors = self._projected(batch.plain)
        total = cross_entropy(anchors[:, :3], batch.labels)
        for view, drawn in zip(batch.views, batch.parameters.views, strict=True):
            drawn = drawn.tensors(view.device)
            middle = (drawn["boxes"][:, :2] + drawn["boxes"][:, 2:] / 2) / drawn["sizes"] - 0.5
            weight = 1 + middle.abs().sum(1) + drawn["flip"] + drawn["sigma"]
            total = total + (weight * (self._projected(view) - anchors.detach()).square().sum(1)).mean()
        self._now = self._now.index_add(0, batch.places, torch.ones(len(batch.indices)))
        return Output(total, {"mirrored": drawn["flip"].float().mean()})

    def after_step(self, step):
        self._seen = self._seen + self.context.ranks.all_reduce(self._now)
        self._now = torch.zeros(IMAGES)

    def encoder(self):
        return self.networks["backbone"]

    def state_dict(self):
        return {**self.networks.state_dict(), "seen": self._seen}

    def load_state_dict(self, state):
        state = dict(state)
        self._seen = state.pop("seen")
        self.networks.load_state_dict(state, strict=True)


OWN = {"method": "looks", "looks": {"projector": HEAD}}
VIEWS = {0: {"flip": 0.5}, 1: {"flip": 0.5, "size": 6}}
OVERRIDES = {
    **{key: value for key, value in TINY.items() if key != "byol"},
    **OWN,
    "augment": {"size": 8, "plain": PLAIN, "views": VIEWS},
}


def add_method(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(METHODS.classes, "looks", LooksSettings)
    patch.setitem(METHODS.components, "looks", f"{__name__}:Looks")


def run_of(folder, store, compute, **changes) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(load_recipe("digits", {**OVERRIDES, **changes}), 0, 1, store, folder, compute, 60)


def whole_and_stopped(folder, store, compute, **changes) -> list[dict]:
    """The last checkpoints of a run and of one that was stopped in mid-epoch, and went on."""
    whole, parts = (run_of(folder / name, store, compute, **changes) for name in ("whole", "parts"))
    assert train(whole, 4)
    assert not train(parts, 2, stop=StopAfter(3)) and train(parts, 2, 4)
    return [state_of(run) for run in (whole, parts)]


LONGER = [pytest.param(*one, marks=pytest.mark.long) for one in ((1, 0), (2, 0))]


@pytest.mark.parametrize(("micro_batches", "workers"), [(1, 2), *LONGER])
def test_it_trains_is_stopped_in_mid_epoch_and_continues_to_the_bit(
    monkeypatch, tiny_store, tmp_path, micro_batches, workers
):
    add_method(monkeypatch)
    states = whole_and_stopped(tmp_path, tiny_store, on_cpu(workers=workers), micro_batches=micro_batches)
    assert equal_states(*states)
    assert states[0]["method"]["seen"].sum() == 4 * 5 * 8  # epochs, steps, images
    history = pd.read_csv(tmp_path / "whole" / "history.csv")
    assert history["loss"].notna().all() and 0.2 < history["mirrored"].mean() < 0.8
    assert {"feature_spread", "alignment"} <= set(history)


def _train_on_ranks(ranks, store, folder) -> tuple:
    with pytest.MonkeyPatch.context() as patch:
        add_method(patch)
        states = whole_and_stopped(folder, store, on_cpu(ranks, threads=1))
        return equal_states(*states), states[0]["method"]["seen"].tolist()


@pytest.mark.long
def test_on_two_ranks_it_continues_to_the_bit_and_sees_the_images_that_one_would(monkeypatch, tiny_store, tmp_path):
    add_method(monkeypatch)
    alone = run_of(tmp_path / "alone", tiny_store, on_cpu())
    assert train(alone, 4)
    first, second = on_ranks(_train_on_ranks, 2, tiny_store, tmp_path)
    assert first == second == (True, state_of(alone)["method"]["seen"].tolist())
