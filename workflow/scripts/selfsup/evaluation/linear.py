"""Linear evaluation: a linear classifier on the frozen encoder (paper, section 6.5).

The encoder stays in eval mode. The headline is the figure of the last epoch. The best epoch is recorded, but not used;
nor are the classifiers with other learning rates or initial weights that may be trained as well (`linear.further`),
unless training images are held out to choose one (`linear.held_out`; Grill et al. 2020, C.1).
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from selfsup.augment import centre_view
from selfsup.data.loader import LoadedBatch, ViewMaker, reading_of
from selfsup.data.store import Split
from selfsup.engine.device import full_fp32, without_trials
from selfsup.engine.distributed import Ranks
from selfsup.engine.saving import Saver
from selfsup.errors import PermanentError
from selfsup.evaluation.features import FrozenFeatures
from selfsup.evaluation.further import FurtherClassifiers
from selfsup.evaluation.linear_settings import LinearSettings
from selfsup.evaluation.running_loss import RunningLoss
from selfsup.evaluation.step_groups import StepGroups, steps_together
from selfsup.evaluation.subsets import balanced_order
from selfsup.evaluation.task import Judged, Task, labels_of, own_part
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy, mean_per_class
from selfsup.optim import learning_rate
from selfsup.tables.figure_keys import MEAN_PER_CLASS, TOP1

TEST_BATCH = 256
HELD_OUT_SEED = 0  # of the draw of held-out images: the same whatever else is drawn


class LinearEvaluation(Task):
    """The state of a linear evaluation: classifiers, optimiser, rows so far.

    Test features are computed once per job: the encoder is fixed. further_rows: of the further classifiers; where
    held-out images choose one, of the headline's too, first.
    """

    measures = (TOP1, MEAN_PER_CLASS)

    def __init__(self, judged: Judged, settings: LinearSettings, identity: Mapping[str, Any]):
        super().__init__(judged, settings, identity)
        recipe, store, compute = judged.recipe.changed(linear=settings), judged.store, judged.compute
        self._recipe, self._encoder, self.features = recipe, judged.encoder, FrozenFeatures(judged.encoder, compute)
        self._test_features = self._exact_test_features = self._test_labels = torch.empty(0)
        place = {"rank": compute.ranks.rank, "world_size": compute.ranks.size, "device": compute.device}
        order = balanced_order(store.train.labels, HELD_OUT_SEED) if settings.held_out else np.arange(len(store.train))
        self._held_out, trained = order[: settings.held_out], np.sort(order[settings.held_out :])
        reading = replace(reading_of(recipe, "linear"), images=trained if settings.held_out else None)
        size = settings.train_view.size or recipe.augment.size
        each = -(-settings.batch // compute.ranks.size)
        together = steps_together(store.train, compute.device, each, size)
        own = {"seed": judged.seed, "stage": reading, "together": together}
        self.batches = StepGroups(store.train, recipe, **own, **place)
        self.make_views = ViewMaker(store.train, recipe, compute.device)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = self.steps_per_epoch * settings.epochs
        if self.total_steps == 0:
            raise PermanentError(
                f"linear.batch is {settings.batch}, more than the {len(trained)} training images of {store.folder}"
                f"{' that are not held out' if settings.held_out else ''}: make it smaller"
            )
        self._build_classifiers()
        self._losses = RunningLoss(compute)

    def _build_classifiers(self) -> None:
        device, further = self.compute.device, self.settings.further
        draws = [0, *(one["initial_weights"] for one in further)]
        classifiers = list(map(self.initial_classifier, draws))
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
        if not self._extract_features(attempt):
            return
        began, first = time.monotonic(), self.step
        for rate in self._steps():
            attempt.step_done(self.step)
            epoch, place = divmod(self.step, self.steps_per_epoch)
            if place == 0:
                images = (self.step - first) * self.settings.batch
                self.rows.append(self._row(epoch, rate, images / (time.monotonic() - began)))
                began, first = time.monotonic(), self.step
                if self.finished and self._further is not None:
                    self.further_rows = self._rows_of_classifiers()
                yield self.rows[-1]
            if self.finished or not self.go_on(saver, partial):
                return

    def figures(self) -> dict[str, Any]:
        """Return the last epoch's top1 and top5, and the best epoch, which no verdict uses; of the chosen classifier,
        where one is chosen, top1, top5 and what chose it."""
        if self.settings.held_out:
            return self._chosen()
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

    def _extract_features(self, attempt: Attempt) -> bool:
        """Compute this rank's part of the test and held-out features. Returns False if asked to stop."""
        store = self.judged.store
        test = self._features_of(store.test, np.arange(len(store.test)), attempt)
        held_out = test and self._features_of(store.train, self._held_out, attempt)
        if test is None or held_out is None:
            return False
        self._exact_test_features, self._test_features, self._test_labels = test
        self._held_out_set = held_out[1:]
        return True

    @torch.no_grad()
    def _features_of(
        self, split: Split, images: np.ndarray, attempt: Attempt
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return this rank's part of the features of some images, each on one rank, and labels; None if asked to stop.

        They are computed in fp32 by the unchanged encoder; with `test_precision: compute`, the second ones, as in
        training.
        """
        compute = self.compute
        ranks, mine = compute.ranks, images[own_part(len(images), compute)]
        exact, fast = [torch.empty(0, self._encoder.out_features, device=compute.device)], []
        for start in range(0, -(-len(images) // ranks.size), TEST_BATCH):  # equally often on all ranks
            if ranks.any(attempt.stop.reason is not None):
                return None
            pictures = centre_view(self._recipe, map(split.image, mine[start : start + TEST_BATCH])).to(compute.device)
            with full_fp32(), without_trials():
                exact.append(self._encoder(pictures))
            if self.settings["test_precision"] == "compute":
                fast.append(self.features(pictures))
            attempt.heartbeat(f"image {start}")
        exact = torch.cat(exact)
        return exact, torch.cat(fast) if fast else exact, labels_of(split, mine, compute.device)

    @torch.no_grad()
    def _rows_of_classifiers(self) -> list[dict[str, float]]:
        """Return a row for each further classifier. Collective.

        Where one is chosen, the headline's comes first, and each has figures on held-out images as well.
        """
        if not self.settings.held_out:
            return self._further.rows(*self._test_set())
        features, labels = self._held_out_set
        held_out = features, labels, len(self._held_out), self.compute.ranks
        headline = {"peak_lr": self.settings.peak_lr, "initial_weights": 0}
        headline |= {key: self.rows[-1][key] for key in ("top1", "top5")}
        rows = [headline, *self._further.rows(*self._test_set())]
        reached = [accuracy(self._classifier(features), *held_out[1:]), *self._further.rows(*held_out)]
        return [
            {**row, **{f"validation_{key}": found[key] for key in ("top1", "top5")}}
            for row, found in zip(rows, reached, strict=True)
        ]

    def _chosen(self) -> dict[str, Any]:
        """Return the figures of the classifier with the highest top-1 on held-out images, of equals the first."""
        best = max(
            (row for row in self.further_rows if not math.isnan(row["validation_top1"])),
            key=lambda row: row["validation_top1"],
        )
        own = {key: best[key] for key in ("top1", "top5")}
        chosen = {"chosen_lr": best["peak_lr"], "chosen_initial_weights": best["initial_weights"]}
        return {**own, **chosen, "validation_top1": best["validation_top1"], "n_held_out": len(self._held_out)}

    def _steps(self) -> Iterator[float]:
        """Do the steps that are left, and yield the learning rate of each after it."""
        pinned, first, last = self.compute.device.type == "cuda", self.step, self.total_steps - 1
        if first > last:
            return
        groups = range(self.batches.group_of(first), self.batches.group_of(last) + 1)
        read = self.batches.read(groups.start, groups.stop, workers=self.compute.workers, pin_memory=pinned)
        for group, batch in zip(groups, read, strict=True):
            yield from self.train_group(group, batch)

    def train_group(self, group: int, batch: LoadedBatch) -> Iterator[float]:
        """Do the steps of a group that are not done yet, and yield the learning rate of each after it."""
        features, labels = self._features_and_labels(batch)
        for part in self.batches.parts_of(group):
            if part.step >= self.step:
                yield self._classifier_step(part.step, features[part.samples], labels[part.samples], part.total)

    def _features_and_labels(self, batch: LoadedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = self.make_views(batch)[0]
        return self.features(pictures), batch.labels.to(self.compute.device, non_blocking=True)

    def _classifier_step(self, step: int, features: torch.Tensor, labels: torch.Tensor, total: int) -> float:
        """Do one step and return its learning rate; add this rank's share of the mean cross entropy to `_losses`.

        features, labels: this rank's part of a global batch of `total` pictures.
        """
        compute, rate = self.compute, self._rate(step, self.settings.peak_lr)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        # Divided by the size of the global batch, not of this rank's part: the parts of a short last batch are uneven.
        share = F.cross_entropy(self._classifier(features), labels, reduction="sum") / total
        (share * compute.ranks.size).backward()
        compute.ranks.average_gradients(self._classifier.parameters())
        self._optimizer.step()
        self._losses.add(share)
        if self._further is not None:
            rates = [self._rate(step, one["peak_lr"]) for one in self.settings.further]
            self._further.train_step(features, labels, images=total, rates=rates, ranks=compute.ranks)
        self.step += 1
        return rate

    def _rate(self, step: int, peak: float) -> float:
        return learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=0,
            peak=peak,
            floor=self.settings.lr_floor,
            cosine_extra_steps=self.settings.cosine_extra_epochs * self.steps_per_epoch,
        )

    def _row(self, epoch: int, rate: float, images_per_s: float) -> dict[str, float]:
        train_loss = self._losses.taken(self.steps_per_epoch)
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
        return {"losses": self._losses.state(), **parts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._further is not None:
            self._further.load_state_dict(state["further"])
        self._losses.load_state(state["losses"])
