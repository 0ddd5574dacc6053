"""What a recipe says of SimCLR."""

from collections.abc import Iterator
from typing import Any, Literal

from selfsup.models.head_settings import LayersSettings
from selfsup.settings.notes import Positive
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings


@METHODS.add("simclr", builds="selfsup.methods.simclr:SimCLR")
class SimCLRSettings(Settings):
    projector: LayersSettings
    temperature: Positive
    """cosines are divided by it before the softmax"""
    loss_reduction: Literal["mean", "sum"]
    """mean over all rows, or the sum of the two views' means, which is twice that"""

    def problems_in(self, whole: Any) -> Iterator[str]:
        views = whole.augment.views
        if len(views) != 2:
            yield f"augment.views has {len(views)} views, wanted 2 for SimCLR"
        elif len({view.size for view in views}) > 1:
            yield "augment.views have different sizes, wanted one size: SimCLR's go through the network together"
