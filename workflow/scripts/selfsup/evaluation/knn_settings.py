"""What a protocol says of the k-NN classification."""

from collections.abc import Mapping
from typing import Annotated

from selfsup.evaluation.task_settings import FrozenSettings
from selfsup.settings.notes import Count, Distinct, Length, Positive
from selfsup.settings.registries import TASKS


@TASKS.add("knn", builds="selfsup.evaluation.knn:NearestNeighbours")
class KNNSettings(FrozenSettings):
    neighbours: Annotated[list[Count], Length(1), Distinct()]
    """how many vote; the first is the headline's, the others' figures go to further.csv"""
    temperature: Positive
    """of the votes' weights, exp(cosine / temperature)"""

    def protocol(self, recipe: Mapping) -> str:
        return f"k-NN, k {self.neighbours[0]}, temperature {self.temperature:g}, cosine, {self.precision} features"
