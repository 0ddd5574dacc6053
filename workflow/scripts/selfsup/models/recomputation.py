"""Less memory for more arithmetic: activations inside a network's blocks are computed again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from selfsup.errors import UserError
from selfsup.models.batch_norm import BatchNorm, recomputation
from selfsup.models.modes import in_eval_mode

SWITCH = "set_grad_checkpointing"


def recompute_activations(networks: nn.Module, size: int, *, whole_graphs: bool = False) -> None:
    """Make networks keep the inputs of their blocks alone; the values, and so the bits, stay the same.

    Blocks are the residual blocks of torchvision's ResNets, and what a network's own switch, as timm's have, says.
    size: pixels of a picture's side. whole_graphs: where a network is compiled, it is one graph. Raises UserError where
    there is no block, or a switch does nothing.
    """
    blocks = [module for module in networks.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward, whole_graphs)
    switched = list(_with_a_switch(networks))
    for network in switched:
        _switch_on(network, size)
    if not blocks and not switched:
        raise UserError("compute.recompute is true, but no network here can compute activations again: set it to false")


def _checkpointed(forward: Callable, whole_graphs: bool, x: torch.Tensor) -> torch.Tensor:
    if whole_graphs and torch.compiler.is_compiling():  # what is computed again is not written again, as buffers are
        return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Around the first pass and around the one that is done again."""
    return nullcontext(), recomputation()


def _with_a_switch(networks: nn.Module) -> Iterator[nn.Module]:
    """Yield the networks that learn and have a switch, without the parts of theirs that have one too."""
    inner: set[nn.Module] = set()
    for module in networks.modules():
        if module not in inner and hasattr(module, SWITCH):
            inner.update(module.modules())
            if any(parameter.requires_grad for parameter in module.parameters()):
                yield module


def _switch_on(network: nn.Module, size: int) -> None:
    """Use a network's own switch; the copies of its batch norms in the backward pass then count for nothing."""
    before = _kept_bytes(network, size)
    with suppress(AssertionError, NotImplementedError, TypeError, ValueError):  # how models say that they cannot
        getattr(network, SWITCH)(True)
    if _kept_bytes(network, size) >= before:
        raise UserError(
            f"compute.recompute is true, but the network {type(network).__name__} has no switch that makes it keep "
            "fewer activations: set it to false"
        )
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.recomputed = True


def _kept_bytes(network: nn.Module, size: int) -> int:
    """Return the bytes that a picture's forward pass keeps for its backward pass."""
    some, kept = next(network.parameters()), []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.nbytes) or one, lambda one: one)
    with in_eval_mode(network), hooks:
        network(torch.zeros(1, 3, size, size, device=some.device, dtype=some.dtype))
    return sum(kept)
