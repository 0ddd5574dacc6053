"""Batch norm against its equations in NumPy, float64: what is normalised together, and what the running ones become."""

import numpy as np
import pytest
import torch

from selfsup.models import BatchNorm


def restated(parts, gamma, beta, mean, variance, *, eps, momentum):
    """Normalise each part by itself, in order. Running variances are unbiased, as torch's (haiku's are biased)."""
    outputs = []
    for x in parts:
        over = (0, *range(2, x.ndim))
        shape = (1, -1) + (1,) * (x.ndim - 2)
        m, v, count = x.mean(over), x.var(over), x.size / x.shape[1]
        normalised = (x - m.reshape(shape)) / np.sqrt(v.reshape(shape) + eps)
        outputs.append(gamma.reshape(shape) * normalised + beta.reshape(shape))
        mean = (1 - momentum) * mean + momentum * m
        variance = (1 - momentum) * variance + momentum * v * count / (count - 1)
    return np.concatenate(outputs), mean, variance


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 3)])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_statistics_over_all_views_or_of_each(shape, views, dtype):
    random = np.random.default_rng()
    x = 3 * random.normal(size=shape) + 2
    gamma, beta, mean, variance = random.normal(size=(4, 5))
    variance = variance**2
    norm = BatchNorm(5, momentum=0.3, eps=1e-3).to(dtype)
    norm.groups = views
    for target, values in (
        (norm.weight, gamma),
        (norm.bias, beta),
        (norm.running_mean, mean),
        (norm.running_var, variance),
    ):
        target.data.copy_(torch.from_numpy(values))
    found = norm(torch.tensor(x, dtype=dtype))
    wanted = restated(np.split(x, views), gamma, beta, mean, variance, eps=1e-3, momentum=0.3)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    for ours, theirs in zip((found, norm.running_mean, norm.running_var), wanted, strict=True):
        error = np.linalg.norm(ours.detach().double().numpy() - theirs) / np.linalg.norm(theirs)
        assert error < tolerance
    assert norm.num_batches_tracked == views


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("views", [2, 3])
def test_views_written_to_their_places_have_the_bits_of_views_joined(views, calls, dtype, memory_format):
    x = torch.randn(12, 8, 5, 5).to(dtype).to(memory_format=memory_format).requires_grad_()
    upstream = torch.randn(12, 8, 5, 5).to(dtype).to(memory_format=memory_format)
    norm = BatchNorm(8, momentum=0.3, eps=1e-3)
    norm.weight.data.normal_()
    norm.groups = views
    joined = torch.nn.BatchNorm2d(8, momentum=0.3, eps=1e-3)
    joined.load_state_dict(norm.state_dict())
    made = []
    for forward in (norm, lambda x: torch.cat([joined(view) for view in x.chunk(views)])):
        output = sum(forward(number * x) for number in range(1, calls + 1))  # as a method may
        output.backward(upstream)
        made.append((output.detach(), x.grad))
        x.grad = None
    for ours, theirs in zip(*made, strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    for ours, theirs in zip(norm.parameters(), joined.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    for name, value in joined.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
