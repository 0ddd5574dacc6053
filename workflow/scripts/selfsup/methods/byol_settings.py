"""What a recipe says of BYOL."""

from collections.abc import Iterator
from typing import Any, Literal

from selfsup.models.head_settings import HeadSettings
from selfsup.settings.notes import Share
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings


@METHODS.add("byol", builds="selfsup.methods.byol:BYOL")
class BYOLSettings(Settings):
    projector: HeadSettings
    predictor: HeadSettings
    tau_base: Share
    """the average's momentum at step 0; it rises to 1 along a cosine"""
    average_update: Literal["before_forward", "after_step"]
    """when the target follows the online network"""
    average_buffers: bool
    """whether the average covers batch norm's running statistics"""
    target_batch_norm: Literal["batch", "running"]
    """the target normalises with its batch's statistics (train mode) or with running ones"""
    target_init: Literal["copy", "independent"]
    """the target starts as a copy of the online network or from its own random weights"""
    loss_reduction: Literal["sum", "mean"]
    """the two directions' losses are added or averaged"""

    @property
    def moving_average(self) -> bool:
        """Backbone and projector have a moving average."""
        return True

    def problems(self) -> Iterator[str]:
        if self.projector.out != self.predictor.out:
            yield f"predictor.out is {self.predictor.out}, wanted {self.projector.out}, like the projector's"
        if self.target_batch_norm == "running" and not self.average_buffers:
            yield "target_batch_norm is 'running', but nothing updates those statistics: set average_buffers: true"

    def problems_in(self, whole: Any) -> Iterator[str]:
        if len(whole.augment.views) != 2:
            yield f"augment.views has {len(whole.augment.views)} views, wanted 2 for BYOL"
        sizes = list(dict.fromkeys(view.size or whole.augment.size for view in whole.augment.views))
        if len(sizes) > 1:
            yield f"augment.views have sizes {' and '.join(map(str, sizes))}, wanted one size for BYOL"
