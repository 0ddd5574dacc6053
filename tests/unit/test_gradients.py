"""Gradients as means over ranks, summed while the backward pass goes on."""

import contextlib

import pytest
import torch
from torch import nn

from many_ranks import on_ranks
from selfsup.engine import gradients
from selfsup.engine.distributed import Ranks
from selfsup.engine.gradients import GradientAverager

ROWS = 8


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5), nn.Linear(5, 2))
    layers.append(nn.Linear(7, 7))  # has no part in the loss
    return layers.double().to(memory_format=torch.channels_last)


def _gradients(ranks: Ranks, rows: list, parts: int, bucket_elements: int) -> tuple:
    """Each parameter's gradient, whether each has its parameter's layout, and the sums that were started."""
    gradients.BUCKET_ELEMENTS = bucket_elements
    layers, started = network(), []
    parameters = list(layers.parameters())
    averager = GradientAverager(parameters, ranks)
    start = ranks.start_all_reduce
    ranks.start_all_reduce = lambda tensor: started.append(parameters[0].grad is None) or start(tensor)
    mine = torch.tensor(rows, dtype=torch.float64).chunk(ranks.size)[ranks.rank]
    for _ in range(2):  # the second step uses the memory of the first again
        layers.zero_grad(set_to_none=True)
        started.clear()
        for n, part in enumerate(mine.chunk(parts), 1):
            loss = layers[:-1](part).pow(3).mean() / parts
            if n < parts:
                loss.backward()
            else:
                with averager.last_backward():
                    loss.backward()
    found = [one.grad for one in parameters]
    alike = [grad is None or grad.stride() == one.stride() for grad, one in zip(found, parameters, strict=True)]
    return [grad if grad is None else grad.tolist() for grad in found], all(alike), started


@pytest.mark.parametrize("bucket_elements", [1, 330, 10**6])
@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_means_over_ranks(parts, bucket_elements):
    """float64, to 1e-13; in one part, two micro-batches, many buckets and a single one."""
    rows = torch.randn(ROWS, 3, 6, 6, dtype=torch.float64).tolist()
    wanted, _, _ = _gradients(Ranks(), rows, parts, bucket_elements)
    for found, alike, started in on_ranks(_gradients, 2, rows, parts, bucket_elements):
        assert alike
        assert [gradient is None for gradient in found] == [gradient is None for gradient in wanted]
        for one, other in zip(found, wanted, strict=True):
            if other is not None:
                torch.testing.assert_close(
                    torch.tensor(one, dtype=torch.float64),
                    torch.tensor(other, dtype=torch.float64),
                    rtol=1e-13,
                    atol=1e-13,
                )
        assert len(started) == {1: 8, 330: 2, 10**6: 1}[bucket_elements]


def _on_some_ranks(ranks: Ranks, average: str, parts: int) -> list:
    """The gradients of four parameters, after which a momentum step is taken: of all ranks, of some, of none."""
    gradients.BUCKET_ELEMENTS = 4
    both, first, last, _ = parameters = [nn.Parameter(torch.full((3,), 1.0)) for _ in range(4)]
    averager = GradientAverager(parameters, ranks)
    for _ in range(2):  # the second step uses the memory of the first again
        for one in parameters:
            one.grad = None
        for part in range(1, parts + 1):
            loss = (both * (ranks.rank + 1)).sum()
            if ranks.rank == 0:
                loss = loss + 8 * first.sum()
            if ranks.rank == ranks.size - 1 and part == 1:  # not in the part in which sums are started
                loss = loss + 6 * last.sum()
            final = average == "averager" and part == parts
            with averager.last_backward() if final else contextlib.nullcontext():
                loss.backward()
    if average == "few":
        ranks.average_gradients(iter(parameters))
    return [None if one.grad is None else one.grad.tolist() for one in parameters]


@pytest.mark.parametrize(("average", "parts"), [("averager", 1), ("averager", 2), ("few", 1)])
@pytest.mark.parametrize("size", [2, 3])
def test_a_gradient_on_one_rank_only_counts_as_zeros_on_the_others(size, average, parts):
    """Every rank has the mean, or none; a parameter without a gradient on any rank keeps none, as on one rank."""
    wanted = [[parts * (size + 1) / 2] * 3, [parts * 8 / size] * 3, [6 / size] * 3, None]
    for found in on_ranks(_on_some_ranks, size, average, parts):
        assert found[3] is None
        assert [found[place] == pytest.approx(wanted[place]) for place in range(3)] == [True] * 3


def _weights_with_a_branch_of_rank_0(ranks: Ranks) -> list:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    averager = GradientAverager(list(layers.parameters()), ranks)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        x = layers[0](torch.ones(2, 3))
        with averager.last_backward():
            (x if ranks.rank or step != 1 else layers[1](x)).square().sum().backward()
        optimizer.step()
    return [one.tolist() for one in layers.parameters()]


def test_ranks_stay_equal_though_a_branch_is_taken_on_one_of_them():
    first, second = on_ranks(_weights_with_a_branch_of_rank_0, 2)
    assert first == second


def _overlap(ranks: Ranks) -> list[bool]:
    """For each bucket, in the order of their sums: whether the first layer had no gradient yet when it began."""
    gradients.BUCKET_ELEMENTS = 1
    layers, began = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)]), []
    averager = GradientAverager(list(layers.parameters()), ranks)
    start = ranks.start_all_reduce
    ranks.start_all_reduce = lambda tensor: began.append(layers[0].weight.grad is None) or start(tensor)
    with averager.last_backward():
        layers(torch.ones(2, 4)).sum().backward()
    return began


def test_sums_begin_while_the_backward_pass_goes_on():
    for began in on_ranks(_overlap, 2):
        assert began == [True] * 8 + began[8:] and len(began) == 10


def test_one_rank_has_nothing_to_average():
    layers = network()
    averager = GradientAverager(list(layers.parameters()), Ranks())
    with averager.last_backward():
        layers[:-1](torch.ones(2, 3, 6, 6, dtype=torch.float64)).sum().backward()
    assert layers[0].weight.grad is not None
