"""Barlow Twins: its loss and gradient restated in NumPy's float64, its networks at full size, its rates."""

import numpy as np
import pytest
import torch

from many_ranks import on_ranks
from selfsup.engine.distributed import Ranks
from selfsup.methods import build_method
from selfsup.methods.barlow_twins import barlow_twins_loss
from selfsup.recipe import load_recipe


def restated(first: np.ndarray, second: np.ndarray, redundancy: float) -> tuple[float, list[np.ndarray]]:
    """Eq. 1 with a double loop over dimensions, and its gradient on both views' projections."""
    count, width = first.shape
    deviations = [np.sqrt(((z - z.mean(0)) ** 2).mean(0) + 1e-5) for z in (first, second)]
    a, b = ((z - z.mean(0)) / deviation for z, deviation in zip((first, second), deviations, strict=True))
    loss, by_correlation = 0.0, np.zeros((width, width))
    for i in range(width):
        for j in range(width):
            c = (a[:, i] * b[:, j]).sum() / count
            weight, lacking = (1.0, c - 1) if i == j else (redundancy, c)
            loss += weight * lacking**2
            by_correlation[i, j] = 2 * weight * lacking
    gradients = []
    for unit, other, by_unit, deviation in zip(
        (a, b), (b, a), (by_correlation.T, by_correlation), deviations, strict=True
    ):
        g = other @ by_unit / count
        gradients.append((g - g.mean(0) - unit * (g * unit).mean(0)) / deviation)
    return loss, gradients


def error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return np.linalg.norm(np.concatenate(found) - np.concatenate(wanted)) / np.linalg.norm(np.concatenate(wanted))


@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 1.0])
def test_the_loss_and_its_gradient_are_those_of_the_equation(redundancy):
    first, second = np.random.default_rng().normal(3, 2, size=(2, 33, 7))
    ours = [torch.tensor(one, requires_grad=True) for one in (first, second)]
    loss = barlow_twins_loss(*ours, redundancy)
    loss.backward()
    wanted, gradients = restated(first, second, redundancy)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert error([one.grad.numpy() for one in ours], gradients) < 1e-12


def test_the_normalisation_is_that_of_the_official_codes_batch_norm():
    first, second = torch.randn(2, 20, 6, dtype=torch.float64)
    norm = torch.nn.BatchNorm1d(6, affine=False, dtype=torch.float64)
    c = norm(first).T @ norm(second) / 20
    wanted = (c.diagonal() - 1).square().sum() + 0.0051 * (c - c.diagonal().diag()).square().sum()
    assert barlow_twins_loss(first, second, 0.0051).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_half_precision_is_computed_with_in_float32_under_autocast_too():
    first, second = torch.randn(2, 16, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_twins_loss(first, second, 0.0051)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(barlow_twins_loss(first.double(), second.double(), 0.0051).item(), rel=1e-5)


def _on_rank(ranks: Ranks, first: list, second: list) -> tuple:
    rows = np.array_split(np.arange(len(first)), ranks.size)[ranks.rank]
    ours = [torch.tensor(one, dtype=torch.float64)[rows].requires_grad_() for one in (first, second)]
    loss = barlow_twins_loss(*map(ranks.gather_with_gradient, ours), 0.1)
    loss.backward()
    return rows.tolist(), loss.item(), [(one.grad / ranks.size).tolist() for one in ours]


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_compute_the_loss_and_gradient_of_one(size):
    """The whole batch's gradient, of which the official code's is the number of ranks' part."""
    first, second = np.random.default_rng().normal(size=(2, 8, 5))
    wanted, gradients = restated(first, second, 0.1)
    for rows, loss, parts in on_ranks(_on_rank, size, first.tolist(), second.tolist()):
        assert loss == pytest.approx(wanted, rel=1e-12)
        assert error([np.array(one) for one in parts], [one[rows] for one in gradients]) < 1e-10


def test_the_head_has_the_official_codes_size_and_parameters_their_rates(of_shapes_alone):
    """main.py: 8,192-8,192-8,192 without biases; the rate is 0.2 for weights, 0.0048 for biases and norms."""
    recipe = load_recipe("barlow_twins_imagenet")
    treatments = build_method(recipe, seed=0, total_steps=1).parameter_groups()
    projector = sum(one.parameter.numel() for one in treatments if one.name.startswith("projector."))
    assert projector == 2048 * 8192 + 2 * 8192**2 + 2 * 2 * 8192
    rates = {(one.parameter.ndim > 1, one.lr_scale * recipe.optimizer.peak_lr * 256 / 2048) for one in treatments}
    assert {(weight, round(rate, 12)) for weight, rate in rates} == {(True, 0.2), (False, 0.0048)}
    assert {(one.parameter.ndim > 1, one.weight_decay, one.lars_weight) for one in treatments} == {
        (True, 1e-6, 1.0),
        (False, 0.0, 0.0),
    }
