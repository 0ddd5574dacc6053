"""What methods share that send two views through one backbone and projector, and perhaps a predictor."""

import torch
from torch import nn

from selfsup.augment import Views
from selfsup.measures import alignment, effective_rank, feature_spread
from selfsup.methods.method import Batch, Context, Method
from selfsup.methods.settings import PredictingSettings, TwoViewsSettings
from selfsup.models import build_backbone, build_head, seeded_weights
from selfsup.models.modes import batch_statistics, evaluation_mode

# On a line: 1. Measured on the digits, of 64 or 256 dimensions: healthy runs 19 to 37, SimSiam 8.5 at least; after ten
# epochs SimSiam without its stopped gradient 1.2, VICReg without covariances 1.3, Barlow Twins without redundancy 1.5.
PROJECTION_RANK_FLOOR = 2.0


class JointEmbedding(Method):
    """Networks: "backbone", "projector" and, where the settings have one, "predictor"."""

    def __init__(self, settings: TwoViewsSettings, context: Context):
        super().__init__(settings, context)
        norm = context.recipe.model.batch_norm
        with seeded_weights(context.seed):
            backbone = build_backbone(context.recipe)
            networks = {"backbone": backbone, "projector": build_head(backbone.out_features, settings.projector, norm)}
            if isinstance(settings, PredictingSettings):
                networks["predictor"] = build_head(settings.projector.out, settings.predictor, norm)
        self.networks = nn.ModuleDict(networks)

    def encoder(self) -> nn.Module:
        return self.networks["backbone"]

    def projections(self, batch: Batch) -> torch.Tensor:
        """Return the projections of all views, view after view, [2N, D]: one forward pass of both."""
        return self.networks["projector"](self.encoder()(torch.cat(batch.views)))

    def health(self, views: Views) -> dict[str, float]:
        projector = self.networks["projector"]
        with evaluation_mode(self.networks):
            first, second = (self.encoder()(view) for view in views)
            with batch_statistics(projector):
                projections = projector(first)
        return {
            "feature_spread": feature_spread(first),
            "alignment": alignment(first, second),
            "projection_rank": effective_rank(projections - projections.mean(0)),
            **self.projection_health(projections),
        }

    def projection_health(self, projections: torch.Tensor) -> dict[str, float]:
        """Return more figures of what the loss sees: projections of one view, [N, D], by batch statistics."""
        return {}

    @property
    def floors(self) -> dict[str, float]:
        return super().floors | {"projection_rank": PROJECTION_RANK_FLOOR}


def in_full(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors in float32 or wider: what a loss computes with."""
    return [one.to(torch.promote_types(one.dtype, torch.float32)) for one in tensors]


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return one @ other in their own precision, under autocast too."""
    with torch.autocast(one.device.type, enabled=False):
        return one @ other
