"""Narrow networks on processors without AVX-512, which oneDNN and torch can be told to be, on x86 processors alone."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from selfsup.models.narrow_convolutions import take_pixels_first

# Gradients of a channels_last network with a shortcut of `channels`, as float64 has them, again and again.
PROGRAM = """
import torch
from torch import nn
from selfsup.models.narrow_convolutions import take_pixels_first

torch.set_num_threads(1)
for channels in (3, 4, 7, 8, 12):
    network = nn.Conv2d(channels, 16, 1, stride=2, bias=False)
    wanted = nn.Conv2d(channels, 16, 1, stride=2, bias=False).double()
    wanted.load_state_dict(network.state_dict())
    take_pixels_first(network)
    network.to(memory_format=torch.channels_last)
    for attempt in range(5):
        x = torch.randn(32, channels, 32, 32)
        ours, exact = x.contiguous(memory_format=torch.channels_last).requires_grad_(), x.double().requires_grad_()
        network.zero_grad(), wanted.zero_grad()
        network(ours).square().sum().backward()
        wanted(exact).square().sum().backward()
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.weight.grad.double(), wanted.weight.grad, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN's kernels for x86")
def test_gradients_of_narrow_shortcuts_are_right_without_avx512():
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_network_is_the_same_function_with_its_pixels_taken_first(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    network = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2), nn.Conv2d(8, 16, 1, stride=2), nn.Conv2d(16, 4, 3, stride=2))
    x = torch.randn(2, 4, 29, 30)
    wanted = network(x)
    take_pixels_first(network)
    assert [module.stride for module in network] == [(1, 1), (2, 2), (2, 2)]
    torch.testing.assert_close(network(x), wanted)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    untouched = nn.Conv2d(4, 8, 1, stride=2)
    take_pixels_first(untouched)
    assert untouched.stride == (2, 2)
