"""VICReg: its loss and gradient restated in NumPy's float64, its networks at full size."""

import numpy as np
import pytest
import torch

from many_ranks import on_ranks
from selfsup.engine.distributed import Ranks
from selfsup.methods import build_method
from selfsup.methods.vicreg import vicreg_loss
from selfsup.recipe import load_recipe

WEIGHTS = {"all": (25.0, 25.0, 1.0), "invariance": (1, 0, 0), "variance": (0, 1, 0), "covariance": (0, 0, 1)}


def restated(first: np.ndarray, second: np.ndarray, weights: tuple) -> tuple[float, list[np.ndarray]]:
    """The three terms, and their gradient on both views' projections."""
    (count, width), (invariance, variance, covariance) = first.shape, weights
    loss, gradients = invariance * ((first - second) ** 2).mean(), []
    for z, other in ((first, second), (second, first)):
        centred = z - z.mean(0)
        deviation = np.sqrt((centred**2).sum(0) / (count - 1) + 1e-4)
        c = centred.T @ centred / (count - 1)
        np.fill_diagonal(c, 0)
        loss += variance * np.maximum(0, 1 - deviation).mean() / 2 + covariance * (c**2).sum() / width
        gradients.append(
            invariance * 2 * (z - other) / z.size
            - variance * (deviation < 1) * centred / deviation / (count - 1) / width / 2
            + covariance * 4 * centred @ c / (count - 1) / width
        )
    return loss, gradients


def error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return np.linalg.norm(np.concatenate(found) - np.concatenate(wanted)) / np.linalg.norm(np.concatenate(wanted))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_loss_and_its_gradient_are_those_of_the_equations(weights):
    """Of dimensions whose deviation is below 1, where the variance pushes, and above, where it does not."""
    first, second = np.random.default_rng().normal(3, np.linspace(0.5, 1.5, 7), size=(2, 33, 7))
    ours = [torch.tensor(one, requires_grad=True) for one in (first, second)]
    loss, terms = vicreg_loss(*ours, *weights)
    loss.backward()
    wanted, gradients = restated(first, second, weights)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert error([one.grad.numpy() for one in ours], gradients) < 1e-12
    for name, own in zip(("invariance", "variance", "covariance"), np.eye(3), strict=True):
        assert terms[name].item() == pytest.approx(restated(first, second, tuple(own))[0], rel=1e-12)


def test_half_precision_is_computed_with_in_float32_under_autocast_too():
    first, second = torch.randn(2, 16, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = vicreg_loss(first, second, *WEIGHTS["all"])
    assert loss.dtype == torch.float32
    wanted, _ = vicreg_loss(first.double(), second.double(), *WEIGHTS["all"])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def _on_rank(ranks: Ranks, first: list, second: list) -> tuple:
    rows = np.array_split(np.arange(len(first)), ranks.size)[ranks.rank]
    ours = [torch.tensor(one, dtype=torch.float64)[rows].requires_grad_() for one in (first, second)]
    loss, _ = vicreg_loss(*map(ranks.gather_with_gradient, ours), *WEIGHTS["all"])
    loss.backward()
    return rows.tolist(), loss.item(), [(one.grad / ranks.size).tolist() for one in ours]


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_compute_the_loss_and_gradient_of_one(size):
    first, second = np.random.default_rng().normal(size=(2, 8, 5))
    wanted, gradients = restated(first, second, WEIGHTS["all"])
    for rows, loss, parts in on_ranks(_on_rank, size, first.tolist(), second.tolist()):
        assert loss == pytest.approx(wanted, rel=1e-12)
        assert error([np.array(one) for one in parts], [one[rows] for one in gradients]) < 1e-10


def test_the_head_has_the_official_codes_size(of_shapes_alone):
    """main_vicreg.py: 8,192-8,192-8,192, hidden layers with biases before their batch norms, the last without."""
    method = build_method(load_recipe("vicreg_imagenet"), seed=0, total_steps=1)
    projector = method.networks["projector"]
    assert sum(p.numel() for p in projector.parameters()) == 2048 * 8192 + 2 * 8192**2 + 2 * 3 * 8192
    assert [layer.bias is not None for layer in projector if isinstance(layer, torch.nn.Linear)] == [True, True, False]
    found = {(one.parameter.ndim > 1, one.weight_decay, one.lars_weight) for one in method.parameter_groups()}
    assert found == {(True, 1e-6, 1.0), (False, 0.0, 0.0)}
