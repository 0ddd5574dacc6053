"""Logistic regression where a picture may be of several classes: a classifier of each class against the rest.

Each is a problem of two classes, and its own minimum; pictures that count as neither, -1, are left out of it. The
penalty is as for several classes, strength / 2 times the squared weights of both sides, which are equal but for the
sign: strength / 4 times those of their difference, which is the classifier.
"""

import torch

from selfsup.evaluation.logistic_solver import Classifier, Problem, Solver


class ProblemOfEach:
    """The problems of one set of pictures, by class."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int):
        """features: float32 [N, D]; labels: int64 [N, classes], 1, 0 or -1, on the same device."""
        self.problems = [_against_rest(features, labels[:, one]) for one in range(classes)]


def _against_rest(features: torch.Tensor, label: torch.Tensor) -> Problem | None:
    """Return a class's problem; None where its pictures are all of it or none is, which has no least value."""
    counts = label >= 0
    if len(label[counts].unique()) < 2:
        return None
    return Problem(features if counts.all() else features[counts], label[counts], 2)


class SolverOfEach:
    """Solves them one after the other, with what a `Solver` has."""

    def __init__(self, problem: ProblemOfEach, start: Classifier, strength: float, tolerance: float):
        """start: float64 [classes, D] and [classes], whose logits are positive for a picture of the class."""
        self._problems, self._start, self._how = problem.problems, start, (strength, tolerance)
        self._weights, self._biases = [], []
        self.iterations, self._objectives = 0, []
        self._now = self._solver()

    def advance(self) -> bool:
        """Do a few iterations of one class; return whether all have converged."""
        if self._now is None:
            self._weights.append(torch.zeros_like(self._start.weight[0]))
            self._biases.append(torch.zeros_like(self._start.bias[0]))
        elif self._now.advance():
            self._take(self._now)
        else:
            return False
        if len(self._weights) == len(self._problems):
            return True
        self._now = self._solver()
        return False

    def _take(self, done: Solver) -> None:
        found = done.classifier
        self._weights.append(found.weight[1] - found.weight[0])
        self._biases.append(found.bias[1] - found.bias[0])
        self._objectives.append(done.objective)
        self.iterations += done.iterations

    @property
    def objective(self) -> float:
        """The mean over classes that have a problem, once converged."""
        return sum(self._objectives) / max(len(self._objectives), 1)

    @property
    def classifier(self) -> Classifier:
        """One row a class, once converged."""
        return Classifier(torch.stack(self._weights), torch.stack(self._biases))

    def _solver(self) -> Solver | None:
        if self._problems[len(self._weights)] is None:
            return None
        one, half = len(self._weights), torch.tensor([-0.5, 0.5], dtype=torch.float64, device=self._start.bias.device)
        start = Classifier(half[:, None] * self._start.weight[one], half * self._start.bias[one])
        return Solver(self._problems[one], start, *self._how)
