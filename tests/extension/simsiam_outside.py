"""One of each kind from outside the package: method, optimiser, backbone, task, tracker. The code lies beside this.

Snakemake reads this file in every job, so it imports no torch.
"""

from typing import Literal

from selfsup.evaluation.task_settings import FrozenSettings
from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.models.head_settings import LayersSettings
from selfsup.optim.settings import OptimizerSettings
from selfsup.settings.notes import Count, Share
from selfsup.settings.registries import BACKBONES, METHODS, OPTIMIZERS, TASKS, TRACKERS
from selfsup.settings.typed import Settings


@METHODS.add("simsiam_outside", builds="simsiam_outside_code:SimSiam")
class SimSiamSettings(Settings):
    projector: LayersSettings
    predictor: LayersSettings
    pull: Share
    """how fast the centre follows"""


@OPTIMIZERS.add("sign", builds="simsiam_outside_code:build_sign")
class SignSettings(OptimizerSettings):
    name: Literal["sign"]
    """the optimiser"""
    momentum: Share
    """share of the buffer that is kept in a step"""


@BACKBONES.add("three_layers", builds="simsiam_outside_code:three_layers")
class ThreeLayersSettings(Settings):
    backbone: Literal["three_layers"]
    """the network"""
    width: Count
    """channels"""
    batch_norm: BatchNormSettings


@TASKS.add("class_means", builds="simsiam_outside_code:ClassMeans")
class ClassMeansSettings(FrozenSettings):
    normalise: bool
    """are features scaled to length 1"""

    def protocol(self, recipe):
        return f"nearest class mean, {'normalised ' if self.normalise else ''}features"


TRACKERS.added["lines"] = "simsiam_outside_code:Lines"
