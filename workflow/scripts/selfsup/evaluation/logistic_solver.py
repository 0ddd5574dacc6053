"""Multinomial logistic regression with an l2 penalty, solved in float64 by torch's L-BFGS.

    minimise  mean over pictures of the cross entropy  +  strength / 2 * sum of the squared weights

The biases are not penalised. L-BFGS works in coordinates in which the curvature at its start is about that of a sphere:
features of networks differ so much in scale that without them it takes hundreds of iterations, and with them tens.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from selfsup.errors import PermanentError

# Pictures whose features are widened to float64 at a time: on a processor few enough for its cache.
AT_ONCE = {"cpu": 1024, "cuda": 65536}
ITERATIONS_AT_ONCE = 5
HISTORY = 20  # pairs of steps and gradients that L-BFGS keeps
MOST_ITERATIONS = 5000


@dataclass(frozen=True)
class Classifier:
    """weight: float64 [classes, D]. bias: float64 [classes]."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def zeros(cls, classes: int, features: int, device: torch.device) -> "Classifier":
        zeros = torch.zeros(classes, features + 1, dtype=torch.float64, device=device)
        return cls(zeros[:, :-1], zeros[:, -1])

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return float64 [N, classes] of features of any precision, [N, D]."""
        size = AT_ONCE[features.device.type]
        parts = [torch.addmm(self.bias, part.double(), self.weight.T) for part in features.split(size)]
        return torch.cat([*parts, self.bias.new_empty(0, len(self.bias))])


class Problem:
    """The objective of one set of pictures."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int):
        """features: float32 [N, D]; labels: int64 [N], there too. Raises PermanentError for features not finite."""
        if not torch.isfinite(features).all():
            raise PermanentError("the encoder's features are not finite: look at its training, or keep them in float32")
        self.features, self.labels, self.classes = features, labels, classes
        self.centre = features.mean(dim=0, dtype=torch.float64)
        self._size = AT_ONCE[features.device.type]

    def _parts(self) -> zip:
        return zip(self.features.split(self._size), self.labels.split(self._size), strict=True)

    def objective(self, of: Classifier, strength: float) -> tuple[float, Classifier]:
        """Return the objective and its gradient."""
        weight, bias = torch.zeros_like(of.weight), torch.zeros_like(of.bias)
        loss = weight.new_zeros(())
        for features, labels in self._parts():
            wide = features.double()
            logs = F.log_softmax(torch.addmm(of.bias, wide, of.weight.T), dim=1)
            loss -= logs.gather(1, labels[:, None]).sum()
            errors = logs.exp_()
            errors[torch.arange(len(labels), device=labels.device), labels] -= 1
            weight += errors.T @ wide
            bias += errors.sum(dim=0)
        count, penalty = len(self.features), strength / 2 * of.weight.square().sum()
        return float(loss / count + penalty), Classifier(weight / count + strength * of.weight, bias / count)

    def curvature(self, at: Classifier) -> tuple[torch.Tensor, float]:
        """Return the second derivatives of the mean cross entropy, those of a weight and of a bias, mean over classes.

        float64 [D, D], of centred features, and a number. Computed in float32: they only choose coordinates.
        """
        rows = self.features.new_zeros(self.features.shape[1], self.features.shape[1])
        total, (weight, bias, centre) = 0.0, (one.float() for one in (at.weight, at.bias, self.centre))
        for features in self.features.split(8 * self._size):
            shares = torch.addmm(bias, features, weight.T).softmax(dim=1)
            own = (shares * (1 - shares)).sum(dim=1) / max(self.classes - 1, 1)
            scaled = (features - centre) * own.sqrt()[:, None]
            rows.addmm_(scaled.T, scaled)
            total += float(own.sum())
        return rows.double() / len(self.features), total / len(self.features)


class Solver:
    """L-BFGS on a problem from a start, `ITERATIONS_AT_ONCE` iterations at a time."""

    def __init__(self, problem: Problem, start: Classifier, strength: float, tolerance: float):
        """tolerance: relative to the objective. Iterations end when so many of them gain less, and the gradient, too,
        says that less is left."""
        self._problem, self._strength, self._tolerance = problem, strength, tolerance
        curvature, of_bias = problem.curvature(start)
        values, self._axes = torch.linalg.eigh(curvature)
        self._scale = (values.clamp_min(0) + strength).rsqrt()
        self._bias_scale = max(of_bias, torch.finfo(torch.float64).eps) ** -0.5
        self._position = self._inward(start).requires_grad_()
        self._optimizer = torch.optim.LBFGS(
            [self._position],
            lr=1,
            max_iter=ITERATIONS_AT_ONCE,
            history_size=HISTORY,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        self._known: tuple[torch.Tensor, float] | None = None  # the last point, so that none is computed twice
        self.objective = float(self._closure())

    @property
    def iterations(self) -> int:
        """How many it has done."""
        return self._optimizer.state[self._position]["n_iter"]

    def advance(self) -> bool:
        """Do a few iterations; return whether it has converged."""
        before = self.objective
        self._optimizer.step(self._closure)
        self.objective = float(self._closure())
        least = self._tolerance * self.objective
        left = float(self._position.grad.square().sum()) / 2
        return (before - self.objective <= least and left <= least) or self.iterations >= MOST_ITERATIONS

    @property
    @torch.no_grad()
    def classifier(self) -> Classifier:
        """Where it is."""
        position = self._position
        weight = position[:, :-1] * self._scale @ self._axes.T
        # Biases are of centred features inside, which keeps them apart from the weights.
        return Classifier(weight, position[:, -1] * self._bias_scale - weight @ self._problem.centre)

    def _inward(self, one: Classifier) -> torch.Tensor:
        bias = (one.bias + one.weight @ self._problem.centre) / self._bias_scale
        return torch.cat([one.weight @ self._axes / self._scale, bias[:, None]], dim=1)

    def _closure(self) -> torch.Tensor:
        if self._known is None or not torch.equal(self._known[0], self._position):
            value, slope = self._problem.objective(self.classifier, self._strength)
            weight = slope.weight - slope.bias[:, None] * self._problem.centre
            inner = [weight @ self._axes * self._scale, slope.bias[:, None] * self._bias_scale]
            self._position.grad = torch.cat(inner, dim=1)
            self._known = self._position.detach().clone(), value
        return torch.tensor(self._known[1], dtype=torch.float64)
