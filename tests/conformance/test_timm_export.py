"""A timm encoder's file in plain timm, and what its card tells."""

import json

import pytest
import timm
import torch

from export_encoder import trained_encoder
from runs import on_cpu, train
from selfsup.errors import UserError
from selfsup.evaluation import encoder as encoder_module
from selfsup.evaluation.encoder import check_same_features, encoder_card, load_encoder, save_encoder
from selfsup.layout import boundary_name
from selfsup.models import initial_backbone
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Run
from tiny import DROPPING_VIT, VIT, with_timm

RECIPES = {
    "transformer with drop-path": DROPPING_VIT,
    "transformer of fixed patches": {
        **VIT,
        "model": {**VIT["model"], "positions": "sin_cos", "freeze_patch_projection": True},
    },
    "batch norm": with_timm("test_resnet"),
    "batch norm with its activation, another eps": with_timm("test_byobnet", batch_norm={"eps": 1e-3}),
}


def lively(backbone):
    """Weights and batch norms as after a training, so that a layer that was mixed up shows."""
    for name, value in backbone.state_dict().items():
        if value.dim() == 1:
            value.uniform_(0.5, 1.5) if "var" in name or "weight" in name else value.normal_(0, 0.3)
    return backbone.eval()


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_the_lines_of_the_card_load_the_file_into_timm_with_equal_features(overrides, tmp_path, monkeypatch):
    recipe, path = load_recipe("digits", overrides), tmp_path / "encoder.safetensors"
    backbone = lively(initial_backbone(recipe, 0))
    save_encoder(path, backbone, encoder_card("a test", recipe, 0))
    check_same_features(path, backbone, recipe)
    card = json.loads(path.with_suffix(".json").read_text())
    assert "torchvision" not in card and card["versions"]["timm"] == timm.__version__
    monkeypatch.chdir(tmp_path)
    names = {}  # the lines import what they need
    exec("\n".join(card["timm"]), names)
    assert type(names["network"]).__module__.startswith("timm.models.")
    pictures = torch.rand(2, 3, recipe["augment"]["size"], recipe["augment"]["size"])
    mean, std = (torch.tensor(recipe["augment"][key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        features = names["network"](names["normalise"](pictures))
        assert torch.equal(features, backbone((pictures - mean) / std))
    loaded, _ = load_encoder(path, recipe)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), backbone(pictures))


def test_a_trained_encoder_is_exported_under_timms_names(tiny_store, tmp_path):
    recipe, path = load_recipe("digits", DROPPING_VIT), tmp_path / "encoder.safetensors"
    run = Run(recipe, 0, 1, tiny_store, tmp_path, on_cpu(), 60)
    assert train(run, 4)
    encoder, training = trained_encoder(tmp_path / boundary_name(4), recipe, 0)
    save_encoder(path, encoder, encoder_card("a test", recipe, 0))
    check_same_features(path, encoder, recipe)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **recipe.model.arguments)
    assert plain.state_dict().keys() == encoder.state_dict().keys()
    assert training["numerics"]["timm"] == timm.__version__


def test_a_file_whose_features_differ_in_timm_is_refused(tmp_path, monkeypatch):
    recipe, path = load_recipe("digits", RECIPES["batch norm"]), tmp_path / "encoder.safetensors"
    backbone = lively(initial_backbone(recipe, 0))
    save_encoder(path, backbone, encoder_card("a test", recipe, 0))
    wrong = load_recipe("digits", with_timm("test_resnet", batch_norm={"eps": 1e-2}))
    twin = encoder_module.models.timm_twin(wrong)
    monkeypatch.setattr(encoder_module.models, "timm_twin", lambda recipe: twin)
    with pytest.raises(UserError, match=r"in timm's network the file's features differ"):
        check_same_features(path, backbone, recipe)


def test_an_encoder_of_another_model_is_refused_in_one_line(tmp_path):
    recipe, path = load_recipe("digits", RECIPES["batch norm"]), tmp_path / "encoder.safetensors"
    save_encoder(path, initial_backbone(recipe, 0), encoder_card("a test", recipe, 0))
    with pytest.raises(UserError, match=r"does not fit the recipe's timm/vit_tiny_patch16_224 \(") as told:
        load_encoder(path, load_recipe("digits", DROPPING_VIT))
    assert "\n" not in str(told.value)
