"""What a recipe says of every optimiser: the learning rate's schedule, and what feels no weight decay."""

from collections.abc import Iterator
from typing import Any, Literal

from selfsup.settings.notes import Natural, NotNegative, ParameterKinds, Share
from selfsup.settings.typed import Settings, since


class OptimizerSettings(Settings):
    name: str
    """the optimiser, a file in selfsup/optim"""
    peak_lr: NotNegative
    """learning rate at the end of the warm-up, absolute: no scaling by the batch"""
    warmup_epochs: Natural
    """length of the warm-up, in epochs"""
    lr_start_factor: Share
    """learning rate of step 0 as a share of the peak"""
    lr_floor: NotNegative
    """learning rate that the cosine falls to"""
    lr_update: Literal["step", "epoch"] = since("step")
    """step: the learning rate changes with every step; epoch: it keeps the value of the epoch's first step"""
    cosine_extra_epochs: Natural = since(0)
    """epochs by which the cosine is longer than the training, which ends before it has reached lr_floor"""
    weight_decay: NotNegative
    """how strongly weights are pulled towards 0"""
    exclude_from_weight_decay: ParameterKinds
    """bias: biases; norm: scales and shifts of normalisation layers, by module type"""

    def weight_decay_of(self, kind: str) -> float:
        """Return the weight decay of a kind of parameters: "weight", "norm" or "bias"."""
        return 0.0 if kind in self.exclude_from_weight_decay else self.weight_decay

    def lars_weight_of(self, kind: str) -> float:
        """Return the strength of LARS's adaptation for a kind of parameters; 0 for optimisers without it."""
        return 0.0

    def problems(self) -> Iterator[str]:
        if self.lr_floor > self.peak_lr:
            yield f"lr_floor is {self.lr_floor}, above the peak_lr of {self.peak_lr}"

    def problems_in(self, whole: Any) -> Iterator[str]:
        if self.warmup_epochs > whole.epochs:
            yield (
                f"optimizer.warmup_epochs is {self.warmup_epochs}, longer than the training's {whole.epochs} "
                "epochs: shorten the warm-up or train longer"
            )
