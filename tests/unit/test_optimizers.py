"""SGD and AdamW as a recipe names them, beside LARS; which parameters they treat how; states of older versions."""

import copy

import pytest
import torch
from torch import nn

from selfsup.methods import build_method
from selfsup.optim import build_optimizer, load_optimizer_state, optimizer_groups, parameter_treatments
from selfsup.recipe import load_recipe, recipe_names
from tiny import TINY

COMMON = {"peak_lr": 0.1, "weight_decay": 0.01, "lr_floor": 0.0}
SETTINGS = {
    "sgd": {"name": "sgd", **COMMON, "momentum": 0.9, "nesterov": False},
    "nesterov": {"name": "sgd", **COMMON, "momentum": 0.9, "nesterov": True},
    "plain": {"name": "sgd", **COMMON, "momentum": 0.0, "nesterov": False},
    "adamw": {"name": "adamw", **COMMON, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6},
}


def settings_of(name: str):
    """The recipe's block, as an experiment chooses it by overrides."""
    return load_recipe("digits", {**TINY, "optimizer": {**TINY["optimizer"], **SETTINGS[name]}}).optimizer


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def gradients(step: int, of: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(one.shape, generator=generator) for one in of.parameters()]


def restated(name: str, of: nn.Module, steps: int) -> list[torch.Tensor]:
    """The parameters after so many steps, in float64, by the formulas of the settings' docstrings."""
    settings = SETTINGS[name]
    values = [one.detach().double() for one in of.parameters()]
    decays = [settings["weight_decay"] if one.ndim > 1 else 0.0 for one in values]
    first, second = ([torch.zeros_like(one) for one in values] for _ in range(2))
    lr = settings["peak_lr"]
    for step in range(steps):
        for place, gradient in enumerate(gradients(step, of)):
            value, gradient = values[place], gradient.double()
            if settings["name"] == "sgd":
                gradient = gradient + decays[place] * value
                first[place] = settings["momentum"] * first[place] + gradient
                change = gradient + settings["momentum"] * first[place] if settings["nesterov"] else first[place]
                values[place] = value - lr * change
            else:
                beta1, beta2 = settings["beta1"], settings["beta2"]
                first[place] = beta1 * first[place] + (1 - beta1) * gradient
                second[place] = beta2 * second[place] + (1 - beta2) * gradient**2
                mean = first[place] / (1 - beta1 ** (step + 1))
                root = (second[place] / (1 - beta2 ** (step + 1))).sqrt() + settings["eps"]
                values[place] = value * (1 - lr * decays[place]) - lr * mean / root
    return values


def built(name: str, of: nn.Module) -> torch.optim.Optimizer:
    settings = settings_of(name)
    return build_optimizer(parameter_treatments(of, settings), settings)


def step(optimizer: torch.optim.Optimizer, of: nn.Module, number: int) -> None:
    for parameter, gradient in zip(of.parameters(), gradients(number, of), strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(gradient)  # autograd gives a gradient its parameter's layout
    optimizer.step()


@pytest.mark.parametrize("name", SETTINGS)
def test_it_does_what_its_settings_say(name):
    """Five steps of fp32 against float64; every kind of parameter, weight decay on weights alone."""
    ours = network()
    wanted = restated(name, ours, 5)
    optimizer = built(name, ours)
    for number in range(5):
        step(optimizer, ours, number)
    for parameter, value in zip(ours.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_state_that_was_saved_goes_on_to_the_same_bits(name):
    whole, first = network(), network()
    straight, before = built(name, whole), built(name, first)
    for number in range(4):
        step(straight, whole, number)
    for number in range(2):
        step(before, first, number)
    second = copy.deepcopy(first).to(memory_format=torch.channels_last)
    after = built(name, second)
    load_optimizer_state(after, copy.deepcopy(before.state_dict()))
    for number in range(2, 4):
        step(after, second, number)
    assert all(map(torch.equal, whole.parameters(), second.parameters()))
    for parameter, buffers in after.state.items():
        same = [one for one in buffers.values() if one.shape == parameter.shape and one.ndim == 4]
        assert all(one.stride() == parameter.stride() for one in same)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
@pytest.mark.parametrize("skipped_at", [0, 1])
def test_a_step_whose_gradients_overflow_changes_nothing(name, skipped_at):
    """The first one too: torch's SGD would go on with a buffer that was never written."""
    ours, other = network(), network()
    optimizer, straight = built(name, ours), built(name, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000, backoff_factor=0.999)
    done = 0
    for attempt in range(3):
        before = [one.detach().clone() for one in ours.parameters()]
        for parameter, gradient in zip(ours.parameters(), gradients(done, ours), strict=True):
            parameter.grad = gradient * scaler.get_scale() * (float("inf") if attempt == skipped_at else 1)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        if attempt == skipped_at:
            assert all(map(torch.equal, before, ours.parameters()))
        else:
            step(straight, other, done)
            done += 1
    for one, wanted in zip(ours.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_state_is_there_before_the_first_step_and_stays_where_it_is(name):
    """So that the first step is like the others: it allocates nothing."""
    ours = network().to(memory_format=torch.channels_last)
    optimizer = built(name, ours)
    places = [
        {key: (one.data_ptr(), one.stride(), one.dtype) for key, one in optimizer.state[parameter].items()}
        for parameter in ours.parameters()
    ]
    buffers = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "plain": set()}.get(name, {"momentum_buffer"})
    assert all(one.keys() == buffers for one in places)
    step(optimizer, ours, 0)
    for parameter, before in zip(ours.parameters(), places, strict=True):
        after = optimizer.state[parameter].items()
        tensors = {key: one for key, one in after if one is not None}  # torch notes that plain SGD has no buffer
        assert {key: (one.data_ptr(), one.stride(), one.dtype) for key, one in tensors.items()} == before


@pytest.mark.parametrize("done", [0, 2])
def test_adamw_has_the_bits_of_torchs_own_and_goes_on_from_its_state(done):
    """Which older versions have saved: that of the steps that were done, of none before the first."""
    theirs = network()
    settings = settings_of("adamw")
    groups = optimizer_groups(parameter_treatments(theirs, settings))
    wanted = torch.optim.AdamW(groups, lr=settings.peak_lr, betas=(0.9, 0.95), eps=1e-6, fused=True)
    for number in range(done):
        step(wanted, theirs, number)
    ours = copy.deepcopy(theirs)
    resumed, straight = built("adamw", ours), network()
    load_optimizer_state(resumed, copy.deepcopy(wanted.state_dict()))
    whole = built("adamw", straight)
    for number in range(done + 3):
        step(whole, straight, number)
        if number >= done:
            step(wanted, theirs, number)
            step(resumed, ours, number)
    for parameter, of_resumed, of_whole in zip(*(one.parameters() for one in (theirs, ours, straight)), strict=True):
        assert parameter.equal(of_resumed) and parameter.equal(of_whole)
        for key, value in wanted.state[parameter].items():
            assert value.equal(resumed.state[of_resumed][key]) and value.equal(whole.state[of_whole][key])


def test_an_older_state_without_a_groups_key_takes_what_the_group_was_built_with():
    ours = network()
    optimizer = built("sgd", ours)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["lr_scale"]
    load_optimizer_state(optimizer, state)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0] * len(optimizer.param_groups)


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).method == "byol"])
def test_the_resnets_parameters_are_treated_as_ever(name, of_shapes_alone):
    """Weights are those of linear layers and convolutions, norms those of normalisations, biases all others."""
    method = build_method(load_recipe(name), seed=0, total_steps=1)
    online = method.networks["online"]
    kinds = {}
    for module_name, module in online.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            norm = isinstance(module, nn.modules.batchnorm._NormBase)
            layer = isinstance(module, nn.Linear | nn.Conv2d) and own == "weight"
            kinds[f"{module_name}.{own}"] = "norm" if norm else "weight" if layer else "bias"
    treatments = method.parameter_groups()
    assert {one.name: one.kind for one in treatments} == kinds
    assert {one.lr_scale for one in treatments} == {1.0} and len(optimizer_groups(treatments)) == 2


class Embedded(nn.Module):
    """As timm's transformers are: embeddings are parameters of their own, which they exempt by name."""

    def __init__(self):
        super().__init__()
        self.pos_embed, self.token = nn.Parameter(torch.zeros(1, 4, 8)), nn.Parameter(torch.zeros(1, 1, 8))
        self.table = nn.Parameter(torch.zeros(5, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.norm = nn.LayerNorm(8)

    def no_weight_decay(self):
        return {"pos_embed", "token"}


def test_a_weight_has_two_dimensions_and_is_not_exempt():
    treatments = parameter_treatments(nn.ModuleDict({"backbone": Embedded()}), settings_of("adamw"))
    assert {one.name.removeprefix("backbone."): (one.kind, one.weight_decay) for one in treatments} == {
        "pos_embed": ("bias", 0.0),
        "token": ("bias", 0.0),
        "table": ("weight", 0.01),
        "scale": ("bias", 0.0),
        "norm.weight": ("norm", 0.0),
        "norm.bias": ("norm", 0.0),
    }
