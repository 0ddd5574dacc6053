"""SimCLR: its loss and gradient restated in NumPy's float64, its structure at full size, and steps over ranks."""

import numpy as np
import pytest
import torch

from many_ranks import on_ranks
from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.engine.distributed import Ranks
from selfsup.methods import build_method
from selfsup.methods.simclr import nt_xent
from selfsup.recipe import RecipeError, load_recipe
from selfsup.training.pretraining import Run
from tiny import TINY

HEAD = {"layers": [16, 8], "bias_before_bn": False, "bias_last": False, "last_batch_norm": "without_affine"}
SIMCLR = {
    **{key: value for key, value in TINY.items() if key != "byol"},
    "method": "simclr",
    "simclr": {"projector": HEAD, "temperature": 0.5, "loss_reduction": "mean"},
}


def restated(first: np.ndarray, second: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """The loss of eq. 1, row by row, and its gradient on both views' projections, [2N, D], in float64."""
    z = np.concatenate([first, second])
    length = np.linalg.norm(z, axis=1, keepdims=True)
    unit, count = z / length, len(z)
    similar = np.exp(unit @ unit.T / temperature)
    np.fill_diagonal(similar, 0)
    shares = similar / similar.sum(1, keepdims=True)
    pair = (np.arange(count) + count // 2) % count
    loss = -np.log(shares[np.arange(count), pair]).mean()
    wanted = shares.copy()
    wanted[np.arange(count), pair] -= 1
    by_unit = (wanted + wanted.T) @ unit / temperature / count
    return loss, (by_unit - (by_unit * unit).sum(1, keepdims=True) * unit) / length


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 33])
def test_the_loss_and_its_gradient_are_those_of_the_equation(count, temperature):
    first, second = np.random.default_rng().normal(size=(2, count, 7))
    ours = [torch.tensor(one, requires_grad=True) for one in (first, second)]
    loss = nt_xent(*ours, temperature)
    loss.backward()
    wanted, gradient = restated(first, second, temperature)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    found = np.concatenate([one.grad.numpy() for one in ours])
    assert np.linalg.norm(found - gradient) / np.linalg.norm(gradient) < 1e-12


def test_half_precision_is_computed_with_in_float32():
    first, second = torch.randn(2, 16, 8)
    half = nt_xent(first.bfloat16(), second.bfloat16(), 0.5)
    assert half.dtype == torch.float32
    wanted = nt_xent(first.bfloat16().double(), second.bfloat16().double(), 0.5)
    assert half.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_equal_projections_say_nothing():
    """Each of the 2N - 1 others is as near: log(2N - 1), whatever the temperature."""
    same = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent(same, same, 0.2).item() == pytest.approx(np.log(9), rel=1e-14)


def _on_rank(ranks: Ranks, first: list, second: list) -> tuple:
    """This rank's rows of both views; the mean over ranks of loss and gradients, as training takes it."""
    rows = np.array_split(np.arange(len(first)), ranks.size)[ranks.rank]
    ours = [torch.tensor(one, dtype=torch.float64)[rows].requires_grad_() for one in (first, second)]
    loss = nt_xent(*ours, 0.3, ranks)
    loss.backward()
    return rows.tolist(), ranks.mean(loss.detach()).item(), [(one.grad / ranks.size).tolist() for one in ours]


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_compute_the_loss_and_gradient_of_one(size):
    first, second = np.random.default_rng().normal(size=(2, 8, 5))
    wanted, gradient = restated(first, second, 0.3)
    for rows, loss, parts in on_ranks(_on_rank, size, first.tolist(), second.tolist()):
        assert loss == pytest.approx(wanted, rel=1e-12)
        for part, begin in zip(parts, (0, 8), strict=True):
            np.testing.assert_allclose(part, gradient[begin + np.array(rows)], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [
        ("cifar10", [2048, 128], 1_314_816),
        ("cifar10", [2048, 2048, 128], 5_513_216),
        ("imagenet", [2048, 128], 4_460_544),
        ("imagenet", [2048, 2048, 128], 8_658_944),
    ],
)
def test_the_head_has_the_published_size(name, layers, parameters):
    """Of the code that the companion report's authors published: no biases, the last batch norm without affine."""
    projector = {**HEAD, "layers": layers}
    block = {"projector": projector, "temperature": 0.5, "loss_reduction": "mean"}
    method = build_method(load_recipe(name, {"method": "simclr", "simclr": block}), seed=0, total_steps=1)
    learned = [one.parameter for one in method.parameter_groups() if one.name.startswith("projector")]
    assert sum(parameter.numel() for parameter in learned) == parameters


def test_the_sum_of_both_views_means_is_twice_the_mean(tiny_store, tmp_path):
    losses = []
    for reduction in ("mean", "sum"):
        recipe = load_recipe("digits", {**SIMCLR, "simclr": {**SIMCLR["simclr"], "loss_reduction": reduction}})
        (tmp_path / reduction).mkdir()
        run = Run(recipe, 0, 1, tiny_store, tmp_path / reduction, on_cpu(), 60)
        assert train(run, 1)
        losses.append(float((tmp_path / reduction / "history.csv").read_text().splitlines()[1].split(",")[2]))
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_it_is_stopped_in_mid_epoch_and_continued_to_the_bit(tiny_store, tmp_path):
    runs = {}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        runs[name] = Run(load_recipe("digits", SIMCLR), 0, 1, tiny_store, tmp_path / name, on_cpu(), 60)
    assert train(runs["whole"], 4)
    assert not train(runs["parts"], 2, stop=StopAfter(3)) and train(runs["parts"], 2, 4)
    assert equal_states(*map(state_of, runs.values()))


def test_views_that_cannot_be_paired_are_one_line():
    three = [load_recipe("digits")["augment"]["views"][0]] * 3
    with pytest.raises(RecipeError, match=r"augment\.views has 3 views, wanted 2 for SimCLR"):
        load_recipe("digits", {**SIMCLR, "augment": {**SIMCLR["augment"], "views": three}})
