"""BYOL: bootstrap your own latent (Grill et al. 2020; paper, section 3).

Two views of each image go through the online network f, g, q (backbone, projector, predictor) and through the target
network, a moving average of f and g. The online network learns to predict the target's projection of the other view.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import Views
from selfsup.measures import alignment, encoder_floors, feature_spread
from selfsup.models import build_backbone, build_head, configure_batch_norm, seeded_weights
from selfsup.models.head_settings import HeadSettings
from selfsup.models.modes import batch_statistics, evaluation_mode
from selfsup.optim import cosine, parameter_treatments
from selfsup.optim.parameter_groups import ParameterTreatment
from selfsup.recipe import Recipe

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


class BYOL:
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def __init__(self, recipe: Recipe, *, seed: int, total_steps: int):
        self._recipe, self._settings, self._total_steps = recipe, recipe.byol, total_steps
        with seeded_weights(seed, 0):
            online = self._build_encoder()
            online["predictor"] = self._build_head(self._settings.projector.out, self._settings.predictor)
        if self._settings.target_init == "copy":
            target = nn.ModuleDict({name: copy.deepcopy(online[name]) for name in ("backbone", "projector")})
        else:
            with seeded_weights(seed, 1):
                target = self._build_encoder()
        target.requires_grad_(False)
        target.train(self._settings.target_batch_norm == "batch")
        self.networks = nn.ModuleDict({"online": online, "target": target})
        features = self.encoder().out_features
        self.floors = encoder_floors(features) | {"projection_spread": PROJECTION_SPREAD_FLOOR}

    def _build_encoder(self) -> nn.ModuleDict:
        backbone = build_backbone(self._recipe)
        projector = self._build_head(backbone.out_features, self._settings.projector)
        return nn.ModuleDict({"backbone": backbone, "projector": projector})

    def _build_head(self, features: int, head: HeadSettings) -> nn.Sequential:
        return build_head(features, head, self._recipe.model.batch_norm)

    def connect(self, ranks) -> None:
        """Let batch norm see all ranks' parts of the batch, the target's too (section 5.2)."""
        per_view = self._recipe.model.batch_norm.statistics == "per_view"
        configure_batch_norm(self.networks, groups=len(self._recipe.augment.views) if per_view else 1, ranks=ranks)

    def parameter_groups(self) -> list[ParameterTreatment]:
        return parameter_treatments(self.networks["online"], self._recipe.optimizer)

    def schedules(self, step: int) -> dict[str, float]:
        return {"tau": tau(step, total_steps=self._total_steps, base=self._settings.tau_base)}

    def before_step(self, step: int, skipped: torch.Tensor | None = None) -> None:
        if self._settings.average_update == "before_forward":
            self._update_target(step, skipped)

    def after_step(self, step: int, skipped: torch.Tensor | None = None) -> None:
        if self._settings.average_update == "after_step":
            self._update_target(step, skipped)

    @torch.no_grad()
    def _update_target(self, step: int, skipped: torch.Tensor | None) -> None:
        """target <- tau target + (1 - tau) online, over parameters and, if the recipe says so, running statistics."""
        momentum = self.schedules(step)["tau"]
        online, target = self.networks["online"], self.networks["target"]
        for name in ("backbone", "projector"):
            pairs = [(list(target[name].parameters()), list(online[name].parameters()))]
            if self._settings.average_buffers:
                pairs.append(
                    (
                        [b for b in target[name].buffers() if b.is_floating_point()],
                        [b for b in online[name].buffers() if b.is_floating_point()],
                    )
                )
            for averages, values in pairs:
                if skipped is not None:
                    values = [torch.where(skipped, old, new) for old, new in zip(averages, values, strict=True)]
                torch._foreach_lerp_(averages, values, 1 - momentum)

    def loss(self, views: Views, step: int, ranks) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        online, target = self.networks["online"], self.networks["target"]
        pictures = torch.cat(tuple(views))  # one forward over both views: 2N pictures
        predictions = online["predictor"](online["projector"](online["backbone"](pictures)))
        with torch.no_grad():
            projections = target["projector"](target["backbone"](pictures))
        (first, second), (first_target, second_target) = predictions.chunk(2), projections.chunk(2)
        both = byol_loss(first, second_target) + byol_loss(second, first_target)
        return (both if self._settings.loss_reduction == "sum" else both / 2), {}

    def encoder(self) -> nn.Module:
        return self.networks["online"]["backbone"]

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

    def state_dict(self) -> dict:
        return self.networks.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.networks.load_state_dict(state, strict=True)
