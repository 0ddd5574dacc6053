"""What a recipe says of SGD."""

from collections.abc import Iterator
from typing import Literal

from selfsup.optim.settings import OptimizerSettings
from selfsup.settings.notes import Momentum
from selfsup.settings.registries import OPTIMIZERS


@OPTIMIZERS.add("sgd", builds="selfsup.optim.sgd:build")
class SGDSettings(OptimizerSettings):
    name: Literal["sgd"]
    """the optimiser, a file in selfsup/optim"""
    momentum: Momentum
    """share of the momentum buffer that is kept in a step: buf = mu buf + g, p -= lr buf"""
    nesterov: bool
    """p -= lr (g + mu buf) instead"""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.nesterov and self.momentum == 0:
            yield "nesterov is true, but momentum is 0: there is nothing to look ahead with"
