"""Figures of features that tell whether an encoder has collapsed. Features: float [N, D], one row a picture.

Each is computed in float32 and changes nothing: no gradient, no random number, no running statistic.
"""

import torch
from torch.nn import functional as F

RANK_EPSILON = 1e-7  # added to each share of a singular value: RankMe, section 3.1, for float32
FEATURE_SPREAD_FLOOR = 0.02
RANK_FLOOR_SHARE = 0.005  # of the features, beyond the first


def encoder_floors(features: int) -> dict[str, float]:
    """Return what an encoder with so many features has collapsed below, whatever the method: its `floors`.

    A collapsed one has a spread of 0 and a rank of 1. The lowest of healthy ones, measured: 0.05 and 1.5 of 32 in the
    first ten steps, whose running statistics are far off, later 0.4 and 8 of 128; an untrained ResNet-18 0.24 and 39 of
    512, ResNet-50 0.23 and 185 of 2,048; 173 epochs of CIFAR-10 on an H100 0.60 and 155 of 512.
    """
    return {"feature_spread": FEATURE_SPREAD_FLOOR, "effective_rank": 1 + RANK_FLOOR_SHARE * features}


def feature_spread(features: torch.Tensor) -> float:
    """Return the standard deviation of normalised features, mean over dimensions, times the root of their number.

    1 for features spread evenly over the sphere, 0 for a collapsed encoder (Chen & He 2021, section 4.1).
    """
    normalised = F.normalize(features.float(), dim=1)
    return float(normalised.std(dim=0).mean() * features.shape[1] ** 0.5)


def alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the mean squared distance of two views' normalised features (Wang & Isola 2020, eq. 1, alpha = 2)."""
    return float((F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)).square().sum(dim=1).mean())


def uniformity(features: torch.Tensor) -> float:
    """Return log E exp(-2 |x - y|^2) over pairs of normalised features (Wang & Isola 2020, eq. 2, t = 2).

    0 when all are equal; about -4 for features spread evenly over the sphere of many dimensions.
    """
    squares = torch.pdist(F.normalize(features.float(), dim=1)).square()
    return float(squares.mul(-2).exp().mean().log())


def effective_rank(features: torch.Tensor) -> float:
    """Return exp of the entropy of the singular values' shares: RankMe (Garrido et al. 2023, eq. 1).

    1 for features on one line, D for features that fill all dimensions alike; NaN for features that are not finite.
    """
    if not torch.isfinite(features).all():
        return float("nan")
    singular = torch.linalg.svdvals(features.float())
    shares = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny) + RANK_EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))
