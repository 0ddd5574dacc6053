"""Linear evaluation: a linear classifier on the frozen encoder (paper, section 6.5).

The encoder stays in eval mode. The headline is the figure of the last epoch. The best epoch is recorded, but not used;
nor are the classifiers with other learning rates or initial weights that may be trained as well (`linear.further`).
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from selfsup.augment import centre_view
from selfsup.data.loader import Batches, LoadedBatch, ViewMaker
from selfsup.engine.device import full_fp32
from selfsup.engine.distributed import Ranks
from selfsup.engine.saving import Saver
from selfsup.errors import PermanentError
from selfsup.evaluation.features import FrozenFeatures
from selfsup.evaluation.further import FurtherClassifiers
from selfsup.evaluation.linear_settings import LinearSettings
from selfsup.evaluation.task import Judged, Task, labels_of, own_part
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy, mean_per_class
from selfsup.models import seeded_weights
from selfsup.optim import learning_rate

TEST_BATCH = 256
TOP1, MEAN_PER_CLASS = "top-1", "mean per class"  # measures of data sets


class LinearEvaluation(Task):
    """The state of a linear evaluation: classifiers, optimiser, rows so far.

    Test features are computed once per job: the encoder is fixed. further_rows: of the further classifiers.
    """

    measures = (TOP1, MEAN_PER_CLASS)

    def __init__(self, judged: Judged, settings: LinearSettings, identity: Mapping[str, Any]):
        super().__init__(judged, settings, identity)
        recipe, store, compute = judged.recipe.changed(linear=settings), judged.store, judged.compute
        self._recipe, self._encoder, self.features = recipe, judged.encoder, FrozenFeatures(judged.encoder, compute)
        self._test_features = self._exact_test_features = self._test_labels = torch.empty(0)
        place = {"rank": compute.ranks.rank, "world_size": compute.ranks.size, "device": compute.device}
        self.batches = Batches(store.train, recipe, seed=judged.seed, stage="linear", **place)
        self.make_views = ViewMaker(store.train, recipe, compute.device)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * settings.epochs
        if self.total_steps == 0:
            raise PermanentError(
                f"linear.batch is {settings.batch}, more than the {len(store.train)} training images of "
                f"{store.folder}: make it smaller"
            )
        self._build_classifiers(judged.seed, judged.encoder.out_features)
        self._losses = torch.zeros((), device=compute.device)  # this rank's share, summed over the epoch so far

    def _build_classifiers(self, seed: int, features: int) -> None:
        device, further = self.compute.device, self.settings.further
        draws = [0, *(one["initial_weights"] for one in further)]
        classifiers = [_initial_classifier(seed, draw, features, self.classes) for draw in draws]
        self._classifier = classifiers[0].to(device)
        self._further = FurtherClassifiers(classifiers[1:], self.settings, device) if further else None
        self._optimizer = torch.optim.SGD(
            self._classifier.parameters(),
            lr=self.settings["peak_lr"],
            momentum=self.settings["momentum"],
            nesterov=self.settings["nesterov"],
            weight_decay=self.settings["weight_decay"],
        )

    def run(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, float]]:
        """Yield a row after each epoch: epoch, lr, train_loss, top1, top5 (in %), images_per_s."""
        attempt.begin_steps(self.step, self.settings.batch)
        if not self._extract_test_features(attempt):
            return
        began, first = time.monotonic(), self.step
        pinned = self.compute.device.type == "cuda"
        for batch in self.batches.read(self.step, self.total_steps, workers=self.compute.workers, pin_memory=pinned):
            rate = self.train_step(batch)
            attempt.step_done(self.step)
            epoch, place = divmod(self.step, self.steps_per_epoch)
            if place == 0:
                images = (self.step - first) * self.settings.batch
                self.rows.append(self._row(epoch, rate, images / (time.monotonic() - began)))
                began, first = time.monotonic(), self.step
                if self.finished and self._further is not None:
                    self.further_rows = self._further.rows(*self._test_set())
                yield self.rows[-1]
            if self.finished or not self.go_on(saver, partial):
                return

    def figures(self) -> dict[str, Any]:
        """Return the last epoch's top1 and top5, and the best epoch, which no verdict uses."""
        last, best = self.rows[-1], max(self.rows, key=lambda row: row["top1"])
        best = {"best_top1": best["top1"], "best_epoch": best["epoch"]}
        return {key: last[key] for key in ("top1", "top5", "mean_per_class") if key in last} | best

    def line(self, row: Mapping[str, Any]) -> str:
        return (
            f"epoch {row['epoch']}/{self.settings.epochs}  loss {row['train_loss']:.4g}  lr {row['lr']:.4g}  "
            f"top-1 {row['top1']:.2f} %  {row['images_per_s']:,.0f} images/s"
        )

    def remarks(self) -> Iterator[str]:
        if self.settings.test_precision == "compute":
            changed, images = self.changed_predictions(), len(self.judged.store.test)
            yield f"{changed} of {images} predictions differ from those of a test forward in fp32"

    @torch.no_grad()
    def changed_predictions(self) -> int:
        """Return for how many test images the encoder in fp32 with unfolded batch norms predicts another class.

        0 with `test_precision: fp32`. Collective.
        """
        classes = [self._classifier(one).argmax(1) for one in (self._test_features, self._exact_test_features)]
        return int(self.compute.ranks.all_reduce((classes[0] != classes[1]).sum()))

    @torch.no_grad()
    def _extract_test_features(self, attempt: Attempt) -> bool:
        """Compute this rank's part of the test features, each image on one rank. Returns False if asked to stop.

        They are computed in fp32 by the unchanged encoder; with `test_precision: compute` also as in training.
        """
        compute, split = self.compute, self.judged.store.test
        ranks, mine = compute.ranks, own_part(len(split), compute)
        exact, fast = [], []
        for start in range(0, -(-len(split) // ranks.size), TEST_BATCH):  # equally often on all ranks
            if ranks.any(attempt.stop.reason is not None):
                return False
            pictures = centre_view(self._recipe, map(split.image, mine[start : start + TEST_BATCH])).to(compute.device)
            with full_fp32():
                exact.append(self._encoder(pictures))
            if self.settings["test_precision"] == "compute":
                fast.append(self.features(pictures))
            attempt.heartbeat(f"test image {start}")
        self._exact_test_features = torch.cat(exact)
        self._test_features = torch.cat(fast) if fast else self._exact_test_features
        self._test_labels = labels_of(split, mine, compute.device)
        return True

    def train_step(self, batch: LoadedBatch) -> float:
        """Do one step and return its learning rate; add this rank's share of the mean cross entropy to `_losses`."""
        compute, linear = self.compute, self.settings
        rate = learning_rate(
            batch.step, total_steps=self.total_steps, warmup_steps=0, peak=linear["peak_lr"], floor=linear["lr_floor"]
        )
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
            steps = {"images": batch.total, "step": batch.step, "total_steps": self.total_steps}
            self._further.train_step(features, labels, **steps, ranks=compute.ranks)
        self.step += 1
        return rate

    def _row(self, epoch: int, rate: float, images_per_s: float) -> dict[str, float]:
        train_loss = float(self.compute.ranks.all_reduce(self._losses)) / self.steps_per_epoch
        self._losses = torch.zeros((), device=self.compute.device)
        features, *test = self._test_set()
        with torch.no_grad():
            logits = self._classifier(features)
            top = accuracy(logits, *test)
            if self.judged.store.measure == MEAN_PER_CLASS:
                top["mean_per_class"] = mean_per_class(logits, test[0], self.compute.ranks)
        return {"epoch": epoch, "lr": rate, "train_loss": train_loss, **top, "images_per_s": images_per_s}

    def _test_set(self) -> tuple[torch.Tensor, torch.Tensor, int, Ranks]:
        """Return this rank's features and labels, the number of images on all ranks, and the ranks."""
        return self._test_features, self._test_labels, len(self.judged.store.test), self.compute.ranks

    def state(self) -> dict[str, Any]:
        parts = {"classifier": self._classifier.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._further is not None:
            parts["further"] = self._further.state_dict()
        return {"losses": self.compute.ranks.all_gather(self._losses).cpu(), **parts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._further is not None:
            self._further.load_state_dict(state["further"])
        ranks, losses = self.compute.ranks, state["losses"]
        if len(losses) == ranks.size:
            self._losses.copy_(losses[ranks.rank])
        elif ranks.is_main:  # the number of ranks has changed: only the sum counts
            self._losses.copy_(losses.sum())


def _initial_classifier(seed: int, draw: int, features: int, classes: int) -> nn.Linear:
    with seeded_weights(seed, 2, draw):
        return nn.Linear(features, classes)
