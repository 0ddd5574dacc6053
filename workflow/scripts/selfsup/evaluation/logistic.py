"""Multinomial logistic regression on frozen features, its penalty chosen on validation images: the linear transfer
protocol (Grill et al. 2020, appendix D.2; Chen et al. 2020, appendix B.8; both after Kornblith et al. 2019).

Rank 0 computes alone, since one device has it done in minutes; the others wait, and their number changes nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsup.engine.saving import Saver
from selfsup.errors import PermanentError
from selfsup.evaluation.extraction import Features, features_of
from selfsup.evaluation.logistic_settings import LogisticSettings
from selfsup.evaluation.logistic_solver import Classifier, Problem, Solver
from selfsup.evaluation.one_against_rest import ProblemOfEach, SolverOfEach
from selfsup.evaluation.task import Judged, Task
from selfsup.evaluation.task_settings import MEAN_PER_CLASS
from selfsup.job.attempt import Attempt
from selfsup.measures import accuracy, hits_per_class, mean_average_precision, mean_per_class


class LogisticRegression(Task):
    """A step for each strength, the greatest first, and one for all training images at the strength that was chosen.

    rows: strength, objective, iterations, validation_top1, in %; where the dataset is measured by the mean of the
    classes' accuracies, that instead, validation_mean_per_class; of pictures of several classes, of which each has a
    classifier against the rest, validation_map, their mean average precision.
    """

    measures = ("top-1", "mean per class", "11-point mAP")
    multi_label = True

    def __init__(self, judged: Judged, settings: LogisticSettings, identity: Mapping[str, Any]):
        super().__init__(judged, settings, identity)
        self.total_steps = len(settings.grid) + 1
        self._now = self._best = self._last = None  # classifiers, on rank 0: the newest, the best, that of all images
        self._features: Features | None = None

    def run(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, Any]]:
        self._features = features_of(self.judged, self.settings, attempt, partial)
        if self._features is None:
            return  # asked to stop: what is extracted is kept
        attempt.begin_steps(self.step, len(self.judged.store.train))
        train, validation = self._split()
        if self.step < len(self.settings.grid):
            problem, held_out = self._problem(train), self._set(validation)
            while self.step < len(self.settings.grid):
                done = self._try_strength(problem, held_out, attempt)
                if done:
                    yield self.rows[-1]
                if not self.go_on(saver, partial) or not done:
                    return
        if not self._refit(attempt):
            self.go_on(saver, partial)

    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which images train and which validate: the publisher's own, where there are some."""
        store = self.judged.store
        if not store.validation:
            labels = np.zeros(len(store.train), np.int64) if store.multi_label else store.train.labels
            return split_by_class(labels, self.settings.validation)
        images = np.arange(len(store.train))
        return images[: -store.validation], images[-store.validation :]

    def _try_strength(self, problem: Problem | None, held_out: tuple | None, attempt: Attempt) -> bool:
        """Do a step; return False if asked to stop within it, which leaves it undone. Collective."""
        strength, main = self.settings.grid[self.step], self.compute.ranks.is_main
        solver = self._solver(problem, self._now or self._zeros(), strength) if main else None
        if not self._converged(solver, attempt):
            return False
        self.rows.append(self.compute.ranks.from_main(solver and self._row(strength, solver, held_out)))
        if solver:
            self._now = solver.classifier
            self._best = self._now if self.chosen is self.rows[-1] else self._best
        self.advance(attempt)
        return True

    def _refit(self, attempt: Attempt) -> bool:
        """Solve for all training images, at the strength that was chosen; False if asked to stop. Collective."""
        everything, strength = np.arange(len(self.judged.store.train)), self.chosen["strength"]
        problem = self._problem(everything)
        solver = self._solver(problem, self._best, strength) if problem else None
        if not self._converged(solver, attempt):
            return False
        self._last = solver and solver.classifier
        self.advance(attempt)
        return True

    def _converged(self, solver: Solver | None, attempt: Attempt) -> bool:
        """Return False if asked to stop before. solver: rank 0's. Collective."""
        ranks = self.compute.ranks
        while not ranks.from_main(solver and solver.advance()):
            attempt.heartbeat(f"an iteration at strength {self.step + 1}")
            if ranks.any(attempt.stop.reason is not None):
                return False
        return True

    def _row(self, strength: float, solver: Solver, held_out: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
        features, labels = held_out
        logits = solver.classifier.logits(features)
        found = {"strength": strength, "objective": solver.objective, "iterations": solver.iterations}
        if self.judged.store.multi_label:
            return {**found, self._criterion: _of_known_classes(logits, labels)}
        if self.judged.store.measure == MEAN_PER_CLASS:
            images, hits = hits_per_class(logits.argmax(dim=1), labels, self.classes).double()
            return {**found, self._criterion: float(100 * (hits / images)[images > 0].mean())}
        right = float((logits.argmax(dim=1) == labels).double().mean())
        return {**found, self._criterion: 100 * right}

    @property
    def _criterion(self) -> str:
        if self.judged.store.multi_label:
            return "validation_map"
        return "validation_mean_per_class" if self.judged.store.measure == MEAN_PER_CLASS else "validation_top1"

    def _solver(self, problem: Problem | ProblemOfEach, start: Classifier, strength: float) -> Solver | SolverOfEach:
        kind = SolverOfEach if self.judged.store.multi_label else Solver
        return kind(problem, start, strength, self.settings.tolerance)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The row of the best strength on validation images; of equal ones the greatest."""
        return max(self.rows, key=lambda row: row[self._criterion])

    def figures(self) -> dict[str, Any]:
        """Return top1, top5 and mean_per_class of the test images, or of pictures of several classes the mean average
        precision; and the strength that was chosen, with its row, and on how many images, where they are the
        publisher's own."""
        test, ranks, device = self._features.test, self.compute.ranks, self.compute.device
        mine = range(len(test) if ranks.is_main else 0)
        features, labels = test.rows(mine).to(device), test.labels(mine).to(device)
        logits = (self._last or self._zeros()).logits(features)
        chosen = {key: self.chosen[key] for key in ("strength", self._criterion)}
        if self.judged.store.validation:
            chosen["n_validation"] = self.judged.store.validation
        if self.judged.store.multi_label:
            found = _of_known_classes(logits, labels) if ranks.is_main else None
            return {"mean_average_precision": ranks.from_main(found), **chosen}
        top = accuracy(logits, labels, len(test), ranks)
        return {**top, "mean_per_class": mean_per_class(logits, labels, ranks), **chosen}

    def state(self) -> dict[str, Any]:
        named = {"now": self._now, "best": self._best}
        return {name: {"weight": one.weight, "bias": one.bias} for name, one in named.items() if one}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.compute.ranks.is_main:
            self._now, self._best = (self._loaded(state.get(name)) for name in ("now", "best"))

    def _loaded(self, saved: Mapping[str, torch.Tensor] | None) -> Classifier | None:
        return saved and Classifier(**{name: value.to(self.compute.device) for name, value in saved.items()})

    def _zeros(self) -> Classifier:
        return Classifier.zeros(self.classes, self._features.train.width, self.compute.device)

    def _problem(self, places: np.ndarray) -> Problem | ProblemOfEach | None:
        kind = ProblemOfEach if self.judged.store.multi_label else Problem
        return kind(*self._set(places), self.classes) if self.compute.ranks.is_main else None

    def _set(self, places: np.ndarray) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return features and labels of training images, on rank 0's device."""
        train, device = self._features.train, self.compute.device
        main = self.compute.ranks.is_main
        return (train.rows(places).to(device), train.labels(places).to(device)) if main else None


def _of_known_classes(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean average precision in % of the classes that have pictures."""
    known = (labels == 1).any(dim=0)
    return mean_average_precision(logits[:, known], labels[:, known]) if known.any() else 0.0


def split_by_class(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which images train and which validate, int64, in order. Of each class the same share validates, spread
    evenly over the class: pictures that lie side by side are often alike.

    labels: int64 [N]. Always the same images, whatever the seed. A class with a single image trains. Raises
    PermanentError where none is left to validate.
    """
    validates = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        # The middles of `count` equal parts.
        validates[places[(2 * np.arange(count) + 1) * len(places) // (2 * max(count, 1))]] = True
    if not validates.any():
        raise PermanentError("no class has two training images, so that none is left to choose a strength on")
    return np.flatnonzero(~validates), np.flatnonzero(validates)
