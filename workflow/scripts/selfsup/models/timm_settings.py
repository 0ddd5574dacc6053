"""What a recipe says of a model of timm."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.settings.notes import Bounds, Pattern
from selfsup.settings.registries import BACKBONES
from selfsup.settings.typed import Settings, since

PREFIX = "timm/"
# What this package gives create_model itself; weights from elsewhere would make a run no function of recipe and seed.
NOT_ARGUMENTS = {
    "drop_path_rate": "set model.drop_path instead",
    "in_chans": "pictures have three channels",
    "num_classes": "a backbone has no classifier",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        "an encoder starts from random weights",
    ),
}


@BACKBONES.add(f"{PREFIX}*", builds="selfsup.models.timm_backbone:timm_backbone")
class TimmSettings(Settings):
    backbone: Annotated[str, Pattern(r"^timm/\w+$", "timm/<model>, by timm's name of it without a tag of weights")]
    """timm/ and timm's name of a model"""
    drop_path: Annotated[float, Bounds(at_least=0, less_than=1)] = since(0.0)
    """timm's drop_path_rate: the share of an image's residual branches that training leaves out, growing with depth"""
    arguments: dict = since({})
    """more of what timm.create_model takes for the model, such as depth; img_size is augment.size unless given here"""
    positions: Literal["learned", "sin_cos"] = since("learned")
    """of a vision transformer's patches: as the model has them, or fixed sines and cosines of row and column"""
    freeze_patch_projection: bool = since(False)
    """true: a vision transformer's projection of patches keeps its initial weights, Xavier-uniform"""
    batch_norm: BatchNormSettings

    @property
    def name(self) -> str:
        """timm's own."""
        return self.backbone.removeprefix(PREFIX)

    def problems(self) -> Iterator[str]:
        for key, value in self.arguments.items():
            if key in NOT_ARGUMENTS:
                yield f"arguments.{key} is {value!r}, wanted no such key: {NOT_ARGUMENTS[key]}"
            elif not _is_plain(value):
                yield f"arguments.{key} is {value!r}, wanted a number, a text, true or false, or a list of such"


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)
