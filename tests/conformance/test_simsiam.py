"""SimSiam: its loss and gradient restated in NumPy's float64, its networks at full size, its predictor's rate."""

import numpy as np
import pytest
import torch

from runs import on_cpu
from selfsup.methods import build_method
from selfsup.methods.simsiam import simsiam_loss
from selfsup.recipe import RecipeError, load_recipe
from selfsup.training.pretraining import Pretraining, Run
from tiny import head, with_method


def restated(p: np.ndarray, z: np.ndarray) -> tuple[float, np.ndarray]:
    """-cos, row by row, and its gradient on the predictions."""
    p_length, z_length = (np.linalg.norm(x, axis=1, keepdims=True) for x in (p, z))
    cosine = (p * z).sum(1, keepdims=True) / p_length / z_length
    return -cosine.mean(), -(z / z_length - cosine * p / p_length) / p_length / len(p)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_loss_and_its_gradient_are_those_of_the_equation(scale):
    p, z = scale * np.random.default_rng().normal(size=(2, 33, 7))
    predictions, projections = (torch.tensor(x, requires_grad=True) for x in (p, z))
    loss = simsiam_loss(predictions, projections)
    loss.backward()
    wanted, gradient = restated(p, z)
    assert loss.item() == pytest.approx(wanted, rel=1e-12, abs=1e-15)
    assert np.linalg.norm(predictions.grad.numpy() - gradient) < 1e-12 * np.linalg.norm(gradient)
    assert projections.grad is None  # the gradient is stopped


def test_half_precision_is_computed_with_in_float32():
    p, z = torch.randn(2, 16, 8).bfloat16()
    loss = simsiam_loss(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(simsiam_loss(p.double(), z.double()).item(), abs=1e-6)


def test_each_view_predicts_the_others_projection(tiny_store, tmp_path):
    """The step's loss is half of both directions' sum."""
    training = Pretraining(Run(load_recipe("digits", with_method("simsiam")), 0, 1, tiny_store, tmp_path, on_cpu(), 60))
    networks, views = training.method.networks, training.make_views(training.batches[0])
    projections = networks["projector"](networks["backbone"](torch.cat(tuple(views))))
    (p1, p2), (z1, z2) = networks["predictor"](projections).chunk(2), projections.chunk(2)
    rows = [restated(*(x.detach().double().numpy() for x in pair))[0] for pair in ((p1, z2), (p2, z1))]
    assert float(training.train_step(training.batches[0])) == pytest.approx(np.mean(rows), abs=1e-5)


def test_the_heads_have_the_official_codes_structure_and_size():
    """builder.py: three layers of 2,048 without biases, the last batch norm without affine; 2,048-512-2,048."""
    networks = build_method(load_recipe("simsiam_imagenet"), seed=0, total_steps=1).networks
    learned = {name: p.numel() for name, p in networks.named_parameters() if p.requires_grad}
    projector = sum(count for name, count in learned.items() if name.startswith("projector."))
    predictor = sum(count for name, count in learned.items() if name.startswith("predictor."))
    assert projector == 3 * 2048 * 2048 + 2 * 2 * 2048
    assert predictor == 2048 * 512 + 2 * 512 + 512 * 2048 + 2048
    assert [type(layer).__name__ for layer in networks["projector"]] == ["Linear", "BatchNorm", "ReLU"] * 2 + [
        "Linear",
        "BatchNorm",
    ]
    assert networks["predictor"][3].bias is not None and networks["predictor"][0].bias is None


def test_everything_feels_weight_decay():
    """main_simsiam.py gives SGD all parameters alike, biases and norms too."""
    treatments = build_method(load_recipe("simsiam_imagenet"), seed=0, total_steps=1).parameter_groups()
    assert {(one.weight_decay, one.lr_scale) for one in treatments} == {(1e-4, 1.0)}
    assert {one.kind for one in treatments} == {"weight", "bias", "norm"}


@pytest.mark.parametrize(("predictor_lr", "constant"), [("constant", True), ("scheduled", False)])
def test_the_predictors_rate_stays_where_the_others_fall(tiny_store, tmp_path, predictor_lr, constant):
    overrides = with_method("simsiam", predictor_lr=predictor_lr)
    training = Pretraining(Run(load_recipe("digits", overrides), 0, 1, tiny_store, tmp_path, on_cpu(), 60))
    peak = training.run.recipe.optimizer.peak_lr
    predictor = {id(p) for p in training.method.networks["predictor"].parameters()}
    for step in range(7):
        training.train_step(training.batches[step])
        for group in training.optimizer.param_groups:
            ours = {id(parameter) in predictor for parameter in group["params"]}
            assert group["lr"] == (peak if constant and ours == {True} else training.learning_rate(step))
    assert ("predictor_lr" in training.method.schedules(0)) == constant


def test_a_predictor_of_another_width_is_one_line():
    with pytest.raises(RecipeError, match=r"simsiam\.predictor\.layers end in 9, wanted 8, like the projector's"):
        load_recipe("digits", with_method("simsiam", predictor=head(4, 9)))
