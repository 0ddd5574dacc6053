"""What a recipe says of MoCo v3."""

from selfsup.methods.settings import PredictingSettings
from selfsup.settings.notes import Positive, Share
from selfsup.settings.registries import METHODS


@METHODS.add("moco_v3", builds="selfsup.methods.moco_v3:MoCoV3")
class MoCoV3Settings(PredictingSettings):
    temperature: Positive
    """cosines are divided by it before the softmax"""
    momentum_base: Share
    """the momentum encoder's momentum at step 0; it rises to 1 along a cosine"""

    @property
    def moving_average(self) -> bool:
        """Backbone and projector have a moving average."""
        return True
