"""What a recipe says of SimSiam."""

from typing import Literal

from selfsup.methods.settings import PredictingSettings
from selfsup.settings.registries import METHODS


@METHODS.add("simsiam", builds="selfsup.methods.simsiam:SimSiam")
class SimSiamSettings(PredictingSettings):
    predictor_lr: Literal["constant", "scheduled"]
    """the predictor's learning rate stays at optimizer.peak_lr, or follows the schedule as all others do"""
