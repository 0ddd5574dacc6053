"""What a recipe says of its linear evaluation (paper, section 6.5)."""

from collections.abc import Iterator, Mapping
from typing import Literal

from selfsup.augment.settings import View
from selfsup.evaluation.task_settings import TaskSettings, TestView, view_in_words
from selfsup.settings.notes import Count, Momentum, Natural, NotNegative, Seed
from selfsup.settings.registries import TASKS
from selfsup.settings.typed import Settings, since


class Further(Settings):
    peak_lr: NotNegative
    """learning rate at the first step"""
    initial_weights: Seed = since(0)
    """which draw of them; 0 is the headline's"""


@TASKS.add("linear", builds="selfsup.evaluation.linear:LinearEvaluation")
class LinearSettings(TaskSettings):
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
    """whether the momentum is Nesterov's"""
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
    """classifiers trained beside the headline's on its features; their figures go to further.csv, into no verdict"""
    held_out: Natural = since(0)
    """training images, equally many of each class, that are not trained on and choose among the headline's classifier
    and the further ones; the figure is the chosen one's. 0: no choice, the figure is the headline's"""

    def problems(self) -> Iterator[str]:
        if self.held_out and not self.further:
            yield f"held_out is {self.held_out}, but further is empty: there is nothing to choose from"
        for number, one in enumerate(self.further):
            if one.peak_lr < self.lr_floor:
                yield f"further.{number}.peak_lr is {one.peak_lr}, below the lr_floor of {self.lr_floor}"

    def protocol(self, recipe: Mapping) -> str:
        """Return the protocol in words; it also mentions micro-batches of the pretraining."""
        rate, parts = f"lr {self.peak_lr:g} cosine to {self.lr_floor:g}", recipe["micro_batches"]
        if self.cosine_extra_epochs:
            rate += f" after {self.epochs + self.cosine_extra_epochs} epochs"
        words = [f"linear, {self.epochs} epochs", f"batch {self.batch}", rate, "last epoch"]
        if self.held_out:
            words.append(f"best of {1 + len(self.further)} on {self.held_out} of the training images")
        return ", ".join(words + ([f"pretrained in {parts} micro-batches"] if parts > 1 else []))

    def in_words(self, recipe: Mapping) -> str:
        return ", ".join(
            [
                f"momentum {self.momentum:g}{' Nesterov' if self.nesterov else ''}",
                f"weight decay {self.weight_decay:g}",
                *view_in_words(self.train_view, recipe["augment"]["size"]),
                str(self.test),
            ]
        )

    @property
    def goal(self) -> str:
        return f"epoch {self.epochs}"

    @property
    def batches(self) -> dict[str, int]:
        return {"batch": self.batch}
