"""Augmentation: parameters drawn on the host (`draw`), pixels changed with them (`crop`, `apply`)."""

from selfsup.augment.draws import Draws, ViewDraws, draw
from selfsup.augment.operations import Views, apply, augment_batch, build_views, centre_view, crop

__all__ = ["Draws", "ViewDraws", "Views", "apply", "augment_batch", "build_views", "centre_view", "crop", "draw"]
