"""What a recipe says of batch norm."""

from typing import Annotated, Literal

from selfsup.settings.notes import Bounds, Positive
from selfsup.settings.typed import Settings


class BatchNormSettings(Settings):
    statistics: Literal["both_views", "per_view"]
    """mean and variance over the whole batch of all views, or of each view by itself"""
    momentum: Annotated[float, Bounds(more_than=0, at_most=1)]
    """weight of the newest batch in the running statistics"""
    eps: Positive
    """added to the variance"""
