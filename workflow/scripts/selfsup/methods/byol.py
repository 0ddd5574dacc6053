"""BYOL: bootstrap your own latent (Grill et al. 2020; paper, section 3).

Two views of each image go through the online network f, g, q (backbone, projector, predictor) and through the target
network, a moving average of f and g. The online network learns to predict the target's projection of the other view.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import Views
from selfsup.measures import alignment, feature_spread
from selfsup.methods.byol_settings import BYOLSettings
from selfsup.methods.method import Context, Method, Output, Step
from selfsup.models import build_backbone, build_head, seeded_weights
from selfsup.models.head_settings import HeadSettings
from selfsup.models.modes import batch_statistics, evaluation_mode, keep_still
from selfsup.models.moving_average import follow
from selfsup.optim import cosine, parameter_treatments
from selfsup.optim.parameter_groups import ParameterTreatment

# BYOL collapses in its projections: the networks agree on one point, whatever the features, and the encoder's own
# spread and rank stay for hundreds of steps what they were (0.5, and 8 to 16 of 128). Measured with tiny networks of
# all recipes' shapes, after 5 to 660 steps: 0.57 to 0.91; without a predictor 0.22 after 46 steps, 0.02 to 0.14 in the
# end; with SGD at a learning rate of 300 0.14. A full-width run tells it by its cosine: to predict one point gives
# about sqrt(1 - spread^2), and a predictor does no worse; 173 healthy epochs of CIFAR-10 on an H100 had 0.88 at most,
# a spread of 0.47.
PROJECTION_SPREAD_FLOOR = 0.3


def tau(step: int, *, total_steps: int, base: float) -> float:
    """Return the moving average's momentum: `base` at step 0, rising along a cosine to 1 at the end (section 6.3)."""
    return 1 - (1 - base) * cosine(step, total_steps)


def byol_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of 2 - 2 cos(prediction, target) (section 3, eq. 1).

    predictions, targets: [N, D], computed with in float32 or wider.
    """
    wide = torch.promote_types(predictions.dtype, torch.float32)
    predictions, targets = F.normalize(predictions.to(wide), dim=1), F.normalize(targets.to(wide), dim=1)
    return (2 - 2 * (predictions * targets).sum(dim=1)).mean()


class BYOL(Method):
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def __init__(self, settings: BYOLSettings, context: Context):
        super().__init__(settings, context)
        with seeded_weights(context.seed, 0):
            online = self._build_encoder()
            online["predictor"] = self._build_head(settings.projector.out, settings.predictor)
        if settings.target_init == "copy":
            target = nn.ModuleDict({name: copy.deepcopy(online[name]) for name in ("backbone", "projector")})
        else:
            with seeded_weights(context.seed, 1):
                target = self._build_encoder()
        target.requires_grad_(False)
        keep_still(target, batch_statistics=settings.target_batch_norm == "batch")
        self.networks = nn.ModuleDict({"online": online, "target": target})

    def _build_encoder(self) -> nn.ModuleDict:
        backbone = build_backbone(self.context.recipe)
        projector = self._build_head(backbone.out_features, self.settings.projector)
        return nn.ModuleDict({"backbone": backbone, "projector": projector})

    def _build_head(self, features: int, head: HeadSettings) -> nn.Sequential:
        return build_head(features, head, self.context.recipe.model.batch_norm)

    def parameter_groups(self) -> list[ParameterTreatment]:
        return parameter_treatments(self.networks["online"], self.context.recipe.optimizer)

    def schedules(self, step: int) -> dict[str, float]:
        return {"tau": tau(step, total_steps=self.context.total_steps, base=self.settings.tau_base)}

    def before_step(self, step: Step) -> None:
        if self.settings.average_update == "before_forward":
            self._update_target(step)

    def after_step(self, step: Step) -> None:
        if self.settings.average_update == "after_step":
            self._update_target(step)

    def _update_target(self, step: Step) -> None:
        """target <- tau target + (1 - tau) online, over parameters and, if the recipe says so, running statistics."""
        momentum = self.schedules(step.number)["tau"]
        online, target = self.networks["online"], self.networks["target"]
        for name in ("backbone", "projector"):
            pairs = [(list(target[name].parameters()), list(online[name].parameters()))]
            if self.settings.average_buffers:
                pairs.append((_running_statistics(target[name]), _running_statistics(online[name])))
            for averages, values in pairs:
                follow(averages, values, momentum, step.skipped)

    def loss_of(self, features: torch.Tensor, pictures: torch.Tensor) -> Output:
        online, target = self.networks["online"], self.networks["target"]
        predictions = online["predictor"](online["projector"](features))
        with torch.no_grad():
            projections = target["projector"](target["backbone"](pictures))
        (first, second), (first_target, second_target) = predictions.chunk(2), projections.chunk(2)
        both = byol_loss(first, second_target) + byol_loss(second, first_target)
        return Output(both if self.settings.loss_reduction == "sum" else both / 2)

    def encoder(self) -> nn.Module:
        return self.networks["online"]["backbone"]

    @property
    def floors(self) -> dict[str, float]:
        return super().floors | {"projection_spread": PROJECTION_SPREAD_FLOOR}

    def health(self, views: Views) -> dict[str, float]:
        online, target = self.networks["online"], self.networks["target"]
        with evaluation_mode(self.networks):
            first, second = (online["backbone"](view) for view in views)
            prediction = online["predictor"](online["projector"](first))
            projection = target["projector"](target["backbone"](views[1]))
            with batch_statistics(online["projector"]):
                spread = feature_spread(online["projector"](first))
        return {
            "feature_spread": feature_spread(first),
            "alignment": alignment(first, second),
            "cosine": float(F.cosine_similarity(prediction.float(), projection.float()).mean()),
            "projection_spread": spread,
        }


def _running_statistics(network: nn.Module) -> list[torch.Tensor]:
    """Return a network's buffers but for how many batches they have seen, which is a whole number."""
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]
