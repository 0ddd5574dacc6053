"""Linear evaluation: a linear classifier on the frozen encoder (paper, section 6.5).

The encoder stays in eval mode. The headline is the last epoch's; the best epoch is recorded and decides nothing.
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
from selfsup.data.loader import Batch, Batches, ViewMaker
from selfsup.data.store import PackedStore
from selfsup.errors import PermanentError
from selfsup.evaluation.metrics import top_k_hits
from selfsup.job.attempt import Attempt
from selfsup.models import Backbone, seeded_weights
from selfsup.optim import learning_rate
from selfsup.training.checkpoint import DamagedCheckpointError, load_checkpoint, newest_checkpoint, prune
from selfsup.training.compute import Compute
from selfsup.training.device import autocast
from selfsup.training.distributed import Ranks
from selfsup.training.saving import Decision, Saver

TEST_BATCH = 256


def protocol(recipe: Mapping) -> str:
    """Return the protocol in words, for the table; what the pretraining did beside the common is in it too."""
    linear, parts = recipe["linear"], recipe["micro_batches"]
    rate = f"lr {linear['peak_lr']:g} cosine to {linear['lr_floor']:g}"
    words = [f"linear, {linear['epochs']} epochs", f"batch {linear['batch']}", rate, "last epoch"]
    return ", ".join(words + ([f"pretrained in {parts} micro-batches"] if parts > 1 else []))


class LinearEvaluation:
    """The state of a linear evaluation: classifier, optimiser, rows so far. `step` counts its steps from 0.

    encoder: frozen, in eval mode, on the device. Test features are computed once a job: they and the encoder are fixed.
    identity: what a saved state must share with this evaluation to be continued.
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
        self.compute, self.step, self.rows = compute, 0, []
        self._encoder, self._linear, self._identity = encoder, recipe["linear"], dict(identity)
        self._n_test = len(store.test)
        ranks = compute.ranks
        self._batches = Batches(
            store.train, recipe, seed=seed, stage="linear", rank=ranks.rank, ranks=ranks.size, device=compute.device
        )
        self._make_views = ViewMaker(store.train, recipe, compute.device)
        self.steps_per_epoch = self._batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * self._linear["epochs"]
        if self.total_steps == 0:
            raise PermanentError(
                f"linear.batch is {self._linear['batch']}, more than the {len(store.train)} training images of "
                f"{store.folder}: make it smaller"
            )
        self._store, self._recipe = store, recipe
        self._test_features = self._test_labels = torch.empty(0)
        with seeded_weights(seed, 2):
            self._classifier = nn.Linear(encoder.out_features, len(store.classes))
        self._classifier.to(compute.device)
        self._optimizer = torch.optim.SGD(
            self._classifier.parameters(),
            lr=self._linear["peak_lr"],
            momentum=self._linear["momentum"],
            nesterov=self._linear["nesterov"],
            weight_decay=self._linear["weight_decay"],
        )
        self._losses = torch.zeros((), device=compute.device)  # this rank's share, summed since the epoch's begin

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    def train(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, float]]:
        """Go on from `step`; yield a row after each epoch: epoch, lr, train_loss, top1, top5 (in %), images_per_s.

        Ends early, all work saved in `partial`, when asked to stop: then not `finished`.
        """
        attempt.begin(self.step, self._linear["batch"])
        if not self._extract_test_features(attempt):
            return
        began, first = time.monotonic(), self.step
        pinned = self.compute.device.type == "cuda"
        for batch in self._batches.read(self.step, self.total_steps, workers=self.compute.workers, pin_memory=pinned):
            rate = self._train_step(batch)
            attempt.at(self.step)
            epoch, place = divmod(self.step, self.steps_per_epoch)
            if place == 0:
                images = (self.step - first) * self._linear["batch"]
                self.rows.append(self._row(epoch, rate, images / (time.monotonic() - began)))
                began, first = time.monotonic(), self.step
                yield self.rows[-1]
            if self.finished:
                return
            decision = saver.decide()
            if decision is not Decision.GO_ON:
                self._save(partial, saver, wait=decision is Decision.STOP)
            if decision is Decision.STOP:
                return

    def resume(self, partial: Path) -> Path | None:
        """Continue from the newest state in `partial`, if it is of this evaluation; others are worth nothing."""
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
        """Compute this rank's part of the test features, each image on one rank. Returns False when asked to stop."""
        compute, split = self.compute, self._store.test
        precision = "fp32" if self._linear["test_precision"] == "fp32" else compute.precision
        ranks = compute.ranks
        mine = np.arange(ranks.rank, len(split), ranks.size)
        parts = []
        for start in range(0, -(-len(split) // ranks.size), TEST_BATCH):  # as often on every rank
            if ranks.any(attempt.stop.reason is not None):
                return False
            pictures = centre_view(self._recipe, map(split.image, mine[start : start + TEST_BATCH]))
            with autocast(compute.device, precision):
                parts.append(self._encoder(pictures.to(compute.device)).float())
            attempt.alive(f"test image {start}")
        self._test_features = torch.cat(parts)
        self._test_labels = torch.from_numpy(split.labels[mine]).to(compute.device)
        return True

    def _train_step(self, batch: Batch) -> float:
        """Do one step and return its learning rate; `_losses` grows by this rank's share of the mean cross entropy."""
        compute, linear = self.compute, self._linear
        rate = learning_rate(
            batch.step, total_steps=self.total_steps, warmup_steps=0, peak=linear["peak_lr"], floor=linear["lr_floor"]
        )
        pictures, labels = self._make_views(batch)[0], batch.labels.to(compute.device, non_blocking=True)
        with torch.no_grad(), autocast(compute.device, compute.precision):
            features = self._encoder(pictures)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        # The sum over the global batch's size, not the mean over this rank's part: a short last batch has uneven parts.
        share = F.cross_entropy(self._classifier(features.float()), labels, reduction="sum") / batch.total
        (share * compute.ranks.size).backward()
        compute.ranks.average_gradients(self._classifier.parameters())
        self._optimizer.step()
        self._losses += share.detach()
        self.step += 1
        return rate

    def _row(self, epoch: int, rate: float, images_per_s: float) -> dict[str, float]:
        train_loss = float(self.compute.ranks.all_reduce(self._losses)) / self.steps_per_epoch
        self._losses = torch.zeros((), device=self.compute.device)
        accuracy = _accuracy(self._classifier, self._test_features, self._test_labels, self._n_test, self.compute.ranks)
        return {"epoch": epoch, "lr": rate, "train_loss": train_loss, **accuracy, "images_per_s": images_per_s}

    def _save(self, partial: Path, saver: Saver, *, wait: bool) -> None:
        path, losses = partial / f"step_{self.step:09d}.pt", self.compute.ranks.all_gather(self._losses).cpu()

        def state() -> dict[str, Any]:
            parts = {"classifier": self._classifier.state_dict(), "optimizer": self._optimizer.state_dict()}
            return {"identity": self._identity, "step": self.step, "rows": list(self.rows), "losses": losses, **parts}

        saver.save(path, state, {"step": self.step}, wait=wait, then=lambda: prune(partial, keep=path))

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.rows = state["step"], list(state["rows"])
        ranks, losses = self.compute.ranks, state["losses"]
        if len(losses) == ranks.size:
            self._losses.copy_(losses[ranks.rank])
        elif ranks.is_main:  # another number of ranks: the sum is what counts
            self._losses.copy_(losses.sum())


@torch.no_grad()
def _accuracy(
    classifier: nn.Linear, features: torch.Tensor, labels: torch.Tensor, images: int, ranks: Ranks
) -> dict[str, float]:
    logits = classifier(features)
    counts = torch.tensor(
        [len(labels), top_k_hits(logits, labels, 1), top_k_hits(logits, labels, 5)], device=features.device
    )
    counted, top1, top5 = ranks.all_reduce(counts).tolist()
    if counted != images:
        raise AssertionError(f"{counted} test images were counted, wanted each of {images} once")
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images}
