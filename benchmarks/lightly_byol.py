"""BYOL of lightly's building blocks (pip: lightly), put together as its own example and its ImageNet benchmark do.

Its heads, loss, moving average, LARS and transforms with the paper's parameters, on torchvision's backbone. Its crops
are resized bilinearly, which costs less than the paper's bicubic; its example, float32 and NCHW, is the one "as
shipped", and `precision` and `channels_last` give it the same arithmetic as ours.
"""

from collections.abc import Mapping

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import get_weight_decay_parameters, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.utils.lars import LARS
from plain_byol import PlainBYOL, torchvision_backbone
from torch import nn


def transform(recipe: Mapping) -> BYOLTransform:
    """Return lightly's two views with the recipe's parameters; what they leave out are lightly's, the paper's too."""
    augment = recipe["augment"]

    def settings(view: int) -> dict:
        policy = augment["views"][view]
        jitter, solarize = policy["jitter"], policy["solarize"]
        return {
            "input_size": augment["size"],
            "cj_prob": jitter["p"],
            "cj_bright": jitter["brightness"],
            "cj_contrast": jitter["contrast"],
            "cj_sat": jitter["saturation"],
            "cj_hue": jitter["hue"],
            "min_scale": policy["crop"]["scale"][0],
            "random_gray_scale": policy["grayscale"],
            "gaussian_blur": policy["blur"]["p"],
            "sigmas": tuple(policy["blur"]["sigma"]),
            "solarization_prob": solarize["p"] if solarize else 0.0,
            "hf_prob": policy["flip"],
            "normalize": {"mean": augment["mean"], "std": augment["std"]},
        }

    return BYOLTransform(BYOLView1Transform(**settings(0)), BYOLView2Transform(**settings(1)))


class LightlyBYOL(PlainBYOL):
    """The plain reference with its parts replaced by lightly's."""

    transform = staticmethod(transform)

    def __init__(self, recipe: Mapping, device: torch.device, *, precision: str = "fp32", channels_last: bool = False):
        super().__init__(recipe, device, precision=precision, channels_last=channels_last)
        settings, self._criterion = recipe["optimizer"], NegativeCosineSimilarity()
        weights, others = get_weight_decay_parameters([self.online, self.predictor])
        self.optimizer = LARS(
            [{"params": weights}, {"params": others, "weight_decay": 0.0}],
            lr=0.1,
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            trust_coefficient=settings["trust_coefficient"],
        )

    def networks(self, recipe: Mapping) -> tuple[nn.Module, nn.Module]:
        backbone, features = torchvision_backbone(recipe)
        projector, predictor = (recipe["byol"][name] for name in ("projector", "predictor"))
        online = nn.Sequential(backbone, BYOLProjectionHead(features, projector["hidden"], projector["out"]))
        return online, BYOLPredictionHead(projector["out"], predictor["hidden"], predictor["out"])

    def update_target(self, momentum: float) -> None:
        with torch.no_grad():
            update_momentum(self.online, self.target, m=momentum)

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        with self.precision():
            with torch.no_grad():
                targets = self.target(first), self.target(second)
            predictions = self.predictor(self.online(first)), self.predictor(self.online(second))
            # Its benchmark's factor: 2 - 2 cos, both directions summed.
            return 2 * self._criterion(targets[0], predictions[1]) + 2 * self._criterion(targets[1], predictions[0])
