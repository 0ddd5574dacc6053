"""MoCo v3's vision transformer, and methods that train one with AdamW: backbone and optimiser are free."""

import math

import numpy as np
import pytest
import torch

from many_ranks import on_ranks
from runs import StopAfter, compute_in, on_cpu, state_of, train
from selfsup.engine.distributed import Ranks
from selfsup.errors import PermanentError
from selfsup.models import build_backbone, initial_backbone
from selfsup.models.fixed_patches import sin_cos_positions
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Pretraining, Run
from tiny import SMALL_VIT, VIT, with_method, with_timm

ADAMW = {"name": "adamw", "peak_lr": 0.001, "weight_decay": 0.1, "exclude_from_weight_decay": [], "warmup_epochs": 1}
ADAMW = {"optimizer": {**ADAMW, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}}
FIXED = {"positions": "sin_cos", "freeze_patch_projection": True}
MOCO_VIT = with_timm("vit_tiny_patch16_224", arguments={**SMALL_VIT, "weight_init": "moco"}, **FIXED)
TRANSFORMERS = {
    "byol": {**VIT, **ADAMW},
    **{name: {**with_method(name, MOCO_VIT), **ADAMW} for name in ("moco_v3", "simsiam", "vicreg")},
}


def test_positions_are_sines_and_cosines_of_row_and_column():
    """vits.py, patch by patch and channel by channel in float64; float32's angles of up to 13 are right to 1e-6."""
    height, width, channels = 14, 9, 48
    found = sin_cos_positions(height, width, channels).double().numpy()
    for patch in range(height * width):
        for number in range(channels // 4):
            frequency = 10_000 ** (-number / (channels // 4))
            angles = [place * frequency for place in divmod(patch, width)]
            wanted = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
            ours = found[patch].reshape(4, channels // 4)[:, number]
            assert ours == pytest.approx(wanted, abs=2e-6)


def test_the_transformer_has_the_official_codes_shape_and_initial_weights():
    """ViT-S/16 of 12 heads: 21,665,664 numbers, of which positions and the projection of patches do not learn."""
    backbone = initial_backbone(load_recipe("moco_v3_vit_small_imagenet"), 0)
    numbers = {name: p.numel() for name, p in backbone.named_parameters()}
    learned = {name: p.numel() for name, p in backbone.named_parameters() if p.requires_grad}
    assert sum(numbers.values()) == 21_665_664 and backbone.out_features == 384
    assert numbers.keys() - learned.keys() == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert sum(learned.values()) == 21_665_664 - 197 * 384 - (3 * 16 * 16 + 1) * 384
    assert {block.attn.num_heads for block in backbone.blocks} == {12} and backbone.norm.eps == 1e-6
    bounds = {
        "blocks.3.attn.qkv": math.sqrt(6 / (384 + 384)),  # q, k, v apart
        "blocks.3.attn.proj": math.sqrt(6 / (384 + 384)),
        "blocks.3.mlp.fc1": math.sqrt(6 / (384 + 1536)),
        "patch_embed.proj": math.sqrt(6 / (3 * 16 * 16 + 384)),
    }
    for name, bound in bounds.items():
        layer = backbone.get_submodule(name)
        assert 0.999 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
    assert 0 < backbone.cls_token.abs().max() < 1e-5
    assert not backbone.pos_embed[0, 0].any() and torch.equal(backbone.pos_embed[0, 1:], sin_cos_positions(14, 14, 384))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("resnet10t", {"freeze_patch_projection": True}, "timm/resnet10t has no projection of patches"),
        ("resnet10t", {"positions": "sin_cos"}, "timm/resnet10t has no projection of patches"),
        ("vit_tiny_patch16_224", {"positions": "sin_cos", "arguments": {"pos_embed": "none"}}, "has no learned posit"),
    ],
)
def test_a_model_without_such_parts_is_one_line(name, settings, words):
    with pytest.raises(PermanentError, match=words) as told:
        build_backbone(load_recipe("digits", with_timm(name, **settings)))
    assert "\n" not in str(told.value)


@pytest.fixture
def run(tiny_store, tmp_path):
    def make(name: str, folder: str = "run") -> Run:
        (tmp_path / folder).mkdir()
        recipe = load_recipe("digits", TRANSFORMERS[name])
        return Run(recipe, 0, 1, tiny_store, tmp_path / folder, on_cpu(), 60)

    return make


def test_what_is_fixed_stays_and_all_else_learns(run):
    training = Pretraining(run("moco_v3"))
    before = {name: p.detach().clone() for name, p in training.method.networks.named_parameters()}
    for step in range(7):
        training.train_step(training.batches[step])
    moved = {name for name, p in training.method.networks.named_parameters() if not torch.equal(p, before[name])}
    fixed = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    whole = {f"{where}backbone.{name}" for where in ("", "momentum.") for name in fixed}
    still = before.keys() - moved
    # The last batch norms without affine have a scale and a shift that do not learn either.
    assert {name for name in still if "backbone" in name} == whole
    assert {one.weight_decay for one in training.treatments} == {0.1}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_with_adamw_is_stopped_in_mid_epoch_and_continued_to_the_bit(run, name):
    whole, parts = run(name, "whole"), run(name, "parts")
    assert train(whole, 2)
    assert not train(parts, 1, 2, stop=StopAfter(3)) and train(parts, 2)
    one, other = state_of(whole, 2), state_of(parts, 2)
    assert all(one["method"][key].equal(value) for key, value in other["method"].items())
    for key, buffers in one["optimizer"]["state"].items():
        assert all(buffers[name].equal(value) for name, value in other["optimizer"]["state"][key].items())


def _weights_of_all(ranks: Ranks, store, folder) -> dict[str, list[float]]:
    found = {}
    for name in ("byol", "moco_v3"):
        recipe = load_recipe("digits", TRANSFORMERS[name])
        training = Pretraining(Run(recipe, 0, 1, store, folder, on_cpu(ranks, threads=1), 60))
        compute_in(torch.float64, training)
        for step in range(6):
            training.train_step(training.batches[step])
        found[name] = np.concatenate([v.double().flatten() for v in training.method.state_dict().values()]).tolist()
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_many_ranks_train_a_transformer_as_one_does(tiny_store, tmp_path, size):
    """float64. AdamW divides by the root of squared gradients: where those are rounding alone, as of a bias before a
    batch norm, a step is of any sign; hence 1e-7 of all weights, not 1e-9."""
    wanted = _weights_of_all(Ranks(), tiny_store, tmp_path)
    for found in on_ranks(_weights_of_all, size, tiny_store, tmp_path):
        for name, weights in wanted.items():
            error = np.linalg.norm(np.subtract(found[name], weights)) / np.linalg.norm(weights)
            assert error < 1e-7, (name, error)
