"""What a protocol says of fine-tuning: with few labels (semi-supervised learning) or with all of them."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from selfsup.augment.settings import View
from selfsup.evaluation.task_settings import TaskSettings, TestView, view_in_words
from selfsup.settings.notes import Bounds, Count, Distinct, Length, Momentum, NotNegative, Seed
from selfsup.settings.registries import TASKS
from selfsup.settings.typed import since

MOST_NAMED = 3  # numbers of a list, in words


class Point(NamedTuple):
    """One of the grid: the peak learning rate, the weight decay that the optimiser gets, the length."""

    peak_lr: float
    weight_decay: float
    length: int


@TASKS.add("fine_tune", builds="selfsup.evaluation.fine_tune:FineTuning")
class FineTuneSettings(TaskSettings):
    labels: Annotated[float, Bounds(more_than=0, at_most=100)]
    """share of the training images whose labels are used, in %; they are drawn, equally many of each class"""
    subset_seed: Seed
    """which draw of them; with one seed a smaller share's images are among those of a larger share"""
    labels_list: Annotated[str, Length(1)] | None = since(None)
    """instead of a draw: a file naming the images whose labels are used, one a line; `labels` is their share"""
    held_out: NotNegative
    """training images that choose among the grid: how many, or, below 1, which share of all training images"""
    held_out_of: Literal["share", "rest"]
    """where they come from. share: of the images whose labels are used, on all of which the chosen setting is trained
    again; rest: further images, whose labels are then used for the choice alone"""
    unit: Literal["epochs", "steps"]
    """unit of the lengths"""
    lengths: Annotated[list[Count], Length(1), Distinct()]
    """lengths of a training; the grid combines each with each rate and decay"""
    batch: Annotated[int, Bounds(at_least=2)]
    """images in one step, over all devices; all of them if there are fewer. A short last batch is left out"""
    peak_lrs: Annotated[list[NotNegative], Length(1), Distinct()]
    """learning rates of the first step, absolute; each falls along a cosine"""
    lr_floor: NotNegative
    """learning rate that the cosine falls to"""
    momentum: Momentum
    """SGD's"""
    nesterov: bool
    """whether the momentum is Nesterov's"""
    weight_decays: Annotated[list[NotNegative], Length(1), Distinct()]
    """how strongly weights are drawn to 0: of all parameters"""
    decay_over_lr: bool
    """whether the weight decay is divided by the peak learning rate, so that peak rate times decay is the value"""
    batch_norm_momentum: Literal["encoder", "by_steps"]
    """weight of the newest batch in the running statistics. encoder: as it was trained with; by_steps: the smaller of
    0.1 and 10 / s, where s is the number of steps of an epoch"""
    batch_norm_statistics: Literal["all_devices", "each_device"]
    """over which pictures of a step batch norms take mean and variance"""
    train_view: View | None
    """null: of the recipe's linear evaluation"""
    test: TestView | None
    """of test and held-out images; null: of the recipe's linear evaluation"""

    chooses_by_measure = True

    def problems(self) -> Iterator[str]:
        if self.labels_list and not self.list_file.is_file():
            yield f"labels_list is {self.labels_list}, which is no file: give the path of a list of file names"
        if self.labels_list and self.labels == 100:
            yield "labels is 100, but labels_list names only some of the images: set labels to their share"
        if self.held_out >= 1 and not float(self.held_out).is_integer():
            yield f"held_out is {self.held_out}, wanted a share below 1 or a whole number of images"
        if self.chooses and not self.held_out:
            yield "held_out is 0, but the grid has several points: there are no images to choose by"
        if self.held_out_of == "rest" and self.labels == 100 and self.chooses:
            yield "held_out_of is rest, but labels is 100: nothing is left, set held_out_of: share"
        if self.lr_floor > min(self.peak_lrs):
            yield f"lr_floor is {self.lr_floor}, above {min(self.peak_lrs)} of peak_lrs"
        if self.nesterov and self.momentum == 0:
            yield "nesterov is true, but momentum is 0: there is nothing to look ahead with"
        if self.decay_over_lr and min(self.peak_lrs) == 0:
            yield "decay_over_lr is true, but one of peak_lrs is 0"

    @property
    def list_file(self) -> Path:
        """The path of `labels_list`, ~ and $VARIABLES replaced."""
        return Path(os.path.expandvars(os.path.expanduser(self.labels_list)))

    def made_from(self, measure: str) -> dict[str, str]:
        listed = {"labels_list": _digest(self.list_file)} if self.labels_list else {}
        return super().made_from(measure) | listed

    @property
    def grid(self) -> list[Point]:
        """The points that are tried, in order: of equally good ones the first is chosen."""
        over = self.decay_over_lr
        points = product(self.lengths, self.weight_decays, self.peak_lrs)
        return [Point(rate, decay / rate if over else decay, length) for length, decay, rate in points]

    @property
    def chooses(self) -> bool:
        """Is there anything to choose."""
        return len(self.lengths) * len(self.weight_decays) * len(self.peak_lrs) > 1

    def protocol(self, recipe: Mapping) -> str:
        lengths = f"{_any_of(self.lengths)} {self.unit}"
        decays = [f"weight decay {_any_of(self.weight_decays)}{' over lr' if self.decay_over_lr else ''}"]
        rates = f"lr {_any_of(self.peak_lrs)} cosine to {self.lr_floor:g}"
        words = ["fine-tuned", lengths, f"batch {self.batch}", rates]
        return ", ".join(words + (decays if any(self.weight_decays) else []) + self._choice())

    def _choice(self) -> list[str]:
        if not self.chooses:
            return []
        held_out = f"{self.held_out:.0f}" if self.held_out >= 1 else f"{100 * self.held_out:g} %"
        whose = "further" if self.held_out_of == "rest" else "of the"
        return [f"best of {len(self.grid)} on {held_out} {whose} training images"]

    def in_words(self, recipe: Mapping) -> str:
        view = View.of(self.train_view or recipe["linear"]["train_view"])
        by_steps = ["batch norm momentum by steps"] if self.batch_norm_momentum == "by_steps" else []
        return ", ".join(
            [
                f"momentum {self.momentum:g}{' Nesterov' if self.nesterov else ''}",
                f"batch norm over {self.batch_norm_statistics.replace('_', ' ')}",
                *by_steps,
                *self._whose_labels(),
                *view_in_words(view, recipe["augment"]["size"]),
                str(TestView.of(self.test or recipe["linear"]["test"])),
            ]
        )

    def _whose_labels(self) -> list[str]:
        drawn = [f"draw {self.subset_seed} of the labels"] if self.labels < 100 or self.chooses else []
        return [f"the labels of {self.list_file.name}"] if self.labels_list else drawn

    @property
    def label_share(self) -> float:
        return self.labels

    @property
    def batches(self) -> dict[str, int]:
        return {"batch": self.batch}


def _digest(path: Path) -> str:
    """Return a file's SHA-256, empty where it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _any_of(numbers: list[float]) -> str:
    if len(numbers) > MOST_NAMED:
        return f"{len(numbers)} from {min(numbers):g} to {max(numbers):g}"
    return " or ".join(f"{number:g}" for number in numbers)
