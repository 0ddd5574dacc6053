"""MoCo v3: its loss and gradient restated in NumPy's float64, its networks at full size, its momentum encoder."""

import numpy as np
import pytest
import torch

from many_ranks import on_ranks
from runs import on_cpu
from selfsup.engine.distributed import Ranks
from selfsup.methods import Step, build_method
from selfsup.methods.byol import tau
from selfsup.methods.moco_v3 import moco_v3_loss
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Pretraining, Run
from tiny import with_method


def restated(queries: np.ndarray, keys: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """2 T times the cross entropy, row by row, and its gradient on the queries."""
    length = np.linalg.norm(queries, axis=1, keepdims=True)
    unit, keys = queries / length, keys / np.linalg.norm(keys, axis=1, keepdims=True)
    similar = np.exp(unit @ keys.T / temperature)
    shares = similar / similar.sum(1, keepdims=True)
    by_unit = 2 * (shares - np.eye(len(queries))) @ keys / len(queries)
    gradient = (by_unit - (by_unit * unit).sum(1, keepdims=True) * unit) / length
    return -2 * temperature * np.log(np.diagonal(shares)).mean(), gradient


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_and_its_gradient_are_those_of_the_equation(temperature):
    queries, keys = np.random.default_rng().normal(size=(2, 33, 7))
    ours = [torch.tensor(one, requires_grad=True) for one in (queries, keys)]
    loss = moco_v3_loss(*ours, temperature)
    loss.backward()
    wanted, gradient = restated(queries, keys, temperature)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    assert np.linalg.norm(ours[0].grad.numpy() - gradient) < 1e-12 * np.linalg.norm(gradient)
    assert ours[1].grad is None  # keys are constants


def test_half_precision_is_computed_with_in_float32_under_autocast_too():
    queries, keys = torch.randn(2, 16, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = moco_v3_loss(queries, keys, 0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(moco_v3_loss(queries.double(), keys.double(), 0.2).item(), rel=1e-5)


def _on_rank(ranks: Ranks, queries: list, keys: list) -> tuple:
    rows = np.array_split(np.arange(len(queries)), ranks.size)[ranks.rank]
    ours = [torch.tensor(one, dtype=torch.float64)[rows].requires_grad_() for one in (queries, keys)]
    loss = moco_v3_loss(*ours, 0.3, ranks)
    loss.backward()
    return rows.tolist(), ranks.mean(loss.detach()).item(), (ours[0].grad / ranks.size).tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_compute_the_loss_and_gradient_of_one(size):
    queries, keys = np.random.default_rng().normal(size=(2, 8, 5))
    wanted, gradient = restated(queries, keys, 0.3)
    for rows, loss, part in on_ranks(_on_rank, size, queries.tolist(), keys.tolist()):
        assert loss == pytest.approx(wanted, rel=1e-12)
        np.testing.assert_allclose(part, gradient[rows], rtol=1e-10, atol=1e-14)


@pytest.fixture
def training(tiny_store, tmp_path) -> Pretraining:
    return Pretraining(Run(load_recipe("digits", with_method("moco_v3")), 0, 1, tiny_store, tmp_path, on_cpu(), 60))


def test_both_directions_are_summed_and_each_query_looks_for_the_other_views_key(training):
    networks, views = training.method.networks, training.make_views(training.batches[0])
    momentum, pictures = networks["momentum"], torch.cat(tuple(views))
    q1, q2 = networks["predictor"](networks["projector"](networks["backbone"](pictures))).chunk(2)
    k1, k2 = momentum["projector"](momentum["backbone"](pictures)).chunk(2)
    pairs = [[x.detach().double().numpy() for x in pair] for pair in ((q1, k2), (q2, k1))]
    wanted = sum(restated(*pair, 0.2)[0] for pair in pairs)
    assert float(training.train_step(training.batches[0])) == pytest.approx(wanted, rel=1e-5)


def test_the_momentum_encoder_follows_before_each_step_and_its_statistics_are_its_own(training):
    online, momentum = training.method.networks, training.method.networks["momentum"]
    assert set(momentum) == {"backbone", "projector"}
    starts = (list(network["projector"].parameters()) for network in (online, momentum))
    assert all(map(torch.equal, *starts))
    with torch.no_grad():
        online["backbone"].conv1.weight.add_(1.0)
    online["backbone"].bn1.running_mean.fill_(9.0)
    old, new = (one["backbone"].conv1.weight.double().clone() for one in (momentum, online))
    training.method.before_step(Step(7))
    m = tau(7, total_steps=20, base=0.9)
    assert training.method.schedules(7) == {"momentum": m}
    torch.testing.assert_close(
        momentum["backbone"].conv1.weight.double(), m * old + (1 - m) * new, rtol=1e-6, atol=1e-7
    )
    assert not (momentum["backbone"].bn1.running_mean > 1).any() and momentum["backbone"].bn1.training
    skipped = momentum["backbone"].conv1.weight.clone()
    training.method.before_step(Step(8, torch.tensor(True)))
    assert torch.equal(momentum["backbone"].conv1.weight, skipped)


def test_only_what_the_gradient_reaches_is_optimised(training):
    training.train_step(training.batches[0])
    learned = {one.name.split(".")[0] for one in training.treatments}
    assert learned == {"backbone", "projector", "predictor"}
    assert all(one.parameter.grad is not None for one in training.treatments)
    assert all(p.grad is None for p in training.method.networks["momentum"].parameters())


@pytest.mark.parametrize(
    ("name", "projector", "predictor"),
    [
        ("moco_v3_imagenet", 2048 * 4096 + 2 * 4096 + 4096 * 256, 256 * 4096 + 2 * 4096 + 4096 * 256),
        (
            "moco_v3_vit_small_imagenet",
            384 * 4096 + 4096**2 + 2 * 2 * 4096 + 4096 * 256,
            256 * 4096 + 2 * 4096 + 4096 * 256,
        ),
    ],
)
def test_the_heads_have_the_official_codes_size(name, projector, predictor, of_shapes_alone):
    """builder.py: two layers, three for a transformer, no biases; a last batch norm without affine, but for the
    ResNets' predictor."""
    method = build_method(load_recipe(name), seed=0, total_steps=1)
    learned = {
        head: sum(one.parameter.numel() for one in method.parameter_groups() if one.name.startswith(f"{head}."))
        for head in ("projector", "predictor")
    }
    assert learned == {"projector": projector, "predictor": predictor}
    last = [type(method.networks[head][-1]).__name__ for head in learned]
    assert last == ["BatchNorm", "Linear" if name == "moco_v3_imagenet" else "BatchNorm"]
