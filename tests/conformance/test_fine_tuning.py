"""Fine-tuning against a plain restatement; which images it uses; stops; ranks."""

import copy
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from many_ranks import on_ranks
from runs import TINY_TUNING, StopAfter, evaluate, fine_tuning, on_cpu, untimed
from selfsup.engine.distributed import Ranks
from selfsup.errors import PermanentError, UserError
from selfsup.evaluation.fine_tune_settings import FineTuneSettings, Point
from selfsup.evaluation.subsets import LabelledImages, balanced_order
from selfsup.evaluation.supervised import SupervisedTraining
from selfsup.models import BatchNorm, initial_backbone
from selfsup.recipe import load_recipe
from tiny import DROPPING_VIT, TINY

DECAYED = {"weight_decays": [1e-4, 3e-4], "decay_over_lr": True, "batch_norm_momentum": "by_steps", "unit": "steps"}


def frozen(recipe) -> nn.Module:
    return initial_backbone(recipe, 0).eval().requires_grad_(False)


def with_torchs_batch_norms(network: nn.Module, momentum: float) -> nn.Module:
    """A copy with torch's own batch norms, in train mode."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, BatchNorm):
                plain = nn.BatchNorm2d(child.num_features, eps=child.eps, momentum=momentum).double()
                plain.load_state_dict(child.state_dict())
                setattr(module, name, plain)
    return network.requires_grad_(True).train()


@pytest.mark.parametrize("changes", [{}, {**DECAYED, "lengths": [20]}], ids=["few_labels", "fine_tune"])
def test_twenty_steps_are_those_of_a_plain_restatement(tiny_store, tiny_recipe, changes):
    """torch's batch norm, SGD written out; float64, weights and running statistics to 1e-10 of a tensor's largest."""
    settings = FineTuneSettings(**{**TINY_TUNING, "lengths": [10], **changes})
    task = fine_tuning(frozen(tiny_recipe).double(), tiny_store, tiny_recipe, settings)
    images, head = np.arange(5, 21), task.initial_classifier().double()
    point = settings.grid[0]
    decay = 1e-4 / 0.02 if changes else 0
    assert point == Point(0.02, decay, settings.lengths[0])
    restated = nn.Sequential(with_torchs_batch_norms(task.judged.encoder, 0.1), copy.deepcopy(head))
    training = SupervisedTraining(task.judged, settings, point, images, head=head)
    assert (training.steps_per_epoch, training.total_steps) == (2, 20)
    parameters = list(restated.parameters())
    buffers = [torch.zeros_like(one) for one in parameters]
    for step in range(20):
        batch = training.batches[step]
        assert set(batch.indices) <= set(images)
        pictures = task._make_views(batch)[0].double()
        share = training.train_step(batch, lambda _, pictures=pictures: [pictures])
        loss = F.cross_entropy(restated(pictures), batch.labels)
        gradients = torch.autograd.grad(loss, parameters)
        assert share.item() == pytest.approx(loss.item(), rel=1e-10)
        rate = 0.02 * (1 + np.cos(np.pi * step / 20)) / 2
        with torch.no_grad():
            for one, gradient, buffer in zip(parameters, gradients, buffers, strict=True):
                decayed = gradient + decay * one
                buffer.mul_(0.9).add_(decayed)
                one -= rate * (decayed + 0.9 * buffer)
    for (name, ours), theirs in zip(training.network.state_dict().items(), restated.state_dict().values(), strict=True):
        error = (ours - theirs).abs().max().item()
        assert error <= 1e-10 * max(theirs.abs().max().item(), 1e-3), name


@pytest.mark.parametrize(("steps", "momentum"), [(2, 0.1), (100, 0.1), (200, 0.05)])
def test_the_momentum_of_batch_norms_follows_the_steps_of_an_epoch(
    tiny_store, tiny_recipe, monkeypatch, steps, momentum
):
    """A decay of max(1 - 10 / s, 0.9): Grill et al. 2020, D.3."""
    from selfsup.data.loader import Batches

    task = fine_tuning(frozen(tiny_recipe), tiny_store, tiny_recipe, {"batch_norm_momentum": "by_steps"})
    opened = SupervisedTraining._opened

    def with_steps(self, judged, images) -> Batches:
        batches = opened(self, judged, images)
        batches.steps_per_epoch = steps
        return batches

    monkeypatch.setattr(SupervisedTraining, "_opened", with_steps)
    norms = [one for one in task._begun().network.modules() if isinstance(one, BatchNorm)]
    assert norms and all(one.momentum == pytest.approx(momentum) for one in norms)


def test_beginnings_of_the_order_are_balanced_nested_and_drawn_by_the_seed():
    random = np.random.default_rng()
    labels = random.permutation(np.repeat(np.arange(5), [40, 60, 60, 7, 60]))
    order = balanced_order(labels, 3)
    assert sorted(order) == list(range(len(labels)))
    for count in (1, 4, 5, 23, 35, 100, 190):
        found = Counter(labels[order[:count]].tolist())
        available = Counter(labels.tolist())
        most = max(found.values())
        assert all(found[one] >= min(most - 1, available[one]) for one in available), count
    assert np.array_equal(order, balanced_order(labels, 3))
    assert not np.array_equal(order, balanced_order(labels, 4))


def test_one_percent_of_imagenets_numbers_is_part_of_ten_percent_and_as_large_as_the_published_lists():
    labels = np.arange(1_281_167) % 1000
    settings = FineTuneSettings(**{**TINY_TUNING, "held_out": 10009, "held_out_of": "rest"})
    one, ten = (LabelledImages.of(labels, settings.changed(labels=float(share))) for share in (1, 10))
    assert (len(one.share), len(ten.share), len(one.held_out)) == (12811, 128116, 10009)
    assert set(one.share) <= set(ten.share) and set(np.bincount(labels[one.share])) == {12, 13}
    assert not set(one.share) & set(one.held_out) and np.array_equal(one.tried, one.share)


def test_images_that_choose_train_no_trial_and_train_the_chosen_point_where_they_are_of_the_share():
    labels = np.random.default_rng().integers(0, 4, 200)
    found = LabelledImages.of(labels, FineTuneSettings(**{**TINY_TUNING, "labels": 50, "held_out": 0.1}))
    assert (len(found.share), len(found.tried), len(found.held_out)) == (100, 80, 20)
    assert sorted([*found.tried, *found.held_out]) == sorted(found.share)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": 3}, "labels is 3 % of 43 training images, which is 1; wanted at least 2 beside the 8 held out"),
        ({"labels": 90, "held_out_of": "rest"}, "held_out is 8, but only 5 of 43"),
        ({"held_out": 0.01}, "held_out is 0.01 of 43 training images, which is none"),
        ({"held_out": 0}, "held_out is 0, but the grid has several points"),
        ({"held_out": 2.5}, "held_out is 2.5, wanted a share below 1 or a whole number"),
        ({"labels": 100, "held_out_of": "rest"}, "held_out_of is rest, but labels is 100"),
        ({"lr_floor": 1}, "lr_floor is 1.0, above 0.02 of peak_lrs"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(tiny_store, tiny_recipe, changes, words):
    with pytest.raises(UserError, match=words):
        fine_tuning(frozen(tiny_recipe), tiny_store, tiny_recipe, changes)


class Recorder:
    """A test split that notes how far a task is when a picture of it is looked at."""

    def __init__(self, split, labels):
        self._split, self.labels, self.task, self.seen = split, labels, None, []

    def __len__(self) -> int:
        return len(self._split)

    def image(self, index: int) -> torch.Tensor:
        self.seen.append((len(self.task._found), int(index)))
        return self._split.image(index)


def test_the_test_set_is_looked_at_once_after_the_choice_and_does_not_touch_it(tiny_store, tiny_recipe, tmp_path):
    found = []
    for number, labels in enumerate((tiny_store.test.labels, (tiny_store.test.labels + 1) % 3)):
        test = Recorder(tiny_store.test, labels)
        store = SimpleNamespace(
            measure="top-1", train=tiny_store.train, test=test, classes=tiny_store.classes, folder=None
        )
        test.task = task = fine_tuning(frozen(tiny_recipe), store, tiny_recipe)
        rows = evaluate(task, tmp_path / str(number))
        assert test.seen == [(4, index) for index in range(19)]
        found.append(([row for row in rows if "top1" not in row], task.further_rows, task.chosen, task.figures()))
    (rows, points, chosen, figures), (others, *other_choice, other_figures) = found
    assert untimed(rows) == untimed(others) and [points, chosen] == other_choice
    assert figures["validation_top1"] == other_figures["validation_top1"]
    assert figures["validation_top1"] == max(point["validation_top1"] for point in points) and len(points) == 4
    assert (figures["n_labelled"], figures["n_held_out"]) == (25, 8)


def test_the_first_of_the_best_points_is_chosen_and_a_diverged_one_never(tiny_store, tiny_recipe):
    task = fine_tuning(frozen(tiny_recipe), tiny_store, tiny_recipe)
    task._found = [{"top1": top1} for top1 in (float("nan"), 30.0, 40.0, 40.0)]
    assert task.chosen == task.settings.grid[2] == Point(0.02, 0.0, 2)
    task._found = [{"top1": float("nan")}] * 4
    with pytest.raises(PermanentError, match="all 4 trainings have diverged"):
        _ = task.chosen


def test_a_single_point_is_trained_once_on_all_its_images(tiny_store, tiny_recipe, tmp_path):
    single = {"lengths": [1], "peak_lrs": [0.02], "held_out": 0}
    task = fine_tuning(frozen(tiny_recipe), tiny_store, tiny_recipe, single)
    rows = evaluate(task, tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3] and task.total_steps == 4 and task.further_rows == []
    assert task.figures()["validation_top1"] is None


# Stops in mid-training, at its end, before and after a measurement, in the last training, before the test.
@pytest.mark.parametrize("checks", [1, 2, 3, 4, 8, 16, 19])
def test_a_fine_tuning_that_was_stopped_and_continued_equals_an_uninterrupted_one(
    tiny_store, tiny_recipe, tmp_path, checks, uninterrupted
):
    encoder = frozen(tiny_recipe)
    stopped = fine_tuning(encoder, tiny_store, tiny_recipe)
    evaluate(stopped, tmp_path, StopAfter(checks - 1), minutes=1e-9)
    assert not stopped.finished and stopped.step > 0
    continued = fine_tuning(encoder, tiny_store, tiny_recipe)
    assert continued.resume(tmp_path / "partial").name == f"step_{stopped.step:09d}.pt"
    evaluate(continued, tmp_path)
    assert continued.finished and continued.step == uninterrupted.step
    assert untimed(continued.rows) == untimed(uninterrupted.rows)
    assert continued.further_rows == uninterrupted.further_rows and continued.figures() == uninterrupted.figures()


@pytest.fixture(scope="module")
def uninterrupted(tiny_store, tmp_path_factory):
    recipe = load_recipe("digits", TINY)
    task = fine_tuning(frozen(recipe), tiny_store, recipe)
    evaluate(task, tmp_path_factory.mktemp("whole"))
    return task


def test_a_network_that_drops_branches_goes_on_with_the_same_bits_in_bf16(tiny_store, tmp_path):
    recipe, compute = load_recipe("digits", DROPPING_VIT), on_cpu(precision="bf16", threads=1)
    encoder, changes = frozen(recipe), {"lengths": [2], "peak_lrs": [0.01], "held_out": 0}
    whole, stopped, continued = (fine_tuning(encoder, tiny_store, recipe, changes, compute=compute) for _ in range(3))
    evaluate(whole, tmp_path / "whole")
    evaluate(stopped, tmp_path / "parts", StopAfter(2))
    torch.rand(7)  # another process would be elsewhere in torch's own random numbers
    continued.resume(tmp_path / "parts" / "partial")
    evaluate(continued, tmp_path / "parts")
    assert untimed(continued.rows) == untimed(whole.rows) and 0 < stopped.step < whole.step


def test_the_encoder_stays_as_it_is(tiny_store, tiny_recipe, tmp_path):
    encoder = frozen(tiny_recipe)
    before = copy.deepcopy(encoder.state_dict())
    evaluate(fine_tuning(encoder, tiny_store, tiny_recipe, {"lengths": [1]}), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(one.requires_grad for one in encoder.parameters())


def _tuned(ranks: Ranks, store, folder, changes) -> tuple:
    recipe = load_recipe("digits", TINY)
    task = fine_tuning(frozen(recipe), store, recipe, changes, compute=on_cpu(ranks, threads=1))
    evaluate(task, folder / f"{ranks.size}")
    return untimed(task.rows), task.figures()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_fine_tune_as_one_does(tiny_store, tmp_path, size):
    """Losses to 1e-4, float32: sums are of other orders, and each step carries them on. The figures are the same."""
    changes = {"peak_lrs": [0.005, 0.01], "lengths": [1]}
    rows, figures = _tuned(Ranks(), tiny_store, tmp_path, changes)
    found = on_ranks(_tuned, size, tiny_store, tmp_path, changes)
    assert all(other == found[0] for other in found)
    for row, other in zip(rows, found[0][0], strict=True):
        assert other == {**row, "train_loss": pytest.approx(row["train_loss"], rel=1e-4)}
    assert found[0][1] == figures


def _shared(ranks: Ranks, store) -> list:
    recipe = load_recipe("digits", TINY)
    changes = {"batch_norm_statistics": "each_device"}
    training = fine_tuning(frozen(recipe), store, recipe, changes, compute=on_cpu(ranks, threads=1))._begun()
    for step in range(2):
        training.network.encoder.bn1.running_mean += ranks.rank + step
    own = training.network.encoder.bn1.running_mean.tolist()
    training.share_running_statistics()
    return own, training.network.encoder.bn1.running_mean.tolist()


def test_all_devices_judge_by_the_running_statistics_of_the_first(tiny_store):
    """A resumed training has those of the first on all."""
    (first, first_shared), (second, second_shared) = on_ranks(_shared, 2, tiny_store)
    assert first != second and first_shared == second_shared == first


def test_of_statistics_of_each_device_the_number_of_devices_matters(tiny_store, tmp_path):
    changes = {"batch_norm_statistics": "each_device", "lengths": [1]}
    first, second = on_ranks(_tuned, 2, tiny_store, tmp_path, changes)
    assert first == second
    alone = _tuned(Ranks(), tiny_store, tmp_path, changes)
    assert first[0][0]["train_loss"] != pytest.approx(alone[0][0]["train_loss"], rel=1e-3)


def test_a_batch_that_leaves_a_device_with_one_image_is_refused(tiny_store, tiny_recipe):
    task = fine_tuning(frozen(tiny_recipe), tiny_store, tiny_recipe)
    task.judged.compute.ranks.size = 5
    with pytest.raises(PermanentError, match="a batch has 8 images, fewer than two for each of 5 devices"):
        task._begun()
