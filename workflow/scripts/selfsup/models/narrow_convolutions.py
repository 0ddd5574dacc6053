"""A way around a fault of oneDNN on x86 processors without AVX-512, in networks that are narrower than 8 channels.

There the gradient of a convolution of 1 x 1 pixels with a stride and fewer than 8 input channels, in channels_last,
writes beyond its workspace: gradients are wrong, or the process dies (github.com/uxlfoundation/oneDNN/issues/6035; seen
with 3.10.2, torch 2.11's). Taking every second pixel first is the same convolution, without a stride.
"""

import platform
from functools import partial

import torch
from torch import nn

CHANNELS = 8  # of a block of oneDNN's kernels for AVX2


def take_pixels_first(network: nn.Module) -> None:
    """Let a network's narrow 1 x 1 convolutions with a stride have their input thinned out, where this is needed."""
    if platform.machine() not in ("x86_64", "AMD64") or "AVX512" in torch.backends.cpu.get_cpu_capability():
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_narrow(module):
            module.register_forward_pre_hook(partial(_thinned_out, stride=module.stride))
            module.stride = (1, 1)


def _is_narrow(module: nn.Conv2d) -> bool:
    strided = module.kernel_size == (1, 1) and module.stride != (1, 1) and module.padding == (0, 0)
    return strided and module.in_channels // module.groups < CHANNELS


def _thinned_out(module: nn.Conv2d, inputs: tuple[torch.Tensor], *, stride: tuple[int, int]) -> torch.Tensor:
    return inputs[0][:, :, :: stride[0], :: stride[1]]
