"""Fine-tuning: encoder and a new linear head trained together, with some of the labels or with all.

Semi-supervised learning of Grill et al. 2020 (BYOL), C.1, and of Chen et al. 2020 (SimCLR), B.5; their transfer by
fine-tuning, D.3 and B.8. Each point of a grid of lengths, weight decays and learning rates is trained, and judged on
training images that were held out. The point with the highest figure there, by the dataset's measure, is trained again
on all images whose labels may be used, and only that network sees the test set.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsup.augment import centre_view
from selfsup.data.loader import ViewMaker
from selfsup.data.store import Split
from selfsup.engine.device import full_fp32
from selfsup.engine.saving import Saver
from selfsup.errors import PermanentError
from selfsup.evaluation.fine_tune_settings import FineTuneSettings, Point
from selfsup.evaluation.running_loss import RunningLoss
from selfsup.evaluation.subsets import LabelledImages, listed_images
from selfsup.evaluation.supervised import SupervisedTraining, batch_of, steps_of
from selfsup.evaluation.task import Judged, Task, labels_of, own_part
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy, mean_per_class
from selfsup.models.modes import evaluation_mode
from selfsup.tables.figure_keys import MEAN_PER_CLASS, MEASURES, TOP1

TEST_BATCH = 256
ROWS_PER_TRAINING = 10  # of history.csv; each reads a loss back from the device


class FineTuning(Task):
    """The state of a fine-tuning: what the points of the grid tried so far have reached, and the training under way.

    `step` counts the steps of all trainings, and one more for each one's measurement. further_rows: a row a point.
    """

    measures = (TOP1, MEAN_PER_CLASS)

    def __init__(self, judged: Judged, settings: FineTuneSettings, identity: Mapping[str, Any]):
        super().__init__(judged, settings, identity)
        store, compute = judged.store, judged.compute
        self.images = LabelledImages.of(store.train.labels, settings, listed_images(store, settings))
        self.trials = settings.grid if settings.chooses else []
        self._make_views = ViewMaker(store.train, judged.recipe, compute.device, compute.memory_format)
        self._found: list[dict[str, float]] = []  # held-out figures of the trials so far
        self._training: SupervisedTraining | None = None
        self._losses = RunningLoss(compute)

    @property
    def total_steps(self) -> int:
        """Until a point is chosen, that of a choice of the longest."""
        last = self.chosen if self._tried else max(self.settings.grid, key=lambda point: point.length)
        trainings = [(point, self.images.tried) for point in self.trials] + [(last, self.images.share)]
        return sum(steps_of(self.settings, point, len(images)) + 1 for point, images in trainings)

    @property
    def _tried(self) -> bool:
        """Whether all points have been."""
        return len(self._found) == len(self.trials)

    @property
    def chosen(self) -> Point:
        """The point of the highest figure on the held-out images, of equals the first, once all have been tried."""
        return self.trials[self._best] if self.trials else self.settings.grid[0]

    @property
    def _best(self) -> int:
        """The chosen point's place among those tried."""
        figures = [found[MEASURES[self.judged.store.measure]] for found in self._found]
        if all(map(math.isnan, figures)):
            raise PermanentError(f"all {len(figures)} trainings have diverged: give smaller peak_lrs")
        return int(np.nanargmax(figures))

    def run(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, Any]]:
        """Yield ten rows of each training: its number and point, step, epoch, lr, train_loss, images_per_s.

        The last of them has what it reached: `validation_top1` and `validation_top5` on held-out images in %, or top1
        and top5 on the test set.
        """
        attempt.begin_steps(self.step, batch_of(self.settings, len(self.images.tried)))
        while not self.finished:
            self._training = self._training or self._begun()
            for row in self._trained(self._training, attempt):
                if row:
                    yield row
                if not self.go_on(saver, partial):
                    return
            if self._measured(self._training, attempt):
                yield self.rows[-1]
            if self.finished or not self.go_on(saver, partial):
                return

    def _begun(self) -> SupervisedTraining:
        point, images = (self.chosen, self.images.share) if self._tried else (self._trial, self.images.tried)
        return SupervisedTraining(self.judged, self.settings, point, images, head=self.initial_classifier())

    @property
    def _trial(self) -> Point:
        """The point whose turn it is."""
        return self.trials[len(self._found)]

    def _trained(self, training: SupervisedTraining, attempt: Attempt) -> Iterator[dict[str, Any] | None]:
        """Yield after each step: a row where one is due, else None."""
        pinned, workers = self.compute.device.type == "cuda", self.compute.workers
        interval = max(1, training.total_steps // ROWS_PER_TRAINING)
        self._begin_row()
        for batch in training.batches.read(training.step, training.total_steps, workers=workers, pin_memory=pinned):
            self._losses.add(training.train_step(batch, self._make_views))
            self.advance(attempt)
            due = training.step % interval == 0 and training.total_steps - training.step >= interval
            yield self._row(training) if due else None

    def _begin_row(self) -> None:
        self._row_began, self._row_first = time.monotonic(), self.step

    def _row(self, training: SupervisedTraining, **reached: float) -> dict[str, Any]:
        number = len(self._found) + 1
        before = self.rows[-1]["step"] if self.rows and self.rows[-1]["training"] == number else 0
        images = (self.step - self._row_first) * training.batch
        self.rows.append(
            {
                "training": number,
                **self._named(training.point),
                "step": training.step,
                "epoch": training.step / training.steps_per_epoch,
                "lr": training.learning_rate(training.step - 1),
                "train_loss": self._losses.taken(training.step - before),
                "images_per_s": images / (time.monotonic() - self._row_began),
                **reached,
            }
        )
        self._begin_row()
        return self.rows[-1]

    def _measured(self, training: SupervisedTraining, attempt: Attempt) -> bool:
        """Judge a training that is at its end. Returns False if asked to stop: it is judged anew then."""
        trial, store = not self._tried, self.judged.store
        split = store.train if trial else store.test
        images = self.images.held_out if trial else np.arange(len(split))
        top = self._accuracy(training, split, images, attempt)
        if top is None:
            return False
        if not trial and math.isnan(top["top1"]):
            raise PermanentError(f"the training at peak_lr {training.point.peak_lr:g} has diverged: give smaller ones")
        self._row(training, **({f"validation_{key}": value for key, value in top.items()} if trial else top))
        self.advance(attempt)
        self._training = None
        if trial:
            self._found.append(top)
        else:
            self.further_rows = self._points()
        return True

    def _accuracy(
        self, training: SupervisedTraining, split: Split, images: np.ndarray, attempt: Attempt
    ) -> dict[str, float] | None:
        """Return top1 and top5 in % on some images of a split, NaN after a divergence; None if asked to stop."""
        ranks, mine = self.compute.ranks, images[own_part(len(images), self.compute)]
        training.share_running_statistics()
        logits = self._logits(training, split, mine, -(-len(images) // ranks.size), attempt)
        if logits is None:
            return None
        if ranks.any(not bool(torch.isfinite(logits).all())):
            return dict.fromkeys(["top1", "top5", MEASURES[self.judged.store.measure]], math.nan)
        labels = labels_of(split, mine, self.compute.device)
        found = accuracy(logits, labels, len(images), ranks)
        if self.judged.store.measure == MEAN_PER_CLASS:
            found["mean_per_class"] = mean_per_class(logits, labels, ranks)
        return found

    def _logits(
        self, training: SupervisedTraining, split: Split, mine: np.ndarray, most: int, attempt: Attempt
    ) -> torch.Tensor | None:
        """Return the logits of this rank's images, by running statistics and in fp32. most: images of any rank."""
        compute, recipe, found = self.compute, self.judged.recipe, []
        place = {"device": compute.device, "memory_format": compute.memory_format}
        with evaluation_mode(training.network), full_fp32():
            for start in range(0, most, TEST_BATCH):  # equally often on all ranks
                if compute.ranks.any(attempt.stop.reason is not None):
                    return None
                pictures = map(split.image, mine[start : start + TEST_BATCH])
                pictures = centre_view(recipe, pictures, self.settings.test or recipe.linear.test).to(**place)
                found.append(training.network(pictures))
                attempt.heartbeat(f"image {start}")
        return torch.cat(found)

    def _named(self, point: Point) -> dict[str, float]:
        return {"peak_lr": point.peak_lr, "weight_decay": point.weight_decay, self.settings.unit: point.length}

    def _points(self) -> list[dict[str, float]]:
        return [
            {**self._named(point), **{f"validation_{key}": value for key, value in found.items()}}
            for point, found in zip(self.trials, self._found, strict=True)
        ]

    def figures(self) -> dict[str, Any]:
        """Return top1 and top5, the chosen point, its figure on the held-out images, and how many there are."""
        last, unit = self.rows[-1], self.settings.unit
        point = {"peak_lr": "chosen_lr", "weight_decay": "chosen_weight_decay", unit: f"chosen_{unit}"}
        best = self._found[self._best] if self.trials else {"top1": None}
        return {
            **{key: last[key] for key in ("top1", "top5", "mean_per_class") if key in last},
            **{name: last[key] for key, name in point.items()},
            **{f"validation_{key}": best[key] for key in ("top1", "mean_per_class") if key in best},
            "n_labelled": len(self.images.share),
            "n_held_out": len(self.images.held_out),
        }

    def line(self, row: Mapping[str, Any]) -> str:
        unit = self.settings.unit
        reached = {"validation": row.get("validation_top1"), "test": row.get("top1")}
        shown = [f"{name} top-1 {value:.2f} %" for name, value in reached.items() if value is not None]
        decay = f", weight decay {row['weight_decay']:g}" if row["weight_decay"] else ""
        point = f"lr {row['peak_lr']:g}, {row[unit]} {unit}{decay}"
        return "  ".join(
            [
                f"training {row['training']} of {len(self.trials) + 1} ({point})",
                f"epoch {row['epoch']:.1f}  loss {row['train_loss']:.4g}",
                *shown,
                f"{row['images_per_s']:,.0f} images/s",
            ]
        )

    def state(self) -> dict[str, Any]:
        training = self._training.state() if self._training else {}
        return {"found": list(self._found), "losses": self._losses.state(), "training": training}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._found = list(state["found"])
        self._losses.load_state(state["losses"])
        if state["training"]:
            self._training = self._begun()
            self._training.load_state(state["training"])
