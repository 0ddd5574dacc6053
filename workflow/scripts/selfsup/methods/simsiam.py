"""SimSiam: each view predicts the other's projection, whose gradient is stopped (Chen & He 2021).

No negatives, no average, no large batch: the stopped gradient and the predictor alone keep it from collapsing.
"""

from dataclasses import replace

import torch
from torch.nn import functional as F

from selfsup.measures import feature_spread
from selfsup.methods.joint_embedding import JointEmbedding, in_full
from selfsup.methods.method import Batch, Output, Step
from selfsup.optim.parameter_groups import ParameterTreatment

PREDICTOR_LR = "predictor_lr"
PROJECTION_SPREAD_FLOOR = 0.3  # measured on the digits: 0.96 to 1.0; 0.25 without the stopped gradient


def simsiam_loss(predictions: torch.Tensor, projections: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of -cos(prediction, projection), the projections taken as constants (eq. 1).

    predictions, projections: [N, D], computed with in float32 or wider.
    """
    return -F.cosine_similarity(*in_full(predictions, projections.detach()), dim=1).mean()


class SimSiam(JointEmbedding):
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def schedules(self, step: int) -> dict[str, float]:
        return {PREDICTOR_LR: self.context.recipe.optimizer.peak_lr} if self._constant else {}

    def parameter_groups(self) -> list[ParameterTreatment]:
        return [
            replace(one, lr_schedule=PREDICTOR_LR) if self._constant and one.name.startswith("predictor.") else one
            for one in super().parameter_groups()
        ]

    @property
    def _constant(self) -> bool:
        return self.settings.predictor_lr == "constant"

    def loss(self, batch: Batch, step: Step) -> Output:
        projections = self.projections(batch)
        (p1, p2), (z1, z2) = self.networks["predictor"](projections).chunk(2), projections.chunk(2)
        return Output((simsiam_loss(p1, z2) + simsiam_loss(p2, z1)) / 2)

    @property
    def floors(self) -> dict[str, float]:
        return super().floors | {"projection_spread": PROJECTION_SPREAD_FLOOR}

    def projection_health(self, projections: torch.Tensor) -> dict[str, float]:
        return {"projection_spread": feature_spread(projections)}
