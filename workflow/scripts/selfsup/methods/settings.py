"""What recipes say of every method that compares two views of an image."""

from collections.abc import Iterator
from typing import Any

from selfsup.models.head_settings import LayersSettings
from selfsup.settings.typed import Settings


class TwoViewsSettings(Settings):
    """Of a method whose two views go through a backbone and a projector together."""

    projector: LayersSettings

    def problems_in(self, whole: Any) -> Iterator[str]:
        views = whole.augment.views
        if len(views) != 2:
            yield f"augment.views has {len(views)} views, wanted 2 for {whole.method}"
        elif len({view.size for view in views}) > 1:
            yield f"augment.views have different sizes, wanted one size for {whole.method}"


class PredictingSettings(TwoViewsSettings):
    """Of one that predicts the other view's projection."""

    predictor: LayersSettings

    def problems(self) -> Iterator[str]:
        if self.projector.out != self.predictor.out:
            yield f"predictor.layers end in {self.predictor.out}, wanted {self.projector.out}, like the projector's"
