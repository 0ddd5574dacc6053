"""k-NN accuracy: how well labels follow from the nearest features, without training anything.

Weighted votes of the 20 nearest by cosine, weight exp(cosine / 0.07): Wu et al. 2018, section 3.4; k as in DINO's
evaluation (Caron et al. 2021), whose 20 does best.
"""

import torch
from torch.nn import functional as F

NEIGHBOURS = 20
TEMPERATURE = 0.07
QUERIES_AT_ONCE = 256


def knn_top1(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor, classes: int
) -> float:
    """Return the share of queries, in %, whose label wins the vote of their neighbours in the bank.

    bank, queries: features, float [N, D] and [Q, D]; labels: int64. Of equal votes the lower class wins.
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    neighbours = min(NEIGHBOURS, len(bank))
    hits = 0
    for rows, truth in zip(queries.split(QUERIES_AT_ONCE), labels.split(QUERIES_AT_ONCE), strict=True):
        cosines, nearest = (rows @ bank.T).topk(neighbours, dim=1)
        hits += int((votes(cosines, bank_labels[nearest], classes, TEMPERATURE).argmax(dim=1) == truth).sum())
    return 100 * hits / len(labels)


def votes(cosines: torch.Tensor, labels: torch.Tensor, classes: int, temperature: float) -> torch.Tensor:
    """Return the weight of each class among neighbours: float32 [Q, classes].

    cosines: float32 [Q, k]. labels: of the neighbours, int64 [Q, k].
    """
    weights = (cosines / temperature).exp()
    found = weights.new_zeros(len(weights), classes)
    # A neighbour at a time: no two of one row, so that the sum has one order on every device; and nothing of
    # [Q, k, classes], which of 1,000 classes would be 0.8 GB.
    for label, weight in zip(labels.split(1, dim=1), weights.split(1, dim=1), strict=True):
        found.scatter_add_(1, label, weight)
    return found
