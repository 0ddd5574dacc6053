"""What a protocol says of the logistic regression on frozen features."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

from selfsup.evaluation.task_settings import FrozenSettings
from selfsup.settings.notes import Bounds, Count, Positive, Range
from selfsup.settings.registries import TASKS


@TASKS.add("logistic", builds="selfsup.evaluation.logistic:LogisticRegression")
class LogisticSettings(FrozenSettings):
    range: Range
    """the least and the greatest strength of the penalty, which is strength / 2 times the sum of the squared weights,
    beside the mean cross entropy; biases are free"""
    strengths: Count
    """how many are tried, spaced evenly in their logarithms"""
    validation: Annotated[float, Bounds(more_than=0, less_than=1)]
    """the share of each class's training images on which the strength is chosen"""
    tolerance: Positive
    """how far an objective may be from its least value, relative to it"""

    chooses_by_measure = True

    def problems(self) -> Iterator[str]:
        if self.range[0] > self.range[1]:
            yield f"range is {self.range}, wanted the smaller strength first"

    @property
    def grid(self) -> list[float]:
        """The strengths, the greatest first: each is solved from the last one's solution."""
        least, greatest = map(math.log10, self.range)
        steps = max(self.strengths - 1, 1)
        return [10 ** (greatest + (least - greatest) * place / steps) for place in range(self.strengths)]

    def protocol(self, recipe: Mapping) -> str:
        return (
            f"logistic regression, l2, {self.strengths} strengths from {self.range[0]:g} to {self.range[1]:g}, chosen "
            f"on {100 * self.validation:g} % of the training images, retrained on all, {self.precision} features"
        )

    def in_words(self, recipe: Mapping) -> str:
        return f"penalty strength/2 beside the mean cross entropy, biases free, {super().in_words(recipe)}"

    @property
    def goal(self) -> str:
        return f"strength {self.strengths}"
