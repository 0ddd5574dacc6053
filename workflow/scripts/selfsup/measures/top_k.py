"""Top-k accuracy."""

import torch

from selfsup.engine.distributed import Ranks
from selfsup.errors import PermanentError


def top_k_hits(logits: torch.Tensor, labels: torch.Tensor, k: int) -> int:
    """Return how many labels are among their row's k largest logits.

    logits: float [N, classes]; labels: int64 [N]. Of equal logits the lower class counts as the larger, so that ties
    have one answer on every device. Raises PermanentError for logits that are not finite: they would rank nothing.
    """
    if not torch.isfinite(logits).all():
        raise PermanentError(
            "the classifier's logits are not finite: lower linear.peak_lr, or look at the encoder's features"
        )
    of_label = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    return int((ahead.sum(dim=1) < k).sum())


def accuracy(logits: torch.Tensor, labels: torch.Tensor, images: int, ranks: Ranks) -> dict[str, float]:
    """Return top1 and top5 in % over all ranks' parts of a test set of so many images. Collective.

    Raises AssertionError unless the parts have that many images together, PermanentError as `top_k_hits` does.
    """
    hits = [len(labels), top_k_hits(logits, labels, 1), top_k_hits(logits, labels, 5)]
    counted, top1, top5 = ranks.all_reduce(torch.tensor(hits, device=logits.device)).tolist()
    if counted != images:
        raise AssertionError(f"{counted} test images were counted, wanted each of {images} once")
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images}
