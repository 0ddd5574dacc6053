"""What a recipe says of VICReg."""

from selfsup.methods.settings import TwoViewsSettings
from selfsup.settings.notes import NotNegative
from selfsup.settings.registries import METHODS


@METHODS.add("vicreg", builds="selfsup.methods.vicreg:VICReg")
class VICRegSettings(TwoViewsSettings):
    invariance: NotNegative
    """weight of the mean squared distance of the two views' projections"""
    variance: NotNegative
    """weight of how far each dimension's standard deviation is below 1"""
    covariance: NotNegative
    """weight of the squared covariances of different dimensions"""
