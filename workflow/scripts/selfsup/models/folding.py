"""Batch norms folded into the convolutions before them: the same function in eval mode, without a pass for each."""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from selfsup.models.batch_norm import BatchNorm, BatchNormAct


def fold_batch_norms(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network in eval mode in which each batch norm that follows a convolution is part of it.

    The convolution's weights are multiplied by gamma / sqrt(running_var + eps) and it gets a bias: computed in float64
    and rounded once, to `dtype`, which is the whole copy's. For inference: nothing in it asks for a gradient. A batch
    norm stays where something else uses the convolution's output too, and in a network that torch.fx cannot trace.
    Raises ValueError in train mode, in which a batch norm is no fixed function.
    """
    if network.training:
        raise ValueError("batch norms can be folded in eval mode only: call .eval() before")
    folded = copy.deepcopy(network).requires_grad_(False)
    for convolution, norm in list(_pairs(folded)):
        fused = fuse_conv_bn_eval(folded.get_submodule(convolution).double(), folded.get_submodule(norm).double())
        folded.set_submodule(convolution, fused.to(dtype))
        after = folded.get_submodule(norm)
        folded.set_submodule(norm, after.act if isinstance(after, BatchNormAct) else nn.Identity())
    return folded.to(dtype)


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of each convolution and the batch norm that is its output's only use, each called once."""
    modules = dict(network.named_modules())
    called = {node: modules[node.target] for node in _nodes(network) if node.op == "call_module"}
    calls = Counter(node.target for node in called)
    for node, module in called.items():
        source = node.args[0]
        if not isinstance(module, BatchNorm) or not isinstance(called.get(source), nn.Conv2d):
            continue
        if len(source.users) == calls[source.target] == calls[node.target] == 1:
            yield source.target, node.target


def _nodes(network: nn.Module) -> list[fx.Node]:
    """Return what a network does, node by node; nothing of one without batch norm, or that cannot be traced."""
    if not any(isinstance(module, BatchNorm) for module in network.modules()):
        return []
    try:
        return list(_Tracer().trace(network).nodes)
    except Exception:  # a forward of somebody else's, given stand-ins for tensors, may fail in any way
        return []


class _Tracer(fx.Tracer):
    """Takes our batch norm for one operation, as it does torch's."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, BatchNorm) or super().is_leaf_module(module, name)
