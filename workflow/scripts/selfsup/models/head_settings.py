"""What a recipe says of a projector or a predictor."""

from collections.abc import Iterator
from typing import Annotated, Literal

from selfsup.settings.notes import Count, Length
from selfsup.settings.typed import Settings

LastBatchNorm = Literal["none", "without_affine", "with_scale", "with_scale_and_shift"]


class HeadSettings(Settings):
    """A head of two layers, batch norm and ReLU after the first."""

    hidden: Count
    """width of the hidden layer"""
    out: Count
    """width of the output"""
    bias_before_bn: bool
    """whether the first layer has a bias, which batch norm cancels"""
    bias_last: bool
    """whether the last layer has a bias"""

    @property
    def layers(self) -> list[int]:
        """The widths of the layers' outputs."""
        return [self.hidden, self.out]

    @property
    def last_batch_norm(self) -> LastBatchNorm:
        return "none"


class LayersSettings(Settings):
    """A head of any number of layers, batch norm and ReLU after each but the last."""

    layers: Annotated[list[Count], Length(1)]
    """widths of the layers' outputs; the last is the head's"""
    bias_before_bn: bool
    """whether layers that are followed by a batch norm have a bias, which it cancels"""
    bias_last: bool
    """whether the last layer has a bias"""
    last_batch_norm: LastBatchNorm
    """after the last layer: none, one that only normalises, one with a scale (gamma), or with scale and shift"""

    @property
    def out(self) -> int:
        """Width of the output."""
        return self.layers[-1]

    def problems(self) -> Iterator[str]:
        if self.bias_last and self.last_batch_norm != "none":
            yield f"bias_last is true, but last_batch_norm is {self.last_batch_norm!r}, which cancels a bias"
