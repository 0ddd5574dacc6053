"""The optimiser that a recipe names."""

import torch

from selfsup.optim.parameter_groups import ParameterTreatment, optimizer_groups
from selfsup.optim.settings import OptimizerSettings
from selfsup.settings.registries import OPTIMIZERS


def build_optimizer(treatments: list[ParameterTreatment], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimiser of these parameters. settings: the recipe's block `optimizer`."""
    return OPTIMIZERS.component(settings.name)(optimizer_groups(treatments), settings)
