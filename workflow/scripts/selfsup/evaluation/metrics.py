"""Top-k accuracy."""

import torch

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
