"""k-NN classification: each test picture by the votes of the training pictures nearest to it. Nothing is trained.

Weighted votes as `selfsup.measures.knn`, over the whole training set (Wu et al. 2018, section 3.4). Blocks of test
pictures are the same whatever the number of ranks, each on one of them; of the training set a part at a time is on the
device, read once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from selfsup.engine.saving import Saver
from selfsup.evaluation.extraction import Features, SplitFeatures, features_of
from selfsup.evaluation.task import Task
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy, mean_per_class, votes

QUERIES_AT_ONCE = 512
BANK_AT_ONCE = 65536  # rows: of 2,048 features in float32 512 MB


class NearestNeighbours(Task):
    """Counts how many test pictures are classified right, for each number of neighbours.

    blocks: this rank's test pictures, QUERIES_AT_ONCE at a time.
    """

    total_steps = 1
    measures = ("top-1", "mean per class")
    blocks: list["Nearest"]

    def run(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, Any]]:
        """Yield a row for each number of neighbours: neighbours, top1, top5, mean_per_class, in %."""
        features = features_of(self.judged, self.settings, attempt, partial)
        if features is None:
            return  # asked to stop: what is extracted is kept
        mine, device, most = self._own_blocks(features.test), self.compute.device, max(self.settings.neighbours)
        self.blocks = [Nearest(features.test.rows(one).to(device), most) for one in mine]
        for part in bank_parts(features.train):
            if self.compute.ranks.any(attempt.stop.reason is not None):
                return
            self._look_in(features.train, part)
            attempt.heartbeat(f"training image {part.start}")
        self._count(features, [place for one in mine for place in one])
        self.further_rows, self.step = self.rows[1:], 1
        yield from self.rows

    def _own_blocks(self, test: SplitFeatures) -> list[range]:
        ranks, size = self.compute.ranks, QUERIES_AT_ONCE
        starts = range(ranks.rank * size, len(test), ranks.size * size)
        return [range(start, min(start + size, len(test))) for start in starts]

    def _look_in(self, bank: SplitFeatures, part: range) -> None:
        device = self.compute.device
        rows, labels = F.normalize(bank.rows(part).to(device), dim=1), bank.labels(part).to(device)
        for block in self.blocks:
            block.look_in(rows, labels)

    def _count(self, features: Features, mine: list[int]) -> None:
        """Add a row for each number of neighbours. mine: this rank's test pictures. Collective."""
        ranks, device, test = self.compute.ranks, self.compute.device, features.test
        truth, none = test.labels(mine).to(device), torch.empty(0, self.classes, device=device)
        for count in self.settings.neighbours:
            parts = [one.votes(count, self.classes, self.settings.temperature) for one in self.blocks]
            scores = torch.cat([none, *parts])
            top = accuracy(scores, truth, len(test), ranks)
            self.rows.append({"neighbours": count, **top, "mean_per_class": mean_per_class(scores, truth, ranks)})

    def figures(self) -> dict[str, Any]:
        return {key: self.rows[0][key] for key in ("top1", "top5", "mean_per_class")}


class Nearest:
    """The rows of a bank that are nearest to some queries by their cosines, found a part of the bank at a time."""

    def __init__(self, queries: torch.Tensor, count: int):
        """queries: float32 [Q, D]. count: of neighbours; or all of the bank."""
        self._queries, self._most = F.normalize(queries, dim=1), count
        self.cosines = queries.new_empty(len(queries), 0)
        self.labels = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def look_in(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        """Take a part of the bank into account: normalised, float32 [n, D], and its labels, int64 [n]."""
        found, places = largest(self._queries @ rows.T, self._most)
        known = torch.cat([self.labels, labels[places]], dim=1)
        self.cosines, best = largest(torch.cat([self.cosines, found], dim=1), self._most)
        self.labels = known.gather(1, best)

    def votes(self, count: int, classes: int, temperature: float) -> torch.Tensor:
        """Return the weight of each class among the nearest `count`: float32 [Q, classes]."""
        return votes(self.cosines[:, :count], self.labels[:, :count], classes, temperature)


def bank_parts(bank: SplitFeatures) -> Iterator[range]:
    """Yield which rows of a bank are on the device together."""
    for start in range(0, len(bank), BANK_AT_ONCE):
        yield range(start, min(start + BANK_AT_ONCE, len(bank)))


def largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's largest values and their places, [Q, count] or all, the largest first; of equal ones the first.

    torch.topk alone chooses among equal ones as it likes.
    """
    if count >= values.shape[1]:
        return values.sort(dim=1, descending=True, stable=True)
    found, places = values.topk(count + 1, dim=1)
    places, order = places.sort(dim=1)
    found, order = found.gather(1, order).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    undecided = (found[:, count - 1] == found[:, count]).nonzero().flatten()  # which of them are among the `count`
    if len(undecided):
        whole, order = values[undecided].sort(dim=1, descending=True, stable=True)
        found[undecided], places[undecided] = whole[:, : count + 1], order[:, : count + 1]
    return found[:, :count], places[:, :count]
