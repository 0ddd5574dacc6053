"""What training asks of a self-supervised method, what it gives one, and the one that a recipe names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from selfsup.augment import Draws, Views
from selfsup.augment.transfer import sent
from selfsup.engine.distributed import Ranks
from selfsup.errors import PermanentError
from selfsup.measures import alignment, encoder_floors, feature_spread
from selfsup.models import configure_batch_norm
from selfsup.models.modes import evaluation_mode
from selfsup.optim import parameter_treatments
from selfsup.optim.parameter_groups import ParameterTreatment
from selfsup.recipe import Recipe
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Context:
    """What a method is built from beside its own settings.

    device: where the networks will be; they are built on the CPU, so that initial weights do not depend on it.
    """

    recipe: Recipe
    seed: int
    total_steps: int
    ranks: Ranks = field(default_factory=Ranks)
    device: torch.device = CPU


@dataclass(frozen=True)
class Step:
    """A step of the training. number: from 0, attempted steps that were skipped included.

    skipped: in fp16, whether the optimiser's newest update was left out because gradients had overflowed; then nothing
    may change. A bool on the device, for which the host must not wait (torch.where takes it); None elsewhere.
    """

    number: int
    skipped: torch.Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch, n images.

    views: float32 [n, 3, size, size] for each entry of the recipe's `augment.views`, on the device, normalised; sizes
    may differ. parameters: what was drawn for them. indices: int64 [n], the images' places in the dataset, on the host.
    plain: the unaugmented pictures, float32 [n, 3, crop, crop], on the device, normalised; None without
    `augment.plain`. told: what `Method.told` makes of the parameters, on the device, where it came there with what the
    views are made from; `Method.told_of` asks for it.
    """

    views: tuple[torch.Tensor, ...]
    parameters: Draws
    indices: np.ndarray
    host_labels: torch.Tensor | None = None
    plain: torch.Tensor | None = None
    told: torch.Tensor | None = None

    @classmethod
    def of(cls, views: Views, indices: np.ndarray, labels: torch.Tensor | None = None) -> "Batch":
        """Return a batch of views. indices, labels: of its images, int64 [n], on the host."""
        return cls(views.images, views.parameters, indices, labels, views.plain)

    @cached_property
    def labels(self) -> torch.Tensor | None:
        """The images' labels, int64 [n], on the device; None where the dataset has none."""
        if self.host_labels is None:
            return None
        return self.host_labels.to(self.views[0].device, non_blocking=True)

    @cached_property
    def places(self) -> torch.Tensor:
        """`indices` on the device."""
        return sent(self.indices, self.views[0].device)

    def chunk(self, parts: int) -> Iterator["Batch"]:
        """Yield the batch in equal parts."""
        if parts == 1:
            yield self
            return
        for rows in np.arange(len(self.indices)).reshape(parts, -1):
            part = slice(rows[0], rows[-1] + 1)
            labels = None if self.host_labels is None else self.host_labels[part]
            views = tuple(view[part] for view in self.views)
            plain = None if self.plain is None else self.plain[part]
            yield Batch(views, self.parameters.part(part), self.indices[part], labels, plain)


class Output(NamedTuple):
    """What `Method.loss` returns: this rank's loss, a scalar whose mean over ranks is the global loss, and scalars.

    Each scalar, a mean over this rank's images, is a column of history.csv and a panel of the curves.
    """

    loss: torch.Tensor
    scalars: Mapping[str, torch.Tensor] = {}


class Method:
    """What training asks of a method. A subclass sets `networks`, and has `encoder`, and `loss` or `loss_of`.

    The rest has defaults.

    `context.ranks` offers rank, size, mean, all_reduce, all_gather, and with gradients all_reduce_with_gradient and
    gather_with_gradient. All that a method keeps from step to step must be equal on all ranks, which the first
    checkpoint checks: of numbers of this rank's images keep the mean over ranks.
    """

    networks: nn.ModuleDict  # everything to be moved to the device

    def __init__(self, settings: Settings, context: Context):
        """settings: the recipe's block of the method's name. Builds the networks, on the CPU."""
        self.settings, self.context = settings, context

    def connect(self) -> None:
        """Let batch norm see all ranks' parts of the batch (section 5.2), of all views together or of each by itself.

        Called once, when the networks have reached their device.
        """
        recipe = self.context.recipe
        per_view = recipe.model.batch_norm.statistics == "per_view"
        if per_view and len({view.size for view in recipe.augment.views}) > 1:
            raise PermanentError(
                "model.batch_norm.statistics is per_view and augment.views differ in size, which cannot go through a "
                f"network together: set both_views, or give {type(self).__name__} a `connect` of its own"
            )
        groups = len(recipe.augment.views) if per_view else 1
        configure_batch_norm(self.networks, groups=groups, ranks=self.context.ranks)

    def parameter_groups(self) -> list[ParameterTreatment]:
        """Return what the optimiser updates, with weight decay, LARS strength and learning rate's scale."""
        return parameter_treatments(self.networks, self.context.recipe.optimizer)

    def schedules(self, step: int) -> dict[str, float]:
        """Return the method's own schedules at a step, pure functions; columns of history.csv and panels of the curves.

        One named "weight_decay" is what the parameters that feel weight decay get at that step.
        """
        return {}

    def before_step(self, step: Step) -> None:
        """Called before the forward pass."""

    def loss(self, batch: Batch, step: Step) -> Output:
        """Return this rank's loss and scalars to log. Called for each micro-batch, under autocast."""
        pictures = torch.cat(batch.views)  # one forward over all views
        return self.loss_of(self.encoder()(pictures), pictures)

    def told(self, draws: Draws) -> np.ndarray | None:
        """Return what `loss` has to know of what was drawn for the views, float32 [views, n, P]; None: nothing.

        Computed on the host from `draws` alone. `loss` gets it by `told_of`: with `compute.one_graph`, where the
        parameters stay on the host, it comes to the device in one copy with what the views are made from.
        """
        return None

    def told_of(self, batch: Batch) -> torch.Tensor:
        """Return what `told` says of a batch's parameters, on the device."""
        if batch.told is not None:
            return batch.told
        return sent(self.told(batch.parameters), batch.views[0].device)

    def loss_of(self, features: torch.Tensor, pictures: torch.Tensor) -> Output:
        """Return `loss` from what the encoder makes of all views: for methods that ask no more, and can be wrapped.

        features: [views x n, out_features], view after view. pictures: what they are of, for other networks.
        """
        raise NotImplementedError

    def after_backward(self, step: Step) -> None:
        """Called when the gradients are those of the global batch, in fp16 still times the scaler's factor."""

    def after_step(self, step: Step) -> None:
        """Called after the optimiser's update."""

    def encoder(self) -> nn.Module:
        """Return the network that is kept: its weights become encoder.safetensors."""
        raise NotImplementedError

    @property
    def floors(self) -> dict[str, float]:
        """Of the figures of `health` and of k-NN's: an encoder below one has collapsed."""
        return encoder_floors(self.encoder().out_features)

    def health(self, views: Views) -> dict[str, float]:
        """Return figures that show whether the encoder has collapsed, columns of history.csv: `selfsup.measures`.

        Called on rank 0 alone, now and then, always with the same views: no collective, no change of state, and
        `evaluation_mode` for the networks. `feature_spread` and `alignment` are expected of every method; where the
        loss can reach its least whatever the encoder, as by a constant projection, a figure of that belongs here too.
        """
        with evaluation_mode(self.networks):
            first, second = (self.encoder()(views[place]) for place in (0, min(1, len(views) - 1)))
        return {"feature_spread": feature_spread(first), "alignment": alignment(first, second)}

    def state_dict(self) -> dict:
        """Return all that changes while training, equal on all ranks: networks with buffers, queues, centres."""
        return self.networks.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` returned."""
        self.networks.load_state_dict(state, strict=True)


def build_method(
    recipe: Mapping, *, seed: int, total_steps: int, ranks: Ranks | None = None, device: torch.device | None = None
) -> Method:
    """Return the recipe's method with its initial weights, a function of the seed."""
    recipe = Recipe.of(recipe)
    context = Context(recipe, seed, total_steps)
    context = replace(context, ranks=ranks or context.ranks, device=device or context.device)
    return METHODS.component(recipe.method)(recipe.own, context)
