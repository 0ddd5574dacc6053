from types import SimpleNamespace

import numpy as np
import pytest
import torch

from frozen import PROTOCOLS, judged_of, plain_features, run, settings_of, task_of
from many_ranks import on_ranks
from runs import StopAfter, evaluate, on_cpu
from selfsup.data.store import PackedStore
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation import extraction
from selfsup.evaluation.logistic import split_by_class
from selfsup.evaluation.logistic_solver import ITERATIONS_AT_ONCE, Classifier, Problem, Solver


def objective(flat, x, y, strength, classes, scale=1.0):
    """The mean cross entropy and the penalty, and the gradient, in NumPy, float64. scale: of features, which x lacks,
    so that the weights found are those of the features times it."""
    both = flat.reshape(classes, -1)
    logits = x @ both[:, :-1].T + both[:, -1]
    logits -= logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    weights = both[:, :-1] / scale
    loss = -logs[np.arange(len(y)), y].mean() + strength / 2 * (weights**2).sum()
    errors = (np.exp(logs) - np.eye(classes)[y]) / len(y)
    slope = np.concatenate([errors.T @ x + strength * weights / scale, errors.sum(0)[:, None]], 1)
    return loss, slope.ravel()


def curvature(flat, x, strength, classes, scale=1.0):
    """The second derivatives of the objective, in NumPy, float64."""
    both = flat.reshape(classes, -1)
    logits = x @ both[:, :-1].T + both[:, -1]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    between = np.eye(classes) * shares[:, None] - shares[:, :, None] * shares[:, None]
    found = np.einsum("nij,na,nb->iajb", between, ones, ones, optimize=True).reshape(flat.size, flat.size) / len(x)
    penalty = np.tile(np.append(np.full(x.shape[1], strength) / np.square(scale), 0), classes)
    return found + np.diag(penalty)


def least(x, y, strength, classes, scale=1.0) -> tuple[np.ndarray, float]:
    """The optimum by Newton's steps, halved where they go too far, until they gain no more than rounding."""
    flat, told = np.zeros(classes * (x.shape[1] + 1)), (x, y, strength, classes, scale)
    for _ in range(200):
        value, slope = objective(flat, *told)
        step = np.linalg.lstsq(curvature(flat, x, strength, classes, scale), -slope, rcond=1e-15)[0]
        gain = -slope @ step
        if gain < 1e-15 * value:
            return flat.reshape(classes, -1), value
        length = 1.0
        while objective(flat + length * step, *told)[0] > value - 1e-4 * length * gain and length > 1e-10:
            length /= 2
        flat = flat + length * step
    raise AssertionError("no optimum found")


SCALE = 10 ** np.linspace(0, 3, 12)


def made(pictures=300, width=12, classes=4):
    """Features to be multiplied by SCALE, of classes that overlap: where they hardly do, and the penalty is small, the
    objective is so flat that the solver ends up to 4e-5 above its least value, once in fifty sets."""
    random = np.random.default_rng()
    y = random.integers(0, classes, pictures)
    x = random.normal(size=(classes, width))[y] + 2.5 * random.normal(size=(pictures, width)) + 3
    return x, y


def solved(x, y, strength, tolerance=1e-8, start=None) -> Solver:
    problem = Problem(torch.from_numpy((x * SCALE).astype(np.float32)), torch.from_numpy(y), 4)
    solver = Solver(problem, start or Classifier.zeros(4, 12, torch.device("cpu")), strength, tolerance)
    while not solver.advance():
        pass
    return solver


@pytest.mark.parametrize("strength", [1e5, 1.0, 1e-3, 1e-6])
def test_the_solver_reaches_the_optimum_whatever_the_scales_of_features(strength):
    """Within 1e-6 of it, relative, at the protocol's tolerance of 1e-8; features in float32 change it by 1e-7."""
    x, y = made()
    assert solved(x, y, strength).objective == pytest.approx(least(x, y, strength, 4, SCALE)[1], rel=1e-6)


def test_where_nothing_is_left_to_gain_the_solver_has_converged_though_it_tolerates_nothing():
    problem = Problem(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]), 2)  # of no gradient, without rounding
    assert Solver(problem, Classifier.zeros(2, 3, torch.device("cpu")), 1.0, tolerance=0.0).advance()


def test_the_solver_ends_with_the_iteration_that_is_allowed_last(monkeypatch):
    monkeypatch.setattr("selfsup.evaluation.logistic_solver.MOST_ITERATIONS", 2 * ITERATIONS_AT_ONCE)
    drawn = torch.Generator().manual_seed(1)
    features, labels = torch.randn(60, 12, generator=drawn), torch.randint(3, (60,), generator=drawn)
    start = Classifier.zeros(3, 12, torch.device("cpu"))
    solver = Solver(Problem(features, labels, 3), start, 1e-3, tolerance=0.0)
    assert [solver.advance(), solver.advance()] == [False, True] and solver.iterations == 2 * ITERATIONS_AT_ONCE


def test_ranks_that_wait_hold_no_features(tiny_recipe, tiny_store, monkeypatch):
    task = task_of("logistic", judged_of(tiny_recipe, tiny_store))
    task._features = SimpleNamespace(train=None)
    monkeypatch.setattr(type(task.compute.ranks), "is_main", False)
    places = np.arange(3)
    assert task._set(places) is None and task._problem(places) is None


def test_a_warm_start_ends_at_the_same_optimum():
    x, y = made()
    cold = solved(x, y, 1e-3, tolerance=1e-12)
    warm = solved(x, y, 1e-3, tolerance=1e-12, start=solved(x, y, 1e-2).classifier)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-10)


def test_the_evaluation_follows_a_restatement_of_its_protocol(tiny_recipe, tiny_store, tmp_path):
    """All objectives to 1e-7 relative, accuracies and the choice exactly."""
    task = run("logistic", judged_of(tiny_recipe, tiny_store), tmp_path)
    x, test = (plain_features(task.judged, one).double().numpy() for one in (tiny_store.train, tiny_store.test))
    y, truth = tiny_store.train.labels, tiny_store.test.labels
    train, validation = split_by_class(y, 0.2)
    strengths, accuracies = np.logspace(1, -3, 5), []
    assert [row["strength"] for row in task.rows] == pytest.approx(strengths.tolist())
    for strength, row in zip(strengths, task.rows, strict=True):
        both, value = least(x[train], y[train], strength, 3)
        assert row["objective"] == pytest.approx(value, rel=1e-7)
        predicted = (x[validation] @ both[:, :-1].T + both[:, -1]).argmax(1)
        accuracies.append(100 * (predicted == y[validation]).mean())
        assert row["validation_top1"] == pytest.approx(accuracies[-1])
    figures, best = task.figures(), strengths[np.argmax(accuracies)]
    assert (figures["strength"], figures["validation_top1"]) == (pytest.approx(best), pytest.approx(max(accuracies)))
    both, _ = least(x, y, best, 3)
    right = (test @ both[:, :-1].T + both[:, -1]).argmax(1) == truth
    assert figures["top1"] == pytest.approx(100 * right.mean()) and figures["top5"] == 100
    assert figures["mean_per_class"] == pytest.approx(100 * np.mean([right[truth == one].mean() for one in range(3)]))


@pytest.mark.parametrize("checks", [0, 6, 9, 14])
def test_an_evaluation_that_was_stopped_goes_on_to_the_same_bits(tiny_recipe, tiny_store, tmp_path, checks):
    """Stopped in the extraction, or at some strength, between two of its iterations too."""
    whole = run("logistic", judged_of(tiny_recipe, tiny_store), tmp_path / "whole")
    stopped = task_of("logistic", judged_of(tiny_recipe, tiny_store))
    evaluate(stopped, tmp_path / "parts", StopAfter(checks))
    assert not stopped.finished
    continued = task_of("logistic", judged_of(tiny_recipe, tiny_store))
    continued.resume(tmp_path / "parts" / "partial")
    assert continued.step == stopped.step
    evaluate(continued, tmp_path / "parts")
    assert continued.rows == whole.rows and continued.figures() == whole.figures()
    assert torch.equal(continued._last.weight, whole._last.weight)


def on_some(ranks, folder, recipe, store):
    extraction.CHUNK, extraction.BATCH = 16, 8
    judged = judged_of(recipe, PackedStore(store), compute=on_cpu(ranks, threads=1))
    task = run("logistic", judged, folder)
    return task.rows, task.figures()


def test_rows_and_figures_are_the_same_on_1_and_2_ranks_and_on_each_rank(tiny_recipe, tiny_store, tmp_path):
    found = [on_ranks(on_some, size, tmp_path / str(size), tiny_recipe, tiny_store.folder) for size in (1, 2)]
    assert found[0][0] == found[1][0] == found[1][1]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_each_class_validates_by_the_same_share_spread_over_it(share):
    labels = np.random.default_rng().permutation(np.repeat([0, 1, 2], [1, 20, 333]))
    train, validation = split_by_class(labels, share)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert np.bincount(labels[validation], minlength=3).tolist() == [0, round(20 * share), round(333 * share)]
    places = np.flatnonzero(np.isin(np.flatnonzero(labels == 2), validation))
    assert set(np.diff(places)) <= {int(1 / share), int(1 / share) + 1}
    assert all(
        (one == other).all() for one, other in zip((train, validation), split_by_class(labels, share), strict=True)
    )


def test_what_cannot_be_chosen_on_is_refused():
    with pytest.raises(PermanentError, match="no class has two"):
        split_by_class(np.arange(5), 0.1)
    with pytest.raises(UserError, match="wanted the smaller strength first"):
        settings_of("logistic", range=[10.0, 1.0])
    with pytest.raises(PermanentError, match="features are not finite"):
        Problem(torch.tensor([[float("inf")]]), torch.tensor([0]), 1)


def test_the_grid_is_that_of_the_papers():
    protocol = settings_of("logistic", **{**PROTOCOLS["logistic"], "range": [1e-6, 1e5], "strengths": 45})
    np.testing.assert_allclose(protocol.grid, np.logspace(-6, 5, 45)[::-1], rtol=1e-12)
    assert "45 strengths from 1e-06 to 100000" in protocol.protocol({})
