"""A training of a whole network, encoder and head, with labels, from a pretrained encoder."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import Policies
from selfsup.data.loader import Batches, LoadedBatch, Reading, ViewMaker
from selfsup.engine.compute import Compute
from selfsup.engine.device import autocast
from selfsup.engine.gradients import GradientAverager
from selfsup.engine.network_draws import NetworkDraws
from selfsup.errors import PermanentError
from selfsup.evaluation.fine_tune_settings import FineTuneSettings, Point
from selfsup.evaluation.task import Judged
from selfsup.models import BatchNorm, configure_batch_norm
from selfsup.optim import build_optimizer, learning_rate, load_optimizer_state, parameter_treatments
from selfsup.optim.sgd_settings import SGDSettings
from selfsup.random_draws import Stream


def batch_of(settings: FineTuneSettings, images: int) -> int:
    """Return the size of the batches of a training on so many images."""
    return min(settings.batch, images)


def steps_of(settings: FineTuneSettings, point: Point, images: int) -> int:
    """Return the number of steps of a training on so many images."""
    return point.length if settings.unit == "steps" else point.length * (images // batch_of(settings, images))


class SupervisedTraining:
    """The state of such a training: network, optimiser, gradient scaler, `step`, from 0 to `total_steps`.

    Whatever the grid's point, batches come in one order, and the head starts as one. A step never makes the host wait
    for the device.
    """

    def __init__(
        self, judged: Judged, settings: FineTuneSettings, point: Point, images: np.ndarray, *, head: nn.Module
    ):
        """images: int64 [n], the places of the training images. head: from features to classes; it is kept."""
        self.point, self.step, self._settings, self._compute = point, 0, settings, judged.compute
        self.batch = batch_of(settings, len(images))
        self.batches = self._opened(judged, images)
        self.steps_per_epoch, self.total_steps = self.batches.steps_per_epoch, steps_of(settings, point, len(images))
        self.network = self._placed(judged.encoder, head)
        treatments = parameter_treatments(self.network, self._sgd())
        self._averager = GradientAverager([one.parameter for one in treatments], judged.compute.ranks)
        self._optimizer = build_optimizer(treatments, self._sgd())
        self._scaler = torch.amp.GradScaler(judged.compute.device.type, enabled=judged.compute.precision == "fp16")
        self._draws = NetworkDraws(judged.seed, judged.compute.ranks.rank, judged.compute.device)

    def _opened(self, judged: Judged, images: np.ndarray) -> Batches:
        settings, ranks = self._settings, self._compute.ranks
        if self.batch < 2 * ranks.size:
            raise PermanentError(
                f"a batch has {self.batch} images, fewer than two for each of {ranks.size} devices: set fewer devices"
            )
        view = settings.train_view or judged.recipe.linear.train_view
        policies = Policies([view], None, Stream.FINE_TUNE)
        reading = Reading(policies, self.batch, drop_last=True, order=Stream.SHUFFLE_FINE_TUNE, images=images)
        place = {"rank": ranks.rank, "world_size": ranks.size, "device": self._compute.device}
        return Batches(judged.store.train, judged.recipe, seed=judged.seed, stage=reading, **place)

    def _placed(self, encoder: nn.Module, head: nn.Module) -> nn.Sequential:
        network = nn.Sequential(OrderedDict(encoder=copy.deepcopy(encoder), head=head)).requires_grad_(True)
        together = self._settings.batch_norm_statistics == "all_devices"
        configure_batch_norm(network, groups=1, ranks=self._compute.ranks if together else None)
        if self._settings.batch_norm_momentum == "by_steps":
            for module in network.modules():
                if isinstance(module, BatchNorm):
                    module.momentum = min(10 / self.steps_per_epoch, 0.1)
        return network.to(self._compute.device, memory_format=self._compute.memory_format)

    def _sgd(self) -> SGDSettings:
        rate, settings = self.point.peak_lr, self._settings
        schedule = {"peak_lr": rate, "warmup_epochs": 0, "lr_start_factor": 0, "lr_floor": settings.lr_floor}
        decay = {"weight_decay": self.point.weight_decay, "exclude_from_weight_decay": []}
        return SGDSettings(name="sgd", momentum=settings.momentum, nesterov=settings.nesterov, **schedule, **decay)

    def learning_rate(self, step: int) -> float:
        return learning_rate(
            step, total_steps=self.total_steps, warmup_steps=0, peak=self.point.peak_lr, floor=self._settings.lr_floor
        )

    def train_step(self, batch: LoadedBatch, make_views: ViewMaker) -> torch.Tensor:
        """Do one step and return this rank's share of the mean cross entropy, a scalar on the device."""
        compute, optimizer = self._compute, self._optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(batch.step)
        optimizer.zero_grad(set_to_none=True)
        share = self._loss(make_views(batch)[0], batch.labels.to(compute.device, non_blocking=True)) / batch.total
        with self._averager.last_backward():
            self._scaler.scale(share * compute.ranks.size).backward()
        if self._scaler.is_enabled():
            self._scaler.unscale_(optimizer)
        self._scaler.step(optimizer)
        self._scaler.update()
        self.step += 1
        return share.detach()

    def _loss(self, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.network.train()
        self._draws.begin(self.step, 0)
        with autocast(self._compute.device, self._compute.precision):
            logits = self.network(pictures)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, reduction="sum")

    def share_running_statistics(self) -> None:
        """Give all ranks the first one's, where each has its own: as a resumed training does. Collective."""
        if self._settings.batch_norm_statistics == "each_device":
            for buffer in self.network.buffers():
                buffer.copy_(first_of(buffer, self._compute))

    def state(self) -> dict[str, Any]:
        parts = {"network": self.network, "optimizer": self._optimizer, "scaler": self._scaler}
        return {"step": self.step, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        load_optimizer_state(self._optimizer, state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def first_of(tensor: torch.Tensor, compute: Compute) -> torch.Tensor:
    """Return the first rank's tensor. Collective."""
    return compute.ranks.all_gather(tensor)[0]
