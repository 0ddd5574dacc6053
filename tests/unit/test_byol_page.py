"""docs/byol_in_one_page.py, which people read, does what the package does."""

import subprocess

import measuring  # noqa: F401  puts docs on the path
import pytest
import torch
from byol_in_one_page import BYOL, mlp
from torch import nn

from runs import on_cpu
from selfsup.models import build_backbone
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Pretraining, Run
from tiny import TINY

# A forward pass for each view, as on the page; rates and decay large enough to show in a few steps.
LIKE_THE_PAGE = {
    "model": {"batch_norm": {"statistics": "per_view"}},
    "optimizer": {"warmup_epochs": 1, "peak_lr": 0.5, "weight_decay": 1e-2},
    "byol": {"tau_base": 0.9},
}


@pytest.fixture
def training(tiny_store, tmp_path) -> Pretraining:
    recipe = load_recipe("digits", TINY | {key: TINY.get(key, {}) | LIKE_THE_PAGE[key] for key in LIKE_THE_PAGE})
    made = Pretraining(Run(recipe, 0, 1, tiny_store, tmp_path, on_cpu(), checkpoint_minutes=10))
    made.method.networks.double()
    return made


@pytest.fixture
def page(training) -> BYOL:
    """The page's BYOL, with its own heads, from the package's initial weights."""
    recipe, networks = training.run.recipe, training.method.networks["online"]
    backbone, settings, heads = build_backbone(recipe), recipe["optimizer"], recipe["byol"]
    projector = mlp(backbone.out_features, heads["projector"]["hidden"], heads["projector"]["out"])
    predictor = mlp(heads["projector"]["out"], heads["predictor"]["hidden"], heads["predictor"]["out"])
    for name, network in {"backbone": backbone, "projector": projector, "predictor": predictor}.items():
        network.double().load_state_dict(networks[name].state_dict())
    return BYOL(
        nn.Sequential(backbone, projector),
        predictor,
        steps=training.total_steps,
        warmup=settings["warmup_epochs"] * training.steps_per_epoch,
        peak_lr=settings["peak_lr"],
        weight_decay=settings["weight_decay"],
        tau_base=recipe["byol"]["tau_base"],
    )


def weights(*networks: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for network in networks for value in network.state_dict().values()])


def test_the_page_takes_the_steps_of_the_package(page, training):
    """All 20 steps of a run, warm-up included, in float64: weights and running statistics to 1e-9 relative, which
    leaves room for the same sums in another order, and for nothing else; losses to 1e-6, as they are float32."""
    make_views = training.make_views
    for step in range(training.total_steps):
        views = make_views(training.batches[step])
        views = type(views)(tuple(one.double() for one in views), views.parameters)
        training.make_views = lambda _, views=views: views
        ours, theirs = training.train_step(training.batches[step]), page.train_step(*views)
        assert float(theirs) == pytest.approx(float(ours), rel=1e-6), f"step {step}"
    online, target = training.method.networks["online"], training.method.networks["target"]
    wanted = weights(online["backbone"], online["projector"], target["backbone"], target["projector"])
    found = weights(page.online, page.target)
    assert (found - wanted).norm() < 1e-9 * wanted.norm()
    assert weights(page.predictor).sub(weights(online["predictor"])).norm() < 1e-9 * weights(page.predictor).norm()


def test_the_pages_own_command_trains(repository, starter):
    command = [starter, repository / "docs" / "byol_in_one_page.py", "--steps", "2", "--batch", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split("  loss ")[0] for line in done.stdout.splitlines()] == ["step 1/2", "step 2/2"]
