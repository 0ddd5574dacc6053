"""Gradients as means over ranks, summed while the backward pass goes on."""

import pytest
import torch
from torch import nn

from many_ranks import on_ranks
from selfsup.training import gradients
from selfsup.training.distributed import Ranks
from selfsup.training.gradients import GradientAverager

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
