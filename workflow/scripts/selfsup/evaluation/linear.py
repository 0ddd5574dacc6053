"""Linear evaluation: a linear classifier on the frozen encoder (paper, section 6.5).

The encoder stays in eval mode. The headline is the figure of the last epoch. The best epoch is recorded, but not used;
nor are the classifiers with other learning rates or initial weights that may be trained as well (`linear.further`).
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import centre_view
from selfsup.data.loader import Batches, LoadedBatch, ViewMaker
from selfsup.data.store import PackedStore
from selfsup.engine.checkpoint import DamagedCheckpointError, load_checkpoint, newest_checkpoint, prune
from selfsup.engine.compute import Compute
from selfsup.engine.device import full_fp32
from selfsup.engine.distributed import Ranks
from selfsup.engine.saving import Decision, Saver
from selfsup.errors import PermanentError
from selfsup.evaluation.features import FrozenFeatures
from selfsup.evaluation.further import FurtherClassifiers
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy
from selfsup.models import Backbone, seeded_weights
from selfsup.optim import learning_rate

TEST_BATCH = 256


def protocol(recipe: Mapping) -> str:
    """Return the protocol in words, for the table; it also mentions micro-batches of the pretraining."""
    linear, parts = recipe["linear"], recipe["micro_batches"]
    extra, rate = linear["cosine_extra_epochs"], f"lr {linear['peak_lr']:g} cosine to {linear['lr_floor']:g}"
    rate += f" after {linear['epochs'] + extra} epochs" if extra else ""
    words = [f"linear, {linear['epochs']} epochs", f"batch {linear['batch']}", rate, "last epoch"]
    return ", ".join(words + ([f"pretrained in {parts} micro-batches"] if parts > 1 else []))


class LinearEvaluation:
    """The state of a linear evaluation: classifiers, optimiser, rows so far. `step` counts its steps from 0.

    encoder: frozen, in eval mode, on the device. Test features are computed once per job: the encoder is fixed.
    identity: a saved state with another identity is not continued. further_rows: of the further classifiers, once
    `finished`.
    """

    def __init__(
        self,
        encoder: Backbone,
        store: PackedStore,
        recipe: Mapping,
        *,
        seed: int,
        compute: Compute,
        identity: Mapping[str, Any],
    ):
        self.compute, self.step, self.rows, self.further_rows = compute, 0, [], []
        self._store, self._recipe, self._linear, self._identity = store, recipe, recipe["linear"], dict(identity)
        self._encoder, self.features = encoder, FrozenFeatures(encoder, compute)
        self._test_features = self._exact_test_features = self._test_labels = torch.empty(0)
        place = {"rank": compute.ranks.rank, "world_size": compute.ranks.size, "device": compute.device}
        self.batches = Batches(store.train, recipe, seed=seed, stage="linear", **place)
        self.make_views = ViewMaker(store.train, recipe, compute.device)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * self._linear["epochs"]
        if self.total_steps == 0:
            raise PermanentError(
                f"linear.batch is {self._linear['batch']}, more than the {len(store.train)} training images of "
                f"{store.folder}: make it smaller"
            )
        self._build_classifiers(seed, encoder.out_features)
        self._losses = torch.zeros((), device=compute.device)  # this rank's share, summed over the epoch so far

    def _build_classifiers(self, seed: int, features: int) -> None:
        device, further = self.compute.device, self._linear["further"]
        draws = [0, *(one["initial_weights"] for one in further)]
        classifiers = [_initial_classifier(seed, draw, features, len(self._store.classes)) for draw in draws]
        self._classifier = classifiers[0].to(device)
        self._further = FurtherClassifiers(classifiers[1:], self._linear, device) if further else None
        self._optimizer = torch.optim.SGD(
            self._classifier.parameters(),
            lr=self._linear["peak_lr"],
            momentum=self._linear["momentum"],
            nesterov=self._linear["nesterov"],
            weight_decay=self._linear["weight_decay"],
        )

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    def train(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, float]]:
        """Continue from `step`; yield a row after each epoch: epoch, lr, train_loss, top1, top5 (in %), images_per_s.

        When asked to stop, it saves all work in `partial` and ends early, without being `finished`.
        """
        attempt.begin_steps(self.step, self._linear["batch"])
        if not self._extract_test_features(attempt):
            return
        began, first = time.monotonic(), self.step
        pinned = self.compute.device.type == "cuda"
        for batch in self.batches.read(self.step, self.total_steps, workers=self.compute.workers, pin_memory=pinned):
            rate = self.train_step(batch)
            attempt.step_done(self.step)
            epoch, place = divmod(self.step, self.steps_per_epoch)
            if place == 0:
                images = (self.step - first) * self._linear["batch"]
                self.rows.append(self._row(epoch, rate, images / (time.monotonic() - began)))
                began, first = time.monotonic(), self.step
                if self.finished and self._further is not None:
                    self.further_rows = self._further.rows(*self._test_set())
                yield self.rows[-1]
            if self.finished:
                return
            decision = saver.decide()
            if decision is not Decision.GO_ON:
                self._save(partial, saver, wait=decision is Decision.STOP)
            if decision is Decision.STOP:
                return

    @torch.no_grad()
    def changed_predictions(self) -> int:
        """Return for how many test images the encoder in fp32 with unfolded batch norms predicts another class.

        0 with `test_precision: fp32`. Collective.
        """
        classes = [self._classifier(one).argmax(1) for one in (self._test_features, self._exact_test_features)]
        return int(self.compute.ranks.all_reduce((classes[0] != classes[1]).sum()))

    def resume(self, partial: Path) -> Path | None:
        """Continue from the newest state in `partial` if it is of this evaluation; delete states of others."""
        path = state = None
        if self.compute.ranks.is_main:
            with contextlib.suppress(DamagedCheckpointError):
                path, state = newest_checkpoint(list(partial.glob("*.pt"))) or (None, None)
            if state is not None and state["identity"] != self._identity:
                path = state = None
                prune(partial)
        path = self.compute.ranks.from_main(path)
        if path is not None:
            self._restore(state or load_checkpoint(path))
        return path

    @torch.no_grad()
    def _extract_test_features(self, attempt: Attempt) -> bool:
        """Compute this rank's part of the test features, each image on one rank. Returns False if asked to stop.

        They are computed in fp32 by the unchanged encoder; with `test_precision: compute` also as in training.
        """
        compute, split = self.compute, self._store.test
        ranks = compute.ranks
        mine = np.arange(ranks.rank, len(split), ranks.size)
        exact, fast = [], []
        for start in range(0, -(-len(split) // ranks.size), TEST_BATCH):  # equally often on all ranks
            if ranks.any(attempt.stop.reason is not None):
                return False
            pictures = centre_view(self._recipe, map(split.image, mine[start : start + TEST_BATCH])).to(compute.device)
            with full_fp32():
                exact.append(self._encoder(pictures))
            if self._linear["test_precision"] == "compute":
                fast.append(self.features(pictures))
            attempt.heartbeat(f"test image {start}")
        self._exact_test_features = torch.cat(exact)
        self._test_features = torch.cat(fast) if fast else self._exact_test_features
        self._test_labels = torch.from_numpy(split.labels[mine]).to(compute.device)
        return True

    def train_step(self, batch: LoadedBatch) -> float:
        """Do one step and return its learning rate; add this rank's share of the mean cross entropy to `_losses`."""
        compute, rate = self.compute, self._rate(batch.step, self._linear["peak_lr"])
        pictures, labels = self.make_views(batch)[0], batch.labels.to(compute.device, non_blocking=True)
        features = self.features(pictures)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        # Divided by the size of the global batch, not of this rank's part: the parts of a short last batch are uneven.
        share = F.cross_entropy(self._classifier(features), labels, reduction="sum") / batch.total
        (share * compute.ranks.size).backward()
        compute.ranks.average_gradients(self._classifier.parameters())
        self._optimizer.step()
        self._losses += share.detach()
        if self._further is not None:
            rates = [self._rate(batch.step, one["peak_lr"]) for one in self._linear["further"]]
            self._further.train_step(features, labels, images=batch.total, rates=rates, ranks=compute.ranks)
        self.step += 1
        return rate

    def _rate(self, step: int, peak: float) -> float:
        return learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=0,
            peak=peak,
            floor=self._linear["lr_floor"],
            cosine_extra_steps=self._linear["cosine_extra_epochs"] * self.steps_per_epoch,
        )

    def _row(self, epoch: int, rate: float, images_per_s: float) -> dict[str, float]:
        train_loss = float(self.compute.ranks.all_reduce(self._losses)) / self.steps_per_epoch
        self._losses = torch.zeros((), device=self.compute.device)
        features, *test = self._test_set()
        with torch.no_grad():
            top = accuracy(self._classifier(features), *test)
        return {"epoch": epoch, "lr": rate, "train_loss": train_loss, **top, "images_per_s": images_per_s}

    def _test_set(self) -> tuple[torch.Tensor, torch.Tensor, int, Ranks]:
        """Return this rank's features and labels, the number of images on all ranks, and the ranks."""
        return self._test_features, self._test_labels, len(self._store.test), self.compute.ranks

    def _save(self, partial: Path, saver: Saver, *, wait: bool) -> None:
        path, losses = partial / f"step_{self.step:09d}.pt", self.compute.ranks.all_gather(self._losses).cpu()

        def state() -> dict[str, Any]:
            parts = {"classifier": self._classifier.state_dict(), "optimizer": self._optimizer.state_dict()}
            if self._further is not None:
                parts["further"] = self._further.state_dict()
            return {"identity": self._identity, "step": self.step, "rows": list(self.rows), "losses": losses, **parts}

        saver.save(path, state, {"step": self.step}, wait=wait, then=lambda: prune(partial, keep=path))

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._further is not None:
            self._further.load_state_dict(state["further"])
        self.step, self.rows = state["step"], list(state["rows"])
        ranks, losses = self.compute.ranks, state["losses"]
        if len(losses) == ranks.size:
            self._losses.copy_(losses[ranks.rank])
        elif ranks.is_main:  # the number of ranks has changed: only the sum counts
            self._losses.copy_(losses.sum())


def _initial_classifier(seed: int, draw: int, features: int, classes: int) -> nn.Linear:
    with seeded_weights(seed, 2, draw):
        return nn.Linear(features, classes)
