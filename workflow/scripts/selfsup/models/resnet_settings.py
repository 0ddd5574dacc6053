"""What a recipe says of a ResNet."""

from typing import Any, Literal

from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.settings.notes import Count, Natural
from selfsup.settings.registries import BACKBONES
from selfsup.settings.typed import Settings, since


class Stem(Settings):
    kernel: Count
    """pixels of the first convolution's side"""
    stride: Count
    """pixels from one place of the first convolution to the next"""
    padding: Natural
    """pixels of zeros around the picture"""
    max_pool: bool
    """whether a 3 x 3 max-pool of stride 2 follows"""
    initial_weights: Literal["resnet", "torch"] = since("resnet")
    """of the first convolution. resnet: normal, as of all others; torch: nn.Conv2d's own, uniform, as when a finished
    network is given another stem"""


@BACKBONES.add("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", builds="selfsup.models.backbone:resnet")
class ResNetSettings(Settings):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    """the network, by torchvision's name"""
    width: Count
    """channels after the stem; torchvision's ResNets have 64"""
    stem: Stem
    padding: Literal["symmetric", "same"] = since("symmetric")
    """same: strided convolutions and the max-pool pad as JAX's SAME, at even sizes one pixel less at the top left"""
    zero_init_residual: bool
    """gamma of each residual branch's last batch norm starts at 0"""
    batch_norm: BatchNormSettings

    @classmethod
    def of_torchvision(cls, name: str) -> dict[str, Any]:
        """Return what a recipe's block `model` says of torchvision's own network of that name."""
        stem = {"kernel": 7, "stride": 2, "padding": 3, "max_pool": True}
        return {"backbone": name, "width": 64, "stem": stem, "padding": "symmetric", "zero_init_residual": False}
