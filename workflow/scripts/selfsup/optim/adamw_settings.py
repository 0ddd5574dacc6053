"""What a recipe says of AdamW."""

from typing import Literal

from selfsup.optim.settings import OptimizerSettings
from selfsup.settings.notes import Momentum, Positive
from selfsup.settings.registries import OPTIMIZERS


@OPTIMIZERS.add("adamw", builds="selfsup.optim.adamw:build")
class AdamWSettings(OptimizerSettings):
    name: Literal["adamw"]
    """the optimiser, a file in selfsup/optim"""
    beta1: Momentum
    """of the average of gradients"""
    beta2: Momentum
    """of the average of squared gradients"""
    eps: Positive
    """added to the root of the second average"""
