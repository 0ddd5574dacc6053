"""Logistic regression of pictures of several classes."""

import shutil

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from frozen import judged_of, plain_features, run
from runs import StopAfter
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.evaluation.logistic_solver import Classifier
from selfsup.evaluation.one_against_rest import ProblemOfEach, SolverOfEach


def objective(flat, x, y, strength):
    """The mean of log(1 + exp(-margin)) and strength / 4 of the squared weights, with the gradient, in float64."""
    weight, bias = flat[:-1], flat[-1]
    sign = 2 * y - 1
    margins = sign * (x @ weight + bias)
    errors = -sign / (1 + np.exp(margins)) / len(y)
    loss = np.logaddexp(0, -margins).mean() + strength / 4 * (weight**2).sum()
    return loss, np.append(x.T @ errors + strength / 2 * weight, errors.sum())


def least(x, y, strength) -> tuple[np.ndarray, float]:
    """The optimum by SciPy, tightly."""
    options = {"maxiter": 20000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}
    found = minimize(
        objective, np.zeros(x.shape[1] + 1), (x, y, strength), jac=True, method="L-BFGS-B", options=options
    )
    return found.x, found.fun


def restated_map(scores, targets) -> float:
    """The mean over classes of the mean over 11 recalls of the best precision there or further on."""
    found = []
    for score, target in zip(scores.T, targets.T, strict=True):
        score, right = score[target >= 0], target[target >= 0] == 1
        right = right[np.argsort(-score, kind="stable")]
        hits = np.cumsum(right)
        precision, recall = hits / np.arange(1, len(right) + 1), hits / right.sum()
        tops = [max(precision[recall >= tenth / 10 - 1e-9], default=0) for tenth in range(11)]
        found.append(np.mean(tops))
    return 100 * np.mean(found)


@pytest.mark.parametrize("strength", [10.0, 1e-2, 1e-4])
def test_each_class_reaches_the_optimum_of_its_own_problem(strength):
    """Objectives within 1e-7, relative, and weights within 1e-3 of the largest, at a tolerance of 1e-10."""
    random = np.random.default_rng()
    x = random.normal(size=(200, 6)).astype(np.float32)
    labels = ((x @ random.normal(size=(6, 3)) + random.normal(size=(200, 3))) > 0.5).astype(np.int64)
    labels[random.random(labels.shape) < 0.1] = -1
    problem = ProblemOfEach(torch.from_numpy(x), torch.from_numpy(labels), 3)
    solver = SolverOfEach(problem, Classifier.zeros(3, 6, torch.device("cpu")), strength, 1e-10)
    while not solver.advance():
        pass
    found, sums = solver.classifier, []
    for one in range(3):
        counts = labels[:, one] >= 0
        wanted, value = least(x[counts].astype(np.float64), labels[counts, one], strength)
        sums.append(value)
        ours = torch.cat([found.weight[one], found.bias[one : one + 1]]).numpy()
        assert np.abs(ours - wanted).max() <= 1e-3 * np.abs(wanted).max()
    assert solver.objective == pytest.approx(np.mean(sums), rel=1e-7)


@pytest.fixture
def several(tmp_path) -> PackedStore:
    """Pictures whose brightness in a channel says of which of three classes they are, the last ten for validation."""
    random = np.random.default_rng(3)
    writer = StoreWriter(tmp_path / "store", ["ant", "bee", "cat"])
    for split, count in {"train": 60, "test": 40}.items():
        of = random.integers(0, 2, (count, 3))
        means = 90 + 60 * of[:, :, None, None]
        pictures = np.clip(means + random.normal(0, 40, (count, 3, 12, 10)), 0, 255).astype(np.uint8)
        of[random.random(of.shape) < 0.1] = -1
        writer.write_raw(split, pictures, of)
    writer.note(multi_label=True, measure="11-point mAP", validation=10)
    writer.finish()
    return PackedStore(tmp_path / "store")


def test_the_strength_is_chosen_by_mean_average_precision_and_the_test_set_judged_by_it(tiny_recipe, several, tmp_path):
    judged = judged_of(tiny_recipe, several)
    task = run("logistic", judged, tmp_path / "logistic")
    train, test = (plain_features(judged, split).double().numpy() for split in (several.train, several.test))
    figures = []
    for row in task.rows:
        fits = [fit(train[:50], several.train.labels[:50], one, row["strength"]) for one in range(3)]
        scores = np.stack([train[50:] @ weights[:-1] + weights[-1] for weights in fits], 1)
        assert row["validation_map"] == pytest.approx(restated_map(scores, several.train.labels[50:]), abs=1e-6)
        figures.append(row["validation_map"])
    found = task.figures()
    assert found["validation_map"] == max(figures) and found["n_validation"] == 10 and "top1" not in found
    fits = [fit(train, several.train.labels, one, found["strength"]) for one in range(3)]
    scores = np.stack([test @ weights[:-1] + weights[-1] for weights in fits], 1)
    assert found["mean_average_precision"] == pytest.approx(restated_map(scores, several.test.labels), abs=1e-6)


def fit(x, labels, one, strength) -> np.ndarray:
    counts = labels[:, one] >= 0
    return least(x[counts], labels[counts, one], strength)[0]


def test_a_stopped_one_continues_to_the_same_figures(tiny_recipe, several, tmp_path):
    judged = judged_of(tiny_recipe, several)
    whole = run("logistic", judged, tmp_path / "whole")
    for checks in (3, 9, 12):
        stopped = run("logistic", judged, tmp_path / "stopped", stop=StopAfter(checks))
    task = run("logistic", judged, tmp_path / "stopped")
    assert not stopped.finished and task.finished
    assert task.figures() == whole.figures() and task.rows == whole.rows


def test_a_class_without_pictures_is_left_out(tiny_recipe, several, tmp_path):
    """In training, where it has no least value, and in what is judged."""
    folder = tmp_path / "rare"
    shutil.copytree(several.folder, folder)
    for split in ("train", "test"):
        labels = np.load(folder / f"{split}_labels.npy")
        labels[:, 1] = 0
        np.save(folder / f"{split}_labels.npy", labels)
    task = run("logistic", judged_of(tiny_recipe, PackedStore(folder)), tmp_path / "logistic")
    whole = run("logistic", judged_of(tiny_recipe, several), tmp_path / "whole")
    assert all(row["iterations"] < 1000 and row["validation_map"] >= 0 for row in task.rows)
    assert task.rows[0]["objective"] != whole.rows[0]["objective"] and task.figures()["mean_average_precision"] > 0


def test_an_evaluation_saves_a_state_whenever_that_is_due(tiny_recipe, several, tmp_path, monkeypatch):
    from selfsup.engine.saving import Decision, Saver

    decide = Saver.decide
    monkeypatch.setattr(Saver, "decide", lambda self: Decision(max(decide(self), Decision.SAVE)))
    assert run("logistic", judged_of(tiny_recipe, several), tmp_path / "logistic").finished
