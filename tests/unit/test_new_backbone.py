"""A backbone that is added as docs/extend.md says, from outside the package."""

from typing import Literal

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.evaluation.encoder import check_same_features, encoder_card, load_encoder, save_encoder
from selfsup.models import BatchNorm, initial_backbone
from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.recipe import Recipe, load_recipe
from selfsup.settings.notes import Count
from selfsup.settings.registries import BACKBONES
from selfsup.settings.typed import Settings
from selfsup.training.pretraining import Run
from tiny import TINY


class MineSettings(Settings):
    backbone: Literal["mine"]
    """the network"""
    width: Count
    """channels"""
    batch_norm: BatchNormSettings


class Mine(nn.Module):
    """A convolution, batch norm, dropout and an average."""

    def __init__(self, width: int):
        super().__init__()
        layers = nn.Conv2d(3, width, 3), BatchNorm(width), nn.ReLU(), nn.Dropout(0.5)
        self.layers, self.out_features, self.again = nn.Sequential(*layers), width, False

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.again = enable

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        maps = checkpoint(self.layers, pictures, use_reentrant=False) if self.again else self.layers(pictures)
        return maps.mean((2, 3))


def mine(recipe: Recipe) -> nn.Module:
    return Mine(recipe.model.width)


@pytest.fixture
def recipe(forgotten) -> Recipe:
    BACKBONES.add("mine", builds=f"{__name__}:mine")(MineSettings)
    return load_recipe("digits", {**TINY, "model": {"backbone": "mine", "width": 6}})


def run_of(folder, recipe, store, **switches) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(recipe, 0, 1, store, folder, on_cpu(**switches), 60)


def test_it_trains_with_dropout_is_stopped_and_continued_to_the_bit(recipe, tiny_store, tmp_path):
    whole, parts = (run_of(tmp_path / name, recipe, tiny_store) for name in ("whole", "parts"))
    assert train(whole, 4)
    assert not train(parts, 2, stop=StopAfter(3)) and train(parts, 2, 4)
    assert equal_states(state_of(whole), state_of(parts))


def test_its_own_switch_recomputes_with_the_same_bits(recipe, tiny_store, tmp_path):
    runs = [run_of(tmp_path / str(switch), recipe, tiny_store, recompute=switch) for switch in (False, True)]
    assert all(train(run, 2) for run in runs)
    assert equal_states(*(state_of(run, 2) for run in runs))


def test_its_file_is_read_back_and_its_card_names_no_twin(recipe, tmp_path):
    path, encoder = tmp_path / "encoder.safetensors", initial_backbone(recipe, 0).eval()
    save_encoder(path, encoder, encoder_card("a test", recipe, 0))
    check_same_features(path, encoder, recipe)
    loaded, card = load_encoder(path, recipe)
    assert isinstance(loaded, Mine) and not {"torchvision", "timm"} & set(card)
