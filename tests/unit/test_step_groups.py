"""A linear evaluation that makes the features of several steps at once does the same steps."""

import numpy as np
import pytest
import torch

from frozen import judged_of
from runs import StopAfter, evaluate, evaluation, on_cpu, train
from selfsup.data.loader import Batches
from selfsup.evaluation import linear, step_groups
from selfsup.evaluation.step_groups import StepGroups, steps_together
from selfsup.methods import Method
from selfsup.models import initial_backbone
from selfsup.recipe import load_recipe, merge
from selfsup.training.health import Health
from selfsup.training.run import Run
from tiny import TINY

CPU = torch.device("cpu")
FURTHER = [{"peak_lr": 0.5, "initial_weights": 1}]


@pytest.fixture
def linear_of(tiny_store, monkeypatch):
    """Makes an evaluation of five steps an epoch, the last a short one, so many of them together."""
    recipe = merge(load_recipe("digits", TINY), {"linear": {"batch": 9, "drop_last": False, "further": FURTHER}})

    def make(together: int):
        monkeypatch.setattr(linear, "steps_together", lambda *_: together)
        encoder = initial_backbone(recipe, 0).eval().requires_grad_(False)
        return evaluation(encoder, tiny_store, recipe)

    return make


def figures(one, rows):
    return [[row["train_loss"], row["top1"], row["top5"]] for row in rows], one.further_rows


@pytest.mark.parametrize("together", [2, 3, 7])
def test_steps_together_are_the_steps_one_by_one(linear_of, tmp_path, together):
    """To 1e-5: a forward pass over another number of pictures sums in another order."""
    alone, grouped = linear_of(1), linear_of(together)
    (wanted, further), (found, others) = (
        figures(one, evaluate(one, tmp_path / str(number))) for number, one in enumerate((alone, grouped))
    )
    assert len(wanted) == alone.settings.epochs and alone.steps_per_epoch == 5
    assert np.array(found) == pytest.approx(np.array(wanted), rel=1e-5)
    assert others[0]["top1"] == further[0]["top1"]


def test_a_forward_pass_serves_all_steps_of_its_group(linear_of, tmp_path):
    one, seen = linear_of(3), []
    features, steps = one.features, []
    one.features = lambda pictures: seen.append(len(pictures)) or features(pictures)
    for group in range(2):
        steps += list(one.train_group(group, one.batches[group]))
    assert seen == [27, 9 + 7] and len(steps) == one.step == 5


@pytest.mark.parametrize("stopped_after", [1, 3, 5, 6])
def test_one_that_is_stopped_within_a_group_goes_on_to_the_bit(linear_of, tmp_path, stopped_after):
    whole = linear_of(3)
    wanted = figures(whole, evaluate(whole, tmp_path / "whole"))
    first = linear_of(3)
    rows = evaluate(first, tmp_path / "parts", StopAfter(stopped_after))
    assert not first.finished and first.step == stopped_after + 1
    second = linear_of(3)
    second.resume(tmp_path / "parts/partial")
    assert second.step == first.step
    assert figures(second, rows + evaluate(second, tmp_path / "parts")) == wanted


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_group_has_each_ranks_part_of_each_of_its_steps(tiny_store, world_size, drop_last):
    recipe = merge(load_recipe("digits", TINY), {"linear": {"batch": 10, "drop_last": drop_last}})
    for rank in range(world_size):
        given = {"seed": 3, "stage": "linear", "rank": rank, "world_size": world_size}
        singly = Batches(tiny_store.train, recipe, **given)
        groups = StepGroups(tiny_store.train, recipe, together=3, **given)
        done = []
        for group in range(groups.group_of(2 * singly.steps_per_epoch - 1) + 1):
            batch = groups[group]
            for part in groups.parts_of(group):
                alone = singly[part.step]
                assert np.array_equal(batch.indices[part.samples], alone.indices) and part.total == alone.total
                assert torch.equal(batch.labels[part.samples], alone.labels)
                for name in ("top", "left", "height", "width"):
                    drawn, wanted = (getattr(one.views[0], name, None) for one in (batch.draws, alone.draws))
                    assert wanted is None or np.array_equal(drawn[part.samples], wanted)
                done.append(part.step)
        assert done == list(range(2 * singly.steps_per_epoch))


def test_a_processor_computes_each_step_by_itself_and_a_gpu_small_pictures_together(tiny_store, monkeypatch):
    assert steps_together(tiny_store.train, CPU, 256, 32) == 1
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(step_groups, "fits_on", lambda device, split: True)
    assert steps_together(tiny_store.train, gpu, 256, 32) == 16
    assert steps_together(tiny_store.train, gpu, 128, 224) == 1
    monkeypatch.setattr(step_groups, "fits_on", lambda device, split: False)  # decoded by loader processes
    assert steps_together(tiny_store.train, gpu, 256, 32) == 1


@pytest.fixture
def trials(monkeypatch):
    """Whether cuDNN tries all plans, as a job on a GPU has it, at each call of what `watch` is put around."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []

    def watch(call):
        return lambda *given, **named: seen.append(torch.backends.cudnn.benchmark) or call(*given, **named)

    return seen, watch


def test_test_features_ask_cudnn_for_no_trials_and_those_of_all_steps_do(tiny_recipe, tiny_store, tmp_path, trials):
    seen, watch = trials
    judged = judged_of(tiny_recipe, tiny_store)
    one = evaluation(judged.encoder, tiny_store, tiny_recipe)
    judged.encoder.forward = watch(judged.encoder.forward)
    one.features = watch(one.features)
    evaluate(one, tmp_path)
    assert len(seen) > 2 and seen[0] is False and all(seen[1:]) and torch.backends.cudnn.benchmark


def test_health_asks_cudnn_for_no_trials(tiny_recipe, tiny_store, tmp_path, trials, monkeypatch):
    seen, watch = trials
    monkeypatch.setattr(Health, "_features", watch(Health._features))
    monkeypatch.setattr(Method, "health", watch(Method.health))
    run = Run(tiny_recipe, 0, 1, tiny_store, tmp_path, on_cpu(), 60)
    assert train(run, 2)
    assert len(seen) >= 2 and not any(seen) and torch.backends.cudnn.benchmark
