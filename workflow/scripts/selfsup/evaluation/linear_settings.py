"""What a recipe says of its linear evaluation (paper, section 6.5)."""

from collections.abc import Iterator
from typing import Literal

from selfsup.augment.settings import Interpolation, View
from selfsup.settings.notes import Count, Momentum, Natural, NotNegative, Seed
from selfsup.settings.typed import Settings, since


class TestView(Settings):
    resize: Count
    """pixels of the shorter side before the centre crop"""
    crop: Count
    """pixels of the centre crop's side"""
    interpolation: Interpolation
    """of the resize"""

    def problems(self) -> Iterator[str]:
        if self.crop > self.resize:
            yield f"crop is {self.crop}, larger than the resized picture of {self.resize}"


class Further(Settings):
    peak_lr: NotNegative
    """learning rate at the first step"""
    initial_weights: Seed = since(0)
    """which draw of them; 0 is the headline's"""


class LinearSettings(Settings):
    epochs: Count
    """length of the training, in passes over the training images"""
    batch: Count
    """images in one step, over all devices"""
    peak_lr: NotNegative
    """learning rate at the first step; it falls along a cosine"""
    lr_floor: NotNegative
    """learning rate that the cosine falls to"""
    cosine_extra_epochs: Natural = since(0)
    """epochs by which the cosine is longer than the training, which ends before it has reached lr_floor"""
    momentum: Momentum
    """SGD's"""
    nesterov: bool
    """is the momentum Nesterov's"""
    weight_decay: NotNegative
    """how strongly weights are drawn to 0"""
    drop_last: bool
    """leave an epoch's last short batch out"""
    train_view: View
    test: TestView
    test_precision: Literal["fp32", "compute"]
    """of the test images' forward pass. compute: as the training's, batch norms folded; the changed predictions are
    counted"""
    further: list[Further] = since([])
    """classifiers trained beside the headline's on the same features; they go to further.csv and into no verdict"""

    def problems(self) -> Iterator[str]:
        for number, one in enumerate(self.further):
            if one.peak_lr < self.lr_floor:
                yield f"further.{number}.peak_lr is {one.peak_lr}, below the lr_floor of {self.lr_floor}"
