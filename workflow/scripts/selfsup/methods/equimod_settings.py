"""What a recipe says of EquiMod. Imports no torch."""

from collections.abc import Iterator
from typing import Any, Literal

from selfsup.methods.equimod_constants import AUTHORS, parameter_count
from selfsup.models.head_settings import LayersSettings
from selfsup.settings.notes import NotNegative, Positive
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings


@METHODS.add("equimod", builds="selfsup.methods.equimod:EquiMod")
class EquiModSettings(Settings):
    wraps: str
    """the method that the module extends; that method's block is in the recipe too"""
    projector: LayersSettings
    """from features to the space in which views are predicted"""
    parameter_encoder: LayersSettings
    """of a view's augmentation, for the predictor"""
    predictor: LayersSettings
    """from the unaugmented picture's place and the encoded augmentation to the view's place"""
    temperature: Positive
    """cosines are divided by it before the softmax; for the module only"""
    weight: NotNegative
    """lambda: of the module's loss beside the wrapped method's"""
    negatives: Literal["all", "views_of_other_images"]
    """all: views and predictions find each other among all others of both; views_of_other_images: predictions find
    their view among the views of other images (eq. 4)"""
    parameters: Literal["authors", "measured"]
    """what augmentations are normalised by. authors: the published code's constants, for views of 32 or 224 pixels;
    measured: mean and deviation of the policy's own draws, crops as shares of the picture"""

    def problems(self) -> Iterator[str]:
        if self.projector.out != self.predictor.out:
            yield f"predictor.out is {self.predictor.out}, wanted {self.projector.out}, like the projector's"

    def problems_in(self, whole: Any) -> Iterator[str]:
        augment = whole.augment
        if len(augment.views) != 2:
            yield f"augment.views has {len(augment.views)} views, wanted 2 for EquiMod"
        if augment.plain is None:
            yield "augment.plain is null, wanted the unaugmented picture, from which EquiMod predicts the views"
            return
        sizes = sorted({augment.plain.crop, *(view.size or augment.size for view in augment.views)})
        if len(sizes) > 1:
            yield (
                f"augment.views and augment.plain.crop have sizes {' and '.join(map(str, sizes))}, wanted one size: "
                "EquiMod's go through the network together"
            )
        length = parameter_count(augment.views)
        if self.parameters == "authors" and (augment.size, length) not in AUTHORS:
            yield (
                f"equimod.parameters is 'authors', who have no constants for views of {augment.size} pixels with "
                f"{length} parameters: set measured"
            )
