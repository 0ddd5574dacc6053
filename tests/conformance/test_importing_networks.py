"""Weights of torchvision's and timm's networks, and state dicts from elsewhere: features against the plain networks."""

import argparse
import os
import pickle
import subprocess

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from selfsup.config import Published, check_config
from selfsup.errors import UserError
from selfsup.evaluation.encoder import load_encoder
from selfsup.importing import imported_backbone
from selfsup.recipe import canonical, load_recipe
from selfsup.settings.typed import read
from selfsup.settings.yaml_reader import read_yaml
from selfsup.tables.figure_keys import figure_keys

SIZE = 32
SIZES = {"augment": {"size": SIZE}, "linear": {"test": {"resize": SIZE + 2, "crop": SIZE}}}


def recipe_with(publisher, backbone, name="imagenet", **model):
    block = read(Published, {"publisher": publisher, "path": "weights", "backbone": backbone}, "published").model
    return load_recipe(name, {**SIZES, "model": {**block, **model}})


def shaken(network):
    """Give a network running statistics, which are 0 and 1 at first, and so are wrong unseen."""
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and "running" in name:
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def same_features(encoder, network):
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        return torch.equal(encoder(pictures), network(pictures))


def torchvision_network(name):
    network = shaken(getattr(torchvision.models, name)())
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    network.fc = torch.nn.Identity()
    return network, weights


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_torchvisions_weights_give_torchvisions_features(tmp_path, name, kind):
    network, weights = torchvision_network(name)
    path = tmp_path / f"weights.{kind}"
    save_file(weights, path) if kind == "safetensors" else torch.save(weights, path)
    encoder, published = imported_backbone(path, "torchvision", recipe_with("torchvision", name, "cifar10"))
    assert same_features(encoder, network)
    assert published.facts == {"prefix": "", "left_out": ["fc.bias", "fc.weight"]}


def test_files_without_counted_batches_are_whole_as_torchvisions_old_ones_are(tmp_path):
    network, weights = torchvision_network("resnet18")
    torch.save({name: one for name, one in weights.items() if "num_batches" not in name}, tmp_path / "old.pth")
    encoder, _ = imported_backbone(tmp_path / "old.pth", "torchvision", recipe_with("torchvision", "resnet18"))
    assert same_features(encoder, network)


@pytest.mark.parametrize(
    ("name", "more", "left_out"),
    [
        ("test_vit", {"arguments": {"img_size": SIZE}}, ["head.bias", "head.weight"]),
        ("test_convnext", {}, ["head.fc.bias", "head.fc.weight"]),
        ("test_resnet", {}, ["fc.bias", "fc.weight"]),
        ("test_efficientnet", {}, ["classifier.bias", "classifier.weight"]),
    ],
)
def test_timms_weights_give_timms_features(tmp_path, name, more, left_out):
    network = shaken(timm.create_model(name, **more.get("arguments", {})))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    recipe = recipe_with("timm", name, **more)
    encoder, published = imported_backbone(tmp_path / "model.safetensors", "timm", recipe)
    network.reset_classifier(0)
    assert same_features(encoder, network)
    assert published.facts["left_out"] == left_out


def test_a_batch_norm_of_another_eps_is_refused(tmp_path):
    """The recipe's eps would be taken instead of the model's, and the features be others."""
    name = "tf_mobilenetv3_small_minimal_100"
    network = shaken(timm.create_model(name))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"eps is 1e-05, but timm/tf_mobile\w+ is made with 0\.001: set overrides"):
        imported_backbone(tmp_path / "model.pth", "timm", recipe_with("timm", name))
    recipe = recipe_with("timm", name, batch_norm={"eps": 0.001})
    encoder, _ = imported_backbone(tmp_path / "model.pth", "timm", recipe)
    network.reset_classifier(0)
    assert same_features(encoder, network)


def in_a_checkpoint(weights, *prefixes):
    """As MoCo and DINO save it: the networks of a method with their heads, and an optimiser's state."""
    networks = {f"{prefix}{name}": one for prefix in prefixes for name, one in weights.items()}
    heads = {f"{prefix}fc.2.weight": torch.zeros(2, 2) for prefix in prefixes}
    return {"epoch": 200, "arch": "resnet18", "state_dict": {**networks, **heads}, "optimizer": {"state": {0: {}}}}


def test_a_state_dict_is_found_under_its_prefix(tmp_path):
    network, weights = torchvision_network("resnet18")
    path, recipe = tmp_path / "moco.pth.tar", recipe_with("state_dict", "resnet18")
    torch.save(in_a_checkpoint(weights, "module.encoder."), path)
    encoder, published = imported_backbone(path, "state_dict", recipe)
    assert same_features(encoder, network)
    assert published.facts["prefix"] == "state_dict.module.encoder."
    torch.save(in_a_checkpoint(weights, "module.encoder_q.", "module.encoder_k."), path)
    with pytest.raises(UserError, match=r"prefixes state_dict\.\w+\.encoder_k\., state_dict\.\w+\.encoder_q\.: set"):
        imported_backbone(path, "state_dict", recipe)
    encoder, _ = imported_backbone(path, "state_dict", recipe, "state_dict.module.encoder_q.")
    assert same_features(encoder, network)


def test_a_stated_backbone_has_its_own_stem_and_width(tmp_path):
    recipe = load_recipe("cifar10", {"model": {"width": 8}})
    from selfsup.models import build_backbone

    backbone = shaken(build_backbone(recipe))
    torch.save(backbone.state_dict(), tmp_path / "mine.pt")
    encoder, _ = imported_backbone(tmp_path / "mine.pt", "state_dict", recipe)
    assert same_features(encoder, backbone)


class Evil:
    def __reduce__(self):
        return os.system, ("touch sign",)


def test_files_that_do_not_suit_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, weights = torchvision_network("resnet18")
    _, deeper = torchvision_network("resnet34")

    def error(content, backbone="resnet18", prefix=None, name="weights.pth"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(UserError, match=str(path)) as caught:
            imported_backbone(path, "torchvision", recipe_with("torchvision", backbone), prefix)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no state dict that can be read" in error(b"nothing")
    assert "no state dict that can be read" in error(b"nothing", name="weights.safetensors")
    assert "git lfs pull" in error(b"version https://git-lfs.github.com/spec/v1\noid sha256:e16172\n")
    assert "no state dict" in error(pickle.dumps(Evil(), protocol=2)) and not (tmp_path / "sign").exists()
    assert "no state dict" in error({"args": argparse.Namespace(), "state_dict": weights})
    assert "it has no tensors" in error({"epoch": 3})
    assert "no weights of resnet18, which has conv1.weight; it has a.b" in error({"a": {"b": torch.ones(1)}})
    assert "layer1.2.bn1.bias is no part of resnet18: the file is of another network" in error(deeper)
    assert "layer1.2.conv1.weight is missing, wanted (64, 64, 3, 3) for resnet34" in error(weights, "resnet34")
    narrow = {**weights, "conv1.weight": torch.ones(64, 3, 3, 3)}
    assert "conv1.weight is of shape (64, 3, 3, 3), wanted (64, 3, 7, 7)" in error(narrow)
    assert "model.conv1.weight is missing" in error(weights, prefix="model.")


def test_what_config_says_of_a_network_is_checked_before_anything_starts(repository):
    config = read_yaml(repository / "config.yaml")

    def recipe(**published):
        config["experiments"]["cifar10"]["published"] = {"path": "weights.pth", **published}
        return check_config(config).experiments["cifar10"].recipe

    assert recipe(publisher="torchvision", backbone="resnet50").model.stem.kernel == 7
    assert recipe(publisher="timm", backbone="vit_small_patch16_224").model.name == "vit_small_patch16_224"
    assert recipe(publisher="state_dict").model.stem.kernel == 3
    assert recipe(publisher="state_dict", backbone="resnet50").model.backbone == "resnet50"
    config["experiments"]["cifar10"]["overrides"] = {"model": {"batch_norm": {"eps": 0.001}}}
    assert recipe(publisher="torchvision", backbone="resnet34").model.batch_norm.eps == 0.001
    for wrong, words in {
        ("torchvision", None): "published.backbone is not set, wanted torchvision's name of the network",
        ("torchvision", "vit_b_16"): r"backbone is 'vit_b_16', wanted one of resnet18, .*resnet152; other networks",
        ("timm", None): "published.backbone is not set, wanted timm's name",
        ("authors", "resnet18"): "published.backbone is for state dicts, not for authors",
        ("state_dict", "resnet19"): "resnet19",
        (
            "keras",
            None,
        ): "publisher is 'keras', wanted one of authors, official, selfsup, torchvision, timm, state_dict",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            recipe(**dict(zip(("publisher", "backbone"), wrong, strict=True)))
        assert "experiments.cifar10" in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_tells_no_training_that_it_does_not_know(repository, tmp_path, starter):
    network, weights = torchvision_network("resnet18")
    torch.save(weights, tmp_path / "resnet18.pth")
    recipe, output = recipe_with("torchvision", "resnet18"), tmp_path / "encoder.safetensors"
    command = [starter, "workflow/scripts/import_encoder.py", "--publisher", "torchvision", "--weights"]
    command += [tmp_path / "resnet18.pth", "--recipe", canonical(recipe), "--output", output]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "without fc.bias, fc.weight" in run.stdout
    encoder, card = load_encoder(output, recipe)
    assert same_features(encoder, network)
    assert card["network"] == "backbone, published (torchvision resnet18)"
    keys = figure_keys(card, 50_000)
    assert keys["backbone"] == "resnet18"
    assert [keys[name] for name in ("method", "head", "epochs", "global_batch")] == [None] * 4
