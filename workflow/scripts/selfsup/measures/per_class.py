"""Accuracy as the mean over classes: the measure of data sets whose classes differ in size."""

import torch

from selfsup.engine.distributed import Ranks


def hits_per_class(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return how many pictures of each class there are, and of how many the class was predicted: int64 [2, classes].

    predicted, labels: int64 [N].
    """
    right = labels[predicted == labels]
    return torch.stack([torch.bincount(one, minlength=classes) for one in (labels, right)])


def mean_per_class(logits: torch.Tensor, labels: torch.Tensor, ranks: Ranks) -> float:
    """Return the mean of the classes' accuracies in %, over all ranks' parts of a test set. Collective.

    logits: float [N, classes], of equal ones the lower class is predicted; labels: int64 [N]. Classes without pictures
    are left out.
    """
    highest = logits == logits.amax(dim=1, keepdim=True) if len(logits) else logits.bool()
    predicted = highest.int().argmax(dim=1)  # argmax of equal logits is any of them; of a 1, the first
    images, hits = ranks.all_reduce(hits_per_class(predicted, labels, logits.shape[1])).double()
    return float(100 * (hits / images)[images > 0].mean())
