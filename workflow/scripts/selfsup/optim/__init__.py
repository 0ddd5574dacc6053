"""The optimiser, its schedule, and which parameters it treats how."""

from selfsup.optim.building import OPTIMIZERS, build_optimizer
from selfsup.optim.lars import LARS
from selfsup.optim.parameter_groups import optimizer_groups, parameter_treatments, treatment_table
from selfsup.optim.schedules import cosine, learning_rate

__all__ = [
    "LARS",
    "OPTIMIZERS",
    "build_optimizer",
    "cosine",
    "learning_rate",
    "optimizer_groups",
    "parameter_treatments",
    "treatment_table",
]
