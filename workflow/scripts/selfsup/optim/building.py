"""The optimiser that a recipe names."""

from collections.abc import Mapping

import torch

from selfsup.optim.parameter_groups import ParameterTreatment, optimizer_groups
from selfsup.optim.settings import OptimizerSettings
from selfsup.settings.registries import OPTIMIZERS


def build_optimizer(treatments: list[ParameterTreatment], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimiser of these parameters. settings: the recipe's block `optimizer`."""
    return OPTIMIZERS.component(settings.name)(optimizer_groups(treatments), settings)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Take over an optimiser's `state_dict`. Keys of groups that an older one lacks keep what they were built with.

    Buffers get their parameters' memory layout: kernels for many tensors at once want the layouts alike.
    """
    built = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, known in zip(optimizer.param_groups, built, strict=True):
        for key, value in known.items():
            group.setdefault(key, value)
    for parameter, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                buffers[name] = torch.empty_like(parameter).copy_(value)
