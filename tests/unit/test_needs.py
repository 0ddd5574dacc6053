"""Memory and disk that a pretraining needs, counted without torch, against what real networks have and keep."""

from dataclasses import replace

import pytest
import torch
from our_byol import OurStep
from pictures import small_store
from roofline import kept_for_backward

from runs import on_cpu
from selfsup.config import load_config
from selfsup.methods import Context
from selfsup.recipe import load_recipe
from selfsup.reports import needs, plan
from selfsup.reports.plan import datasets_to_text
from selfsup.settings.registries import METHODS

DIGITS = [
    "digits",
    "simclr_digits",
    "equimod_digits",
    "simsiam_digits",
    "barlow_twins_digits",
    "vicreg_digits",
    "moco_v3_digits",
]


def networks(recipe):
    context = Context(recipe=recipe, seed=0, total_steps=10, ranks=None, device=torch.device("cpu"))
    return METHODS.component(recipe.method)(recipe[recipe.method], context).networks


@pytest.mark.parametrize("name", [*DIGITS, "cifar10", "imagenet"])
def test_parameters_are_those_of_the_methods_networks(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        parameters = list(networks(recipe).parameters())
    learning, following = needs._parameters(recipe)
    fixed = 2 * sum(head.out for _, head in needs._heads(recipe) if head.last_batch_norm == "without_affine")
    assert learning - fixed == sum(one.numel() for one in parameters if one.requires_grad)
    assert learning + following == sum(one.numel() for one in parameters)


def kept(recipe, folder, compute) -> int:
    """Bytes that a real step keeps for its backward pass."""
    step = OurStep(small_store(folder / "store", 20), recipe, compute, folder)
    return kept_for_backward(step.on_ready_views(), step.training.method.networks.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_what_a_resnet_keeps_for_the_backward_pass_is_what_is_counted(name, tmp_path):
    changes = {"model": {"backbone": name, "width": 8}, "augment": {"size": 64}, "optimizer": {"warmup_epochs": 0}}
    recipes = [load_recipe("imagenet", changes | {"global_batch": batch}) for batch in (2, 6)]
    two, six = (kept(recipe, tmp_path / str(recipe["global_batch"]), on_cpu()) for recipe in recipes)
    assert needs.kept_bytes(recipes[0], needs.FULL) == pytest.approx((six - two) / 4, rel=0.03)


def test_the_figures_of_the_paper_s_networks():
    """Of `benchmarks/roofline.py`, which counts a real step: 4.8 and 87.6 MB an image."""
    assert needs.kept_bytes(load_recipe("cifar10"), 2) / 1e6 == pytest.approx(4.8, rel=0.02)
    assert needs.kept_bytes(load_recipe("imagenet"), 2) / 1e6 == pytest.approx(87.6, rel=0.02)


def test_checkpoints_have_the_size_of_those_that_were_written(repository):
    """189 MB with a ResNet-18, 413 MB with a ResNet-50; of each run two rolling ones, too, and two encoders."""
    known = load_config(repository / "config.yaml").experiments
    assert needs.disk_bytes(known["cifar10"]) / 1e6 == pytest.approx(5 * 189 + 2 * 44.7, rel=0.01)
    assert needs.disk_bytes(known["imagenet"]) / 1e6 == pytest.approx(12 * 413 + 2 * 94, rel=0.01)


def test_memory_follows_devices_precision_micro_batches_and_recomputation(repository):
    cifar10 = load_config(repository / "config.yaml").experiments["cifar10"]

    def memory(recipe=cifar10.recipe, **block) -> float:
        compute = cifar10.compute.changed(pretrain=cifar10.compute.pretrain.changed(**block))
        return needs.memory_bytes(replace(cifar10, recipe=recipe, compute=compute)) / 1e9

    one = memory(devices_per_node=1)
    assert one == pytest.approx(2.8, rel=0.03)  # 3.3 were measured on an H100, buffers included
    assert memory() < 0.56 * one
    assert memory(devices_per_node=1, precision="fp32") > 1.8 * one
    assert memory(cifar10.recipe.changed(micro_batches=2), devices_per_node=1) == pytest.approx(memory())
    assert memory(devices_per_node=1, recompute=True) < 0.62 * one


def test_of_another_network_nothing_is_told(repository):
    cifar10 = load_config(repository / "config.yaml").experiments["cifar10"]
    vit = replace(cifar10, recipe=load_recipe("moco_v3_vit_small_imagenet"))
    assert needs.memory_bytes(vit) is needs.disk_bytes(vit) is None and needs.size(None) == "?"


def test_packed_datasets_are_told_by_their_files_and_others_by_their_source(repository, tmp_path):
    config = load_config(repository / "config.yaml")
    object.__setattr__(config, "data_dir", str(tmp_path))
    assert datasets_to_text(config) == "datasets on disk, packed: digits 5.5 MB, cifar10 184 MB, imagenet 149 GB\n"
    small_store(tmp_path / "digits", 20)
    assert "digits 5.5 MB" not in datasets_to_text(config)
    config.datasets["cifar10"] = config.datasets["cifar10"].changed(source="folder", path="/birds")
    assert "cifar10 ?" in datasets_to_text(config)


def test_a_changed_dataset_has_no_known_size_and_a_file_that_goes_away_none(repository, tmp_path):
    """Resized pictures, or a part of them, take less than the whole source as it is."""
    config = load_config(repository / "config.yaml")

    def told(**changes) -> int | None:
        block = config.datasets["imagenet"]
        datasets = {"imagenet": {**block, **changes}}
        return plan._dataset_bytes(replace(config, datasets=datasets, data_dir=str(tmp_path / "data")), "imagenet")

    assert told() > 100e9
    assert told(resize=256) is None and told(expect={"train": 10}) is None
    assert plan._bytes_of(tmp_path / "renamed_meanwhile.tmp") == 0 == plan._bytes_of(tmp_path)
