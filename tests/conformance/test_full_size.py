"""The paper's networks and schedules at their full size: counts and shapes, without a GPU and without training."""

import logging

import numpy as np
import pytest
import torch

from runs import on_cpu, train
from selfsup.methods import build_method
from selfsup.methods.byol import tau
from selfsup.models import BatchNorm, build_backbone
from selfsup.optim import learning_rate, optimizer_groups, treatment_table
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Run

TRAINING_IMAGES = {"cifar10": 50_000, "imagenet": 1_281_167}  # paper, section 6.1: 50,000 and 1.28 million


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module", params=["cifar10", "imagenet"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def method(name):
    return build_method(load_recipe(name), seed=0, total_steps=1)


def head_size(features: int, hidden: int, out: int) -> int:
    """A linear layer without bias, scale and shift of the batch norm, a linear layer with bias."""
    return features * hidden + 2 * hidden + hidden * out + out


def test_the_networks_have_the_published_numbers_of_parameters(name, method):
    """torchvision's resnet18 has 11,689,512, 513,000 of them its classifier's; resnet50 25,557,032 and 2,049,000.

    The authors' checkpoint of CIFAR-10 has 189,007,909 bytes: both networks, and the optimiser's buffers, in float32.
    """
    stem = 3 * 64 * (7 * 7 - 3 * 3)
    features, backbone = {
        "cifar10": (512, 11_689_512 - 513_000 - stem),
        "imagenet": (2048, 25_557_032 - 2_049_000),
    }[name]
    online, target = method.networks["online"], method.networks["target"]
    assert parameters(online["backbone"]) == parameters(target["backbone"]) == backbone
    assert online["backbone"].out_features == features
    assert parameters(online["projector"]) == parameters(target["projector"]) == head_size(features, 4096, 256)
    assert parameters(online["predictor"]) == head_size(256, 4096, 256)
    assert set(online) == {"backbone", "projector", "predictor"} and set(target) == {"backbone", "projector"}
    if name == "cifar10":
        numbers = 2 * parameters(online) + parameters(target)
        buffers = sum(b.numel() for network in (online, target) for b in network.buffers())
        assert 189_007_909 - 4 * (numbers + buffers) == pytest.approx(150_000, abs=50_000)  # names, pickled structure


def test_steps_are_those_of_whole_batches(name):
    steps = {key: images // load_recipe(key)["global_batch"] for key, images in TRAINING_IMAGES.items()}
    assert steps == {"cifar10": 97, "imagenet": 312}
    totals = {"cifar10": 97_000, "cifar10_authors": 77_600, "imagenet": 312_000, "imagenet_authors": 312_000}
    for key, total in totals.items():
        assert load_recipe(key)["epochs"] * steps[key.split("_")[0]] == total
    assert 50_000 // load_recipe("cifar10")["linear"]["batch"] == 195


@pytest.mark.parametrize(
    ("recipe", "steps", "peak", "floor"),
    [
        ("cifar10", 97, 2.0, 0.0),
        ("cifar10_authors", 97, 2.0, 1e-8),
        ("imagenet", 312, 3.2, 0.0),
        ("imagenet_authors", 312, 3.2, 1e-8),
        ("imagenet_official_100", 312, 7.2, 0.0),
    ],
)
def test_golden_learning_rates_of_the_full_runs(recipe, steps, peak, floor):
    """At step 0, the end of the warm-up, the middle of the cosine and the last step."""
    settings = load_recipe(recipe)
    optimizer, total, warmup = settings["optimizer"], settings["epochs"] * steps, 10 * steps
    rate = {
        step: learning_rate(
            step,
            total_steps=total,
            warmup_steps=optimizer["warmup_epochs"] * steps,
            peak=optimizer["peak_lr"],
            start_factor=optimizer["lr_start_factor"],
            floor=optimizer["lr_floor"],
        )
        for step in (0, 1, warmup - 1, warmup, (total + warmup) // 2, total - 1)
    }
    assert rate[0] == floor * peak  # 0, or the authors' 1e-8 of the peak
    assert rate[warmup - 1] == pytest.approx(peak * (warmup - 1) / warmup, rel=1e-8)
    assert rate[warmup] == peak
    assert rate[(total + warmup) // 2] == pytest.approx((peak + floor) / 2, rel=1e-12)
    # cos(pi - x) = -1 + x^2 / 2: the last step is one short of the end
    wanted = floor + (peak - floor) * (np.pi / (total - warmup)) ** 2 / 4
    assert rate[total - 1] == pytest.approx(wanted, rel=1e-6)


def test_pictures_become_features_and_features_embeddings(name, method):
    size = load_recipe(name)["augment"]["size"]
    online = method.networks["online"].eval()
    with torch.no_grad():
        features = online["backbone"](torch.zeros(2, 3, size, size))
        embeddings = online["projector"](features)
        assert features.shape == (2, {"cifar10": 512, "imagenet": 2048}[name])
        assert embeddings.shape == online["predictor"](embeddings).shape == (2, 256)
        last = torch.nn.Sequential(*list(online["backbone"].children())[:-2])(torch.zeros(2, 3, size, size))
    assert last.shape[2:] == {"cifar10": (4, 4), "imagenet": (7, 7)}[name]
    online.train()


def kind_by_name(name: str) -> str:
    """What torchvision's names and the heads' places tell: the product goes by module types instead."""
    owner, leaf = name.rsplit(".", 1)
    is_norm = ".bn" in name or "downsample.1" in name or owner.endswith(("projector.1", "predictor.1"))
    return "norm" if is_norm else leaf


def test_every_parameters_weight_decay_and_lars_strength(name, method):
    """Paper, section 6.3: biases and batch norm have neither. All of the online network, each parameter once."""
    treatments = method.parameter_groups()
    decay = {"cifar10": 1e-6, "imagenet": 1.5e-6}[name]
    for one in treatments:
        assert one.kind == kind_by_name(one.name), one.name
        assert (one.weight_decay, one.lars_weight) == ((decay, 1.0) if one.kind == "weight" else (0.0, 0.0)), one.name
    kinds = [one.kind for one in treatments]
    # 20 or 53 convolutions with a batch norm each; four linear layers, two with a batch norm and two with a bias
    convolutions = {"cifar10": 20, "imagenet": 53}[name]
    counts = {kind: kinds.count(kind) for kind in ("weight", "norm", "bias")}
    assert counts == {"weight": convolutions + 4, "norm": 2 * convolutions + 4, "bias": 2}
    online = method.networks["online"]
    assert [id(one.parameter) for one in treatments] == [id(p) for p in online.parameters()]
    groups = optimizer_groups(treatments)
    assert [(len(g["params"]), g["weight_decay"], g["lars_weight"]) for g in groups] == [
        (convolutions + 4, decay, 1.0),
        (2 * convolutions + 6, 0.0, 0.0),
    ]
    lines = treatment_table(treatments).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [one.name for one in treatments]
    first = {"cifar10": "64 x 3 x 3 x 3", "imagenet": "64 x 3 x 7 x 7"}[name]
    assert lines[1].split() == ["backbone.conv1.weight", *first.split(), "weight", f"{decay:g}", "1"]
    assert lines[-1].split() == ["predictor.3.bias", "256", "bias", "0", "0"]


def test_every_batch_norm_has_the_recipes_momentum_and_eps():
    settings = {"momentum": 0.03, "eps": 0.002}
    method = build_method(load_recipe("digits", {"model": {"batch_norm": settings}}), seed=0, total_steps=1)
    norms = [module for module in method.networks.modules() if isinstance(module, BatchNorm)]
    assert len(norms) == 2 * 20 + 3  # both backbones, two heads and the target's one
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.03, 0.002)}


def test_zero_initialised_are_the_last_norms_of_all_residual_branches_and_no_others(name, method):
    last = {"cifar10": "bn2", "imagenet": "bn3"}[name]
    backbone = method.networks["online"]["backbone"]
    gammas = {key: p for key, p in backbone.named_parameters() if key.endswith("weight") and p.dim() == 1}
    assert {key for key, p in gammas.items() if (p == 0).all()} == {
        key for key in gammas if key.startswith("layer") and key.endswith(f"{last}.weight")
    }
    assert all((p == 1).all() for key, p in gammas.items() if not key.endswith(f"{last}.weight"))


def test_the_official_variant_has_its_biases_and_pads_as_same():
    recipe = load_recipe("imagenet_official")
    online = build_method(recipe, seed=0, total_steps=1).networks["online"]
    assert [name for name, _ in online["projector"].named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
    ]
    backbone = build_backbone(recipe)
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 2048)
    assert backbone.state_dict().keys() == build_backbone(load_recipe("imagenet")).state_dict().keys()


def test_the_table_of_parameters_is_printed_when_a_run_begins_and_not_when_it_goes_on(
    tiny_recipe, tiny_store, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG, logger="selfsup")
    (tmp_path / "run").mkdir()
    run = Run(tiny_recipe, 0, 1, tiny_store, tmp_path / "run", on_cpu(), 60)
    assert train(run, 1)
    wanted = treatment_table(build_method(tiny_recipe, seed=0, total_steps=1).parameter_groups())
    assert wanted in caplog.text
    caplog.clear()
    assert train(run, 2)
    assert "pretraining" in caplog.text and wanted.splitlines()[0] not in caplog.text


@pytest.mark.parametrize(("name", "steps_per_epoch"), [("cifar10", 97), ("cifar10_authors", 97), ("imagenet", 312)])
def test_learning_rate_and_tau_at_every_step_of_the_full_runs(name, steps_per_epoch):
    """All 97,000, 77,600 or 312,000 of them, against the equations over an array of steps."""
    recipe = load_recipe(name)
    settings, total, warmup = recipe["optimizer"], recipe["epochs"] * steps_per_epoch, 10 * steps_per_epoch
    steps = np.arange(total)
    start, floor, peak = settings["lr_start_factor"] * settings["peak_lr"], settings["lr_floor"], settings["peak_lr"]
    rising = start + (peak - start) * steps / warmup
    falling = floor + (peak - floor) * (1 + np.cos(np.pi * (steps - warmup) / (total - warmup))) / 2
    schedule = {"total_steps": total, "warmup_steps": warmup, "peak": peak}
    ends = {"start_factor": settings["lr_start_factor"], "floor": floor}
    rates = np.array([learning_rate(step, **schedule, **ends) for step in range(total)])
    np.testing.assert_allclose(rates, np.where(steps < warmup, rising, falling), rtol=1e-12, atol=1e-15)
    taus = np.array([tau(step, total_steps=total, base=recipe["byol"]["tau_base"]) for step in range(total)])
    np.testing.assert_allclose(taus, 1 - 0.004 * (np.cos(np.pi * steps / total) + 1) / 2, rtol=1e-14)
    assert (np.diff(taus) >= 0).all()
