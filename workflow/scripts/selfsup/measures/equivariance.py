"""Whether an equivariance module knows what was done to a picture."""

import torch
from torch.nn import functional as F


@torch.no_grad()
def equivariance(views: torch.Tensor, predictions: torch.Tensor, origins: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return how much nearer predictions are to their views than the unaugmented pictures are.

    The mean of cos(y, y^) - cos(y, y0), 0 where nothing is known, and of (1 - cos(y, y0)) / (1 - cos(y, y^)), then 1
    (ADevillers/EquiMod, main.py). views y, predictions y^, origins y0: [2N, D], computed with in float32 or wider.
    """
    views, predictions, origins = (
        one.to(torch.promote_types(one.dtype, torch.float32)) for one in (views, predictions, origins)
    )
    near, far = F.cosine_similarity(views, predictions), F.cosine_similarity(views, origins)
    return {"equivariance_gain": (near - far).mean(), "equivariance_ratio": ((1 - far) / (1 - near)).mean()}
