"""VICReg: variance kept up, views alike, dimensions uncorrelated (Bardes, Ponce & LeCun 2022)."""

import torch
from torch.nn import functional as F

from selfsup.methods.joint_embedding import JointEmbedding, in_full, product
from selfsup.methods.method import Batch, Output, Step

EPSILON = 1e-4  # added to the variance: the paper's and the official code's
DEVIATION_FLOOR = 0.1  # measured on the digits: 0.45 to 0.65; 0.0001 without the variance's term


def vicreg_loss(
    first: torch.Tensor, second: torch.Tensor, invariance: float, variance: float, covariance: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return invariance s(Z, Z') + variance [v(Z) + v(Z')] + covariance [c(Z) + c(Z')] (eq. 6), and its three terms.

    first, second: projections [N, D] of the two views, of the whole global batch; computed with in float32 or wider.
    As in the official code v is halved, which the paper's equation is not, and s is a mean over dimensions too.
    """
    first, second = in_full(first, second)
    terms = {
        "invariance": F.mse_loss(first, second),
        "variance": (lacking_deviation(first) + lacking_deviation(second)) / 2,
        "covariance": squared_covariances(first) + squared_covariances(second),
    }
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return sum(weights[name] * term for name, term in terms.items()), terms


def lacking_deviation(z: torch.Tensor) -> torch.Tensor:
    """Return the mean over dimensions of max(0, 1 - sqrt(var + epsilon)) (eq. 1 and 2)."""
    return F.relu(1 - (z.var(0) + EPSILON).sqrt()).mean()


def squared_covariances(z: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squared covariances of different dimensions over their number D (eq. 3 and 4)."""
    z = z - z.mean(0)
    covariances = product(z.T, z) / (len(z) - 1)
    return (covariances.square().sum() - covariances.diagonal().square().sum()) / z.shape[1]


class VICReg(JointEmbedding):
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def loss(self, batch: Batch, step: Step) -> Output:
        first, second = map(self.context.ranks.gather_with_gradient, self.projections(batch).chunk(2))
        weights = (self.settings[name] for name in ("invariance", "variance", "covariance"))
        return Output(*vicreg_loss(first, second, *weights))

    @property
    def floors(self) -> dict[str, float]:
        return super().floors | {"projection_deviation": DEVIATION_FLOOR}

    def projection_health(self, projections: torch.Tensor) -> dict[str, float]:
        return {"projection_deviation": float(projections.float().std(0).mean())}
