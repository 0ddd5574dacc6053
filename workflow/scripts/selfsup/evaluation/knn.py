"""k-NN classification: each test picture by the votes of the training pictures nearest to it. Nothing is trained.

Weighted votes as `selfsup.measures.knn`, over the whole training set (Wu et al. 2018, section 3.4).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from selfsup.engine.saving import Saver
from selfsup.evaluation.extraction import SplitFeatures
from selfsup.evaluation.task import Task
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy, votes

QUERIES_AT_ONCE = 512
BANK_AT_ONCE = 65536  # rows: of 2,048 features in float32 512 MB


class NearestNeighbours(Task):
    """Counts how many test pictures are classified right, for each number of neighbours."""

    total_steps = 1

    def run(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, Any]]:
        """Yield a row for each number of neighbours: neighbours, top1, top5, in %."""
        judged, device = self.judged, self.compute.device
        bank = SplitFeatures.of(judged, "train", self.settings, attempt)
        queries = SplitFeatures.of(judged, "test", self.settings, attempt) if bank else None
        if not bank or not queries:
            return  # asked to stop: what is extracted is kept
        ranks = self.compute.ranks
        mine = range(ranks.rank, len(queries), ranks.size)
        logits = {count: [] for count in self.settings.neighbours}
        for start in range(0, len(mine), QUERIES_AT_ONCE):
            rows = queries.rows(mine[start : start + QUERIES_AT_ONCE]).to(device)
            cosines, labels = nearest(F.normalize(rows, dim=1), bank, max(logits))
            for count, found in logits.items():
                found.append(votes(cosines[:, :count], labels[:, :count], self.classes, self.settings.temperature))
            attempt.heartbeat(f"test image {start}")
        truth = queries.labels(mine).to(device)
        for count, found in logits.items():
            scores = torch.cat([*found, torch.empty(0, self.classes, device=device)])
            self.rows.append({"neighbours": count, **accuracy(scores, truth, len(queries), ranks)})
            yield self.rows[-1]
        self.further_rows, self.step = self.rows[1:], 1

    def figures(self) -> dict[str, Any]:
        return {key: self.rows[0][key] for key in ("top1", "top5")}


def nearest(queries: torch.Tensor, bank: SplitFeatures, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and labels of the nearest rows of a bank, [Q, k] each, the nearest first.

    queries: float32 [Q, D], normalised. Of the bank a part at a time is on the device, so that any bank fits. k: count,
    or all of the bank.
    """
    cosines, labels = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    labels = labels.to(queries.device)
    for start in range(0, len(bank), BANK_AT_ONCE):
        part = range(start, min(start + BANK_AT_ONCE, len(bank)))
        found = queries @ F.normalize(bank.rows(part).to(queries.device), dim=1).T
        found, places = found.topk(min(count, len(part)), dim=1)
        known = torch.cat([labels, bank.labels(part).to(queries.device)[places]], dim=1)
        cosines, best = torch.cat([cosines, found], dim=1).topk(min(count, start + len(part)), dim=1)
        labels = known.gather(1, best)
    return cosines, labels
