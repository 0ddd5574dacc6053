"""The optimiser that a recipe names."""

from collections.abc import Mapping

import torch

from selfsup.optim.lars import LARS
from selfsup.optim.parameter_groups import ParameterTreatment, optimizer_groups

OPTIMIZERS = {"lars": LARS}


def build_optimizer(treatments: list[ParameterTreatment], settings: Mapping) -> torch.optim.Optimizer:
    """Return the optimiser of these parameters. settings: the recipe's block `optimizer`."""
    return OPTIMIZERS[settings["name"]](
        optimizer_groups(treatments),
        lr=settings["peak_lr"],
        momentum=settings["momentum"],
        trust_coefficient=settings["trust_coefficient"],
        lr_in_momentum=settings["lr_in_momentum"],
    )
