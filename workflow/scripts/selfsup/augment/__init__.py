"""Augmentation: parameters drawn on the host (`draw`), pixels changed with them (`crop`, `apply`)."""

from selfsup.augment.draws import Draws, ViewDraws, draw
from selfsup.augment.views import Views, apply, augment_batch, build_views, centre_view, crop, stack_crops

__all__ = [
    "Draws",
    "ViewDraws",
    "Views",
    "apply",
    "augment_batch",
    "build_views",
    "centre_view",
    "crop",
    "draw",
    "stack_crops",
]
