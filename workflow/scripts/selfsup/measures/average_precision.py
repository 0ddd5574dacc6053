"""Mean average precision of multi-label data sets, by 11 points (Everingham et al. 2010, section 4.2: VOC 2007)."""

import torch

RECALLS = 11  # 0, 0.1, ..., 1


def average_precision(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the mean, over 11 recalls, of the highest precision at that recall or a higher one.

    scores: float [N], of equal ones the first counts as higher. targets: [N], 1 for a picture of the class, 0 for none,
    -1 for one that counts as neither ("difficult"). NaN where no picture is of the class.
    """
    counted = targets >= 0
    positive = targets[counted][scores[counted].argsort(descending=True, stable=True)] == 1
    found = positive.cumsum(0)
    ranks = torch.arange(1, len(positive) + 1, device=positive.device)
    total = int(positive.sum())
    # In whole numbers: a recall of 3/10 as a float is not always 0.3.
    reached = [found * (RECALLS - 1) >= tenth * total for tenth in range(RECALLS)]
    precision = found.double() / ranks
    return sum(float(precision[at].max()) for at in reached) / RECALLS if total else float("nan")


def mean_average_precision(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the mean over classes in %. scores, targets: [N, classes], as of `average_precision`."""
    pairs = zip(scores.T, targets.T, strict=True)
    return 100 * sum(average_precision(*pair) for pair in pairs) / scores.shape[1]
