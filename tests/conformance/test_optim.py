import copy
import math

import numpy as np
import pytest
import torch

from selfsup.optim import LARS, learning_rate
from selfsup.optim.parameter_groups import optimizer_groups, parameter_treatments
from selfsup.recipe import load_recipe

STEPS = 50


def restated_lars(
    weights, gradients, lrs, *, momentum, weight_decay, trust_coefficient, lars_weight, lr_in_momentum, clip_trust
):
    """LARS in NumPy, float64, from its equations (You et al. 2017; the strength of the paper's section 5.1)."""
    buffer = np.zeros_like(weights)
    for gradient, lr in zip(gradients, lrs, strict=True):
        g = gradient + weight_decay * weights
        p_norm, g_norm = np.sqrt((weights**2).sum()), np.sqrt((g**2).sum())
        trust = trust_coefficient * p_norm / g_norm if p_norm > 0 and g_norm > 0 else None
        trust = 1.0 if trust is None else min(trust / lr, 1.0) if clip_trust else trust
        g = (1 - lars_weight + lars_weight * trust) * g
        if lr_in_momentum:
            buffer = momentum * buffer + lr * g
            weights = weights - buffer
        else:
            buffer = momentum * buffer + g
            weights = weights - lr * buffer
    return weights


@pytest.mark.parametrize("clip_trust", [False, True])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("lars_weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lars_follows_its_equations(dtype, lars_weight, weight_decay, lr_in_momentum, clip_trust):
    random = np.random.default_rng()
    shapes = {
        "matrix": (7, 3),
        "vector": (5,),
        "kernel": (2, 3, 4, 4),
        "from zero": (4,),
        "seldom": (6,),
        "never": (3,),
    }
    starts = [np.zeros(shape) if name == "from zero" else random.normal(size=shape) for name, shape in shapes.items()]
    gradients = [[random.normal(size=start.shape) for _ in range(STEPS)] for start in starts]
    for step in range(STEPS):  # norms of zero: of the weights at the first step, of gradients now and then, or always
        gradients[4][step] *= step % 3 == 0
        gradients[5][step] *= 0
    lrs = random.uniform(0.01, 0.5, STEPS)
    parameters = [torch.nn.Parameter(torch.tensor(start, dtype=dtype)) for start in starts]
    settings = {
        "momentum": 0.9,
        "weight_decay": weight_decay,
        "trust_coefficient": 0.02,
        "lr_in_momentum": lr_in_momentum,
        "clip_trust": clip_trust,
    }
    optimizer = LARS([{"params": parameters, "lars_weight": lars_weight}], lr=1.0, **settings)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = float(lrs[step])
        for parameter, drawn in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(drawn[step], dtype=dtype)
        optimizer.step()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6 * math.sqrt(STEPS)}[dtype]
    for parameter, start, drawn in zip(parameters, starts, gradients, strict=True):
        wanted = restated_lars(start, drawn, lrs, lars_weight=lars_weight, **settings)
        # Of the larger of both ends: what decays towards zero keeps the rounding of what it was.
        scale = max(np.linalg.norm(wanted), np.linalg.norm(start))
        assert np.linalg.norm(parameter.detach().double().numpy() - wanted) < tolerance * scale


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_gradients_are_left_as_they_are(weight_decay):
    parameter = torch.nn.Parameter(torch.rand(7, 3))
    gradient = torch.rand(7, 3)
    parameter.grad = gradient.clone()
    LARS([parameter], lr=0.5, weight_decay=weight_decay).step()
    assert torch.equal(parameter.grad, gradient)


def test_a_clipped_step_is_at_most_that_of_sgd_at_a_rate_of_zero_too():
    """Where trust is above lr the rate is lr; a warm-up begins at 0, and there nothing moves."""
    for rate, moved in ((0.5, 0.5), (0.0, 0.0)):
        parameter = torch.nn.Parameter(torch.full((3,), 1e3))
        parameter.grad = torch.ones(3)
        LARS([parameter], lr=rate, momentum=0.0, trust_coefficient=1.0, clip_trust=True).step()
        assert torch.equal(parameter.detach(), torch.full((3,), 1e3 - moved))


@pytest.mark.parametrize("zero", ["weights", "gradient"])
def test_the_trust_ratio_is_one_where_a_norm_is_zero(zero):
    parameter = torch.nn.Parameter(torch.zeros(3) if zero == "weights" else torch.ones(3))
    parameter.grad = torch.zeros(3) if zero == "gradient" else torch.ones(3)
    optimizer = LARS([parameter], lr=0.5, momentum=0.0)
    before = parameter.detach().clone()
    optimizer.step()
    assert torch.equal(parameter.detach(), before - 0.5 * parameter.grad)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_strength_zero_with_lr_outside_is_torchs_sgd_to_the_bit(weight_decay):
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(40, 9))
    theirs = torch.nn.Parameter(ours.detach().clone())
    lars = LARS([{"params": [ours], "lars_weight": 0.0}], lr=0.1, weight_decay=weight_decay, lr_in_momentum=False)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=weight_decay)
    for step in range(STEPS):
        ours.grad = torch.randn(40, 9)
        theirs.grad = ours.grad.clone()
        for optimizer in (lars, sgd):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
        assert torch.equal(ours, theirs)


def test_a_copy_through_the_state_dict_steps_alike():
    torch.manual_seed(0)
    one = torch.nn.Parameter(torch.randn(5, 5))
    first = LARS([one], lr=0.3, weight_decay=1e-3)
    for _ in range(3):
        one.grad = torch.randn(5, 5)
        first.step()
    other = torch.nn.Parameter(one.detach().clone())
    second = LARS([other], lr=9.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    one.grad = torch.randn(5, 5)
    other.grad = one.grad.clone()
    first.step()
    second.step()
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "settings", [{"lr": -0.1}, {"lr": 0.1, "momentum": -1}, {"lr": 0.1, "weight_decay": float("nan")}]
)
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="wanted at least 0"):
        LARS([torch.nn.Parameter(torch.ones(1))], **settings)


def test_a_strength_above_one_is_refused():
    with pytest.raises(ValueError, match=r"lars_weight is 1\.5"):
        LARS([{"params": [torch.nn.Parameter(torch.ones(1))], "lars_weight": 1.5}], lr=0.1)


def test_groups_hold_every_parameter_once():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Conv2d(1, 1, 1))
    treatments = parameter_treatments(network, load_recipe("cifar10")["optimizer"])
    groups = optimizer_groups(treatments)
    assert [(group["weight_decay"], group["lars_weight"], len(group["params"])) for group in groups] == [
        (1e-6, 1.0, 2),
        (0.0, 0.0, 4),
    ]


def test_the_learning_rate_at_every_step():
    total, warmup, peak = 970, 97, 2.0
    for step in range(total + 1):
        progress = (step - warmup) / (total - warmup)
        wanted = peak * step / warmup if step < warmup else peak * 0.5 * (1 + np.cos(np.pi * progress))
        found = learning_rate(step, total_steps=total, warmup_steps=warmup, peak=peak)
        assert found == pytest.approx(wanted, rel=1e-15, abs=1e-15)


def test_the_learning_rates_end_points_are_exact():
    schedule = {"total_steps": 97_000, "warmup_steps": 970, "peak": 2.0}
    assert learning_rate(0, **schedule) == 0.0
    assert learning_rate(970, **schedule) == 2.0
    assert learning_rate(97_000, **schedule) == 0.0
    assert learning_rate(485, **schedule) == 1.0


def test_start_floor_and_missing_warmup():
    schedule = {"total_steps": 100, "warmup_steps": 10, "peak": 1.0, "start_factor": 0.25, "floor": 0.125}
    assert learning_rate(0, **schedule) == 0.25
    assert learning_rate(10, **schedule) == 1.0
    assert learning_rate(100, **schedule) == 0.125
    assert learning_rate(0, total_steps=100, warmup_steps=0, peak=1.0) == 1.0
    assert learning_rate(5, total_steps=5, warmup_steps=5, peak=1.0) == 1.0


def recipes_rate(settings, step: int, *, total: int, warmup: int) -> float:
    return learning_rate(
        step,
        total_steps=total,
        warmup_steps=warmup,
        peak=settings["peak_lr"],
        start_factor=settings["lr_start_factor"],
        floor=settings["lr_floor"],
    )


@pytest.mark.parametrize("name", ["cifar10_authors", "imagenet_authors"])
def test_the_authors_schedule_is_that_of_their_schedulers(name):
    """LinearLR in the warm-up, then CosineAnnealingLR: both built at once, one stepped after each step (main.py)."""
    recipe = load_recipe(name, {"epochs": 60})
    settings, steps = recipe["optimizer"], 20
    warmup, total = settings["warmup_epochs"] * steps, recipe["epochs"] * steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings["peak_lr"])
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-8, end_factor=1, total_iters=warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=1e-8)
    for step in range(total):
        ours = recipes_rate(settings, step, total=total, warmup=warmup)
        # theirs multiplies the rate of the step before: a thousand roundings
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours, rel=1e-6, abs=1e-12)
        optimizer.step()
        (linear if step < warmup else cosine).step()


def test_the_official_schedule_at_every_step():
    """schedules.py of deepmind-research/byol: linear from 0, then a cosine to 0, all per step."""
    recipe = load_recipe("imagenet_official_40")
    settings, steps = recipe["optimizer"], 8
    warmup, total, peak = settings["warmup_epochs"] * steps, recipe["epochs"] * steps, 0.45 * 4096 / 256
    for step in range(total):
        place = (step - warmup) / (total - warmup)
        wanted = step / warmup * peak if step < warmup else peak * (0.5 * (1 + np.cos(np.pi * place)))
        found = recipes_rate(settings, step, total=total, warmup=warmup)
        assert found == pytest.approx(wanted, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize(("name", "floor"), [("cifar10", 0.0), ("cifar10_authors", 1e-4)])
def test_the_linear_protocols_rate_at_every_step(name, floor):
    """90 epochs of 195 steps, a cosine from 0.2 without warm-up; the authors' is CosineAnnealingLR(eta_min=0.0001)."""
    linear = load_recipe(name)["linear"]
    total = linear["epochs"] * 195
    rates = [
        learning_rate(step, total_steps=total, warmup_steps=0, peak=linear["peak_lr"], floor=linear["lr_floor"])
        for step in range(total)
    ]
    wanted = floor + (0.2 - floor) * (1 + np.cos(np.pi * np.arange(17_550) / 17_550)) / 2
    np.testing.assert_allclose(rates, wanted, rtol=1e-12, atol=1e-16)
    assert rates[0] == 0.2 and rates[17_550 // 2] == pytest.approx((0.2 + floor) / 2)
    assert floor < rates[-1] < floor + 1e-8


def _trained_lars(lr_in_momentum: bool, lr, gradients, scaler=None) -> list[torch.Tensor]:
    """Parameters and momenta after a step for each list of gradients, which a scaler is given scaled."""
    parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)), torch.nn.Parameter(torch.ones(5))]
    groups = [{"params": [one], "lars_weight": weight} for one, weight in zip(parameters, (1.0, 0.0), strict=True)]
    optimizer = LARS(groups, lr=lr, weight_decay=1e-3, lr_in_momentum=lr_in_momentum)
    for step in gradients:
        for one, gradient in zip(parameters, step, strict=True):
            one.grad = gradient.clone() if scaler is None else scaler.scale(gradient.clone())
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return [*(one.detach() for one in parameters), *(optimizer.state[one]["momentum_buffer"] for one in parameters)]


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_lars_takes_its_rate_from_the_device_too(lr_in_momentum):
    """The same bits on a CPU. A number that float32 rounds, so that a rounding too many would show."""
    gradients = [[torch.randn(3, 4), torch.randn(5)] for _ in range(10)]
    wanted = _trained_lars(lr_in_momentum, 0.2371, gradients)
    for found, one in zip(_trained_lars(lr_in_momentum, torch.tensor(0.2371), gradients), wanted, strict=True):
        assert found.equal(one)


def test_momenta_exist_before_the_first_step_and_follow_a_conversion():
    layer = torch.nn.Linear(3, 2)
    optimizer = LARS(layer.parameters(), lr=0.1)
    assert all(not optimizer.state[one]["momentum_buffer"].any() for one in layer.parameters())
    layer.double()(torch.ones(4, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert all(optimizer.state[one]["momentum_buffer"].dtype == torch.float64 for one in layer.parameters())


@pytest.mark.parametrize("unscaled_first", [True, False])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_lars_under_a_gradient_scaler(lr_in_momentum, unscaled_first):
    """Without an overflow, the unscaled steps: the scale is a power of two. A step that overflowed leaves every bit."""

    class Scaler(torch.amp.GradScaler):
        def step(self, optimizer):
            if unscaled_first:
                self.unscale_(optimizer)
            return super().step(optimizer)

    def scaler():
        return Scaler("cpu", init_scale=2.0**10)

    gradients = [[torch.randn(3, 4), torch.randn(5)] for _ in range(4)]
    wanted = _trained_lars(lr_in_momentum, 0.25, gradients)
    for found, one in zip(_trained_lars(lr_in_momentum, 0.25, gradients, scaler()), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-6)
    infinite = [torch.full((3, 4), 1.0), torch.tensor([1.0, math.inf, math.nan, 0.0, 1.0])]
    before = _trained_lars(lr_in_momentum, 0.25, gradients, scaler())
    after = _trained_lars(lr_in_momentum, 0.25, [*gradients, infinite], scaler())
    assert all(one.equal(other) for one, other in zip(before, after, strict=True))


def test_momenta_take_the_layout_of_their_parameters():
    """A state saved in one memory layout and loaded into the other: the same numbers, in the parameters' layout."""
    kernel = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    optimizer = LARS([kernel], lr=0.1)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    other = torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    again = LARS([other], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    momentum = again.state[other]["momentum_buffer"]
    assert momentum.equal(optimizer.state[kernel]["momentum_buffer"]) and momentum.stride() == other.stride()
