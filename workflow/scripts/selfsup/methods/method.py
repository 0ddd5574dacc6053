"""What training asks of a self-supervised method, and the one that a recipe names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import nn

from selfsup.augment import Views
from selfsup.optim.parameter_groups import ParameterTreatment
from selfsup.recipe import Recipe
from selfsup.settings.registries import METHODS


class Method(Protocol):
    """What training asks of a method. Built as Class(recipe, seed=..., total_steps=...), on the CPU.

    `ranks` offers rank, size, all_reduce, all_gather, gather_with_gradient and mean. All that a method keeps from step
    to step must be equal on all ranks, which the first checkpoint checks: of numbers of this rank's images keep the
    mean over ranks.
    """

    networks: nn.ModuleDict  # everything to be moved to the device
    floors: dict[str, float]  # of the figures of `health` and of k-NN's: an encoder below one has collapsed

    def connect(self, ranks) -> None:
        """Called once, after the networks have reached their device."""

    def parameter_groups(self) -> list[ParameterTreatment]:
        """What the optimiser updates, with weight decay and LARS strength."""

    def schedules(self, step: int) -> dict[str, float]:
        """The method's own schedules at a step, pure functions; logged as columns of history.csv."""

    def before_step(self, step: int, skipped: torch.Tensor | None = None) -> None:
        """Called before the forward pass of a step.

        skipped: whether the optimiser's update of the step before was left out, because its fp16 gradients had
        overflowed: then nothing may change. A bool on the device, for which the host must not wait (torch.where takes
        it); fp16 alone has it, elsewhere it is not given. A method that changes nothing here may leave it out.
        """

    def loss(self, views: Views, step: int, ranks) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This rank's loss, a scalar whose mean over ranks is the global loss, and scalars to log.

        Each scalar, a mean over this rank's images, is a column of history.csv of its own.
        """

    def after_step(self, step: int, skipped: torch.Tensor | None = None) -> None:
        """Called after the optimiser's update of a step. skipped: whether that was left out, as in `before_step`."""

    def encoder(self) -> nn.Module:
        """The network that is kept: its weights become encoder.safetensors."""

    def health(self, views: Views) -> dict[str, float]:
        """Figures that show whether the encoder has collapsed, columns of history.csv: see `selfsup.measures.features`.

        Called on rank 0 alone, now and then, always with the same views: no collective, no change of state, and
        `evaluation_mode` for the networks. `feature_spread` and `alignment` are expected of every method; where the
        loss can reach its least whatever the encoder, as by a constant projection, a figure of that belongs here too.
        """

    def state_dict(self) -> dict:
        """All that changes while training, equal on all ranks: networks with buffers, queues, centres."""

    def load_state_dict(self, state: dict) -> None:
        """The reverse of `state_dict`."""


def build_method(recipe: Mapping, *, seed: int, total_steps: int) -> Method:
    """Return the recipe's method with its initial weights, a function of the seed."""
    recipe = Recipe.of(recipe)
    return METHODS.component(recipe.method)(recipe, seed=seed, total_steps=total_steps)


def takes_skipped(told: Callable) -> bool:
    """Whether a method's `before_step` or `after_step` wants to know if the update before it was left out."""
    parameters = inspect.signature(told).parameters.values()
    return any(one.name == "skipped" or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
