"""What the settings of every task tell: what its figures depend on, in words, and how it is run. Imports no torch."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from selfsup.augment.settings import Interpolation, View
from selfsup.settings.notes import Count
from selfsup.settings.typed import Settings

MEAN_PER_CLASS = "mean per class"  # a dataset's measure: selfsup.tables.figure_keys, which is slow to import


class TestView(Settings):
    """How a picture is made that nothing is drawn for."""

    resize: Count
    """pixels of the shorter side before the centre crop"""
    crop: Count
    """pixels of the centre crop's side"""
    interpolation: Interpolation
    """of the resize"""

    def problems(self) -> Iterator[str]:
        if self.crop > self.resize:
            yield f"crop is {self.crop}, larger than the resized picture of {self.resize}"

    def __str__(self) -> str:
        return f"test resize {self.resize} {self.interpolation} and crop {self.crop}"


class TaskSettings(Settings):
    """The settings of a task, an evaluation's kind. A protocol, a file of workflow/protocols, gives them."""

    version: ClassVar[int] = 1
    """Whoever changes a figure of the task raises it, so that finished evaluations run again. Golden figures in the
    tests fail if that is forgotten."""

    def protocol(self, recipe: Mapping) -> str:
        """Return the protocol in words: what papers say first."""
        raise NotImplementedError

    def in_words(self, recipe: Mapping) -> str:
        """Return in words what else the figures depend on, as far as papers tell it."""
        return ""

    chooses_by_measure: ClassVar[bool] = False
    """Whether the mean of the classes' accuracies chooses where the dataset is measured by it."""

    def made_from(self, measure: str) -> dict[str, str]:
        """Return what else the figures depend on than settings, data and encoder; measure: the dataset's."""
        return {"chosen_by": measure} if self.chooses_by_measure and measure == MEAN_PER_CLASS else {}

    @property
    def goal(self) -> str:
        """Where the job ends, for its ledger."""
        return "its end"

    @property
    def label_share(self) -> float:
        """The share of the training images whose labels are used, in %."""
        return 100

    @property
    def batches(self) -> dict[str, int]:
        """Batches that all devices share equally, by the keys that name them."""
        return {}

    def features(self, recipe: Mapping) -> Mapping | None:
        """Return how the features are made that the task looks at; None for a task that looks at pictures itself."""
        return None


class FrozenSettings(TaskSettings):
    """Of tasks that look at each picture once, as a frozen encoder's features of it."""

    test: TestView | None
    """of all pictures; null: of the recipe's linear evaluation"""
    precision: Literal["float32", "float16"]
    """of the features as they are kept"""

    def view(self, recipe: Mapping) -> Mapping:
        """Return how pictures are made."""
        return self.test or recipe["linear"]["test"]

    def in_words(self, recipe: Mapping) -> str:
        return str(TestView.of(self.view(recipe)))

    def features(self, recipe: Mapping) -> Mapping:
        """Return all that features depend on beside encoder and dataset: tasks that agree in it share them."""
        pixels = {key: recipe["augment"][key] for key in ("antialias", "quantize", "mean", "std")}
        return {"model": recipe["model"], "pixels": pixels, "view": self.view(recipe), "precision": self.precision}


def view_in_words(view: View, size: int) -> list[str]:
    """Return in words how training pictures are made. size: of the picture, in pixels."""
    (least, most), (narrow, wide) = view.crop.scale, view.crop.ratio
    others = [name for name in ("jitter", "grayscale", "blur", "solarize") if view[name]]
    return [
        f"crops of {least:g} to {most:g} of the area and ratio {narrow:.4g} to {wide:.4g} at {size} pixels",
        f"flip {view.flip:g}",
        *others,
    ]
