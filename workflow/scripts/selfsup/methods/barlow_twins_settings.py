"""What a recipe says of Barlow Twins."""

from selfsup.methods.settings import TwoViewsSettings
from selfsup.settings.notes import NotNegative, Positive
from selfsup.settings.registries import METHODS


@METHODS.add("barlow_twins", builds="selfsup.methods.barlow_twins:BarlowTwins")
class BarlowTwinsSettings(TwoViewsSettings):
    redundancy: NotNegative
    """lambda: weight of the squares off the cross-correlation's diagonal"""
    loss_scale: Positive
    """what the loss is multiplied by"""
    bias_and_norm_lr_scale: Positive
    """learning rate of biases, scales and shifts, as a share of the weights'"""
