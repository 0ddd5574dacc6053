"""What a recipe says of LARS."""

from typing import Literal

from selfsup.optim.settings import OptimizerSettings
from selfsup.settings.notes import Momentum, ParameterKinds, Positive, Share
from selfsup.settings.registries import OPTIMIZERS
from selfsup.settings.typed import since


@OPTIMIZERS.add("lars", builds="selfsup.optim.lars:build")
class LARSSettings(OptimizerSettings):
    name: Literal["lars"]
    """the optimiser, a file in selfsup/optim"""
    momentum: Momentum
    """share of the momentum buffer that is kept in a step"""
    trust_coefficient: Positive
    """LARS's eta"""
    lars_weight: Share
    """strength of the adaptation: 0 is SGD, 1 is LARS (paper, section 5.1)"""
    clip_trust: bool = since(False)
    """true: a tensor's rate is the smaller of lr and trust, its step at most SGD's; false: it is lr times trust"""
    exclude_from_lars: ParameterKinds
    """bias: biases; norm: scales and shifts of normalisation layers, by module type"""
    lr_in_momentum: bool
    """true: buf = mu buf + lr g, p -= buf; false: buf = mu buf + g, p -= lr buf"""

    def lars_weight_of(self, kind: str) -> float:
        return 0.0 if kind in self.exclude_from_lars else self.lars_weight
