"""Benchmarks compare like with like, and count what they say they count."""

import argparse
import json
import sys

import measuring
import pytest
import torch
from our_byol import OurStep, loops_over_parameters, two_forwards
from pictures import small_store
from plain_byol import PlainBYOL
from roofline import Peaks, extended, kept_for_backward, kernels_of, roofline_sum, total

from runs import on_cpu
from selfsup.recipe import load_recipe

CPU = torch.device("cpu")


@pytest.fixture
def cifar_step(tmp_path):
    """Returns a step of CIFAR-10's recipe on so many pictures, changed as asked, of a network that may be narrow."""
    store = small_store(tmp_path / "store", 20)

    def make(batch: int = 2, change=None, width: int = 64) -> OurStep:
        changes = {"global_batch": batch, "model": {"width": width}}
        recipe = load_recipe("cifar10", {**changes, "optimizer": {"warmup_epochs": 0, "peak_lr": 0.1}})
        step = OurStep(store, recipe, on_cpu(), tmp_path)
        if change:
            change(step)
        return step

    return make


def peers() -> list[type[PlainBYOL]]:
    try:
        from lightly_byol import LightlyBYOL
    except ImportError:
        return [PlainBYOL]
    return [PlainBYOL, LightlyBYOL]


def test_ways_take_turns_and_the_first_round_does_not_count():
    calls = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or float(len(calls))}
    taken = measuring.in_turn(ways, rounds=2)
    assert calls == ["a", "b"] * 3
    assert taken["b"].walls == [4.0, 6.0]  # what a way says of itself counts
    assert len(taken["a"].walls) == 2


def test_a_ratio_compares_neighbours_in_time():
    slow, fast = measuring.Taken([2.0, 20.0, 4.0]), measuring.Taken([1.0, 10.0, 1.0])
    assert measuring.ratio(slow, fast) == 2.0
    assert measuring.spread(slow, fast) == (2.0, 4.0)


def test_peak_memory_sees_what_was_held_and_let_go():
    memory = measuring.PeakMemory(CPU)
    memory.reset()
    torch.ones(2**24).sum()  # 64 MB
    assert memory.bytes() > 60e6


def test_a_report_keeps_what_was_measured_before_an_error(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--json", str(path), "--device", "cpu"])
    with pytest.raises(ZeroDivisionError), measuring.report("one", argparse.ArgumentParser()) as (report, _):
        report.say("two and two", sum=4)
        report.say(f"{1 / 0}")
    content = json.loads(path.read_text())
    assert content["figures"] == {"sum": 4} and content["text"][-1] == "two and two"
    assert content["machine"]["cores"] >= 1 and content["machine"]["torch"] == torch.__version__.split("+")[0]


def test_a_product_is_counted_with_its_backward_pass():
    one, other = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    products = [kernel for kernel in kernels_of(lambda: (one @ other).backward(torch.ones(5, 3))) if kernel.flops]
    assert [kernel.flops for kernel in products] == [2 * 5 * 7 * 3] * 3
    assert products[0].bytes == 4 * (5 * 7 + 7 * 3 + 5 * 3)


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_weights():
    layer, x = torch.nn.Linear(7, 3), torch.randn(5, 7)
    step = lambda: (layer(x).relu() + layer(x).exp()).sum().backward()  # noqa: E731
    # x, kept twice, is one storage; relu and exp keep their results.
    assert kept_for_backward(step, layer.parameters()) == 4 * (5 * 7 + 2 * 5 * 3)


def test_views_move_nothing_and_a_change_in_place_is_read_and_written():
    values = torch.zeros(10)
    assert kernels_of(lambda: values.view(2, 5).t()) == []
    assert [kernel.bytes for kernel in kernels_of(lambda: values.add_(1))] == [2 * 40]


def test_a_kernel_takes_the_longer_of_arithmetic_and_bytes():
    one, other = torch.randn(64, 64), torch.randn(64, 64)
    kernels = kernels_of(lambda: (one @ other).relu())
    peaks = Peaks({torch.float32: 2 * 64**3}, bytes=1e12)  # a second for the product, next to nothing for bytes
    assert roofline_sum(kernels, peaks) == pytest.approx(1, rel=1e-6)
    slow_memory = Peaks({torch.float32: 1e18}, bytes=4 * 64 * 64)
    assert roofline_sum(kernels, slow_memory) == pytest.approx(3 + 2, rel=1e-6)


def test_kernels_extend_to_another_batch(cifar_step):
    two, four, six = (kernels_of(cifar_step(batch, width=8).on_ready_views()) for batch in (2, 4, 6))
    assert extended(two, four, (2, 4), 6) == six


@pytest.mark.parametrize("peer", peers())
def test_a_peer_does_the_same_arithmetic(cifar_step, peer):
    ours = cifar_step(2)
    recipe = ours.training.run.recipe
    views = torch.randn(2, 2, 3, 32, 32)
    byol = peer(recipe, CPU)
    assert total(kernels_of(lambda: byol.train_on(views)))[0] == total(kernels_of(ours.on_ready_views()))[0]


@pytest.mark.parametrize("peer", peers())
def test_a_peer_has_our_loss_where_we_forward_each_view(cifar_step, peer):
    ours = cifar_step(4, two_forwards)
    batch = next(ours.batches(1))
    views = ours.training.make_views(batch)
    byol = peer(ours.training.run.recipe, CPU)
    networks = ours.training.method.networks
    copied = [(byol.online, "online"), (byol.target, "target")]
    for sequence, name in copied:
        sequence[0].load_state_dict(networks[name]["backbone"].state_dict())
    if peer is PlainBYOL:
        for sequence, name in copied:
            sequence[1].load_state_dict(networks[name]["projector"].state_dict())
        byol.predictor.load_state_dict(networks["online"]["predictor"].state_dict())
    else:  # lightly's heads number their layers alike, below `layers`
        for sequence, name in copied:
            sequence[1].layers.load_state_dict(networks[name]["projector"].state_dict())
        byol.predictor.layers.load_state_dict(networks["online"]["predictor"].state_dict())
    constant = 4 if peer is not PlainBYOL else 0  # lightly's loss lacks BYOL's constant, which has no gradient
    theirs = float(byol.train_on(views)) + constant
    # Sums of 4,096 float32 products in other orders.
    assert theirs == pytest.approx(float(ours.training.train_step(batch)), abs=1e-4)


def test_loops_over_parameters_take_the_same_steps(cifar_step):
    ends = []
    for change in (None, loops_over_parameters):
        step = cifar_step(4, change, width=8)
        for batch in step.batches(3):
            step.training.train_step(batch)
        ends.append(torch.cat([p.detach().flatten() for p in step.training.method.networks.parameters()]))
    apart = (ends[0] - ends[1]).norm() / ends[0].norm()
    assert apart < 1e-5  # float32's rounding, over three steps
