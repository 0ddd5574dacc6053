"""What a recipe says of a projector or a predictor."""

from selfsup.settings.notes import Count
from selfsup.settings.typed import Settings


class HeadSettings(Settings):
    hidden: Count
    """width of the hidden layer"""
    out: Count
    """width of the output"""
    bias_before_bn: bool
    """has the first layer a bias, which batch norm takes away again"""
    bias_last: bool
    """has the last layer a bias"""
