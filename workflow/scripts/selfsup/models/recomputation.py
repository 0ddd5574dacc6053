"""Less memory for more arithmetic: activations inside residual blocks are computed again in the backward pass."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

from selfsup.models.batch_norm import recomputation


def recompute_activations(network: nn.Module) -> None:
    """Make each residual block of a network keep its input alone; the values, and so the bits, stay the same."""
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts
            )


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Around the first pass and around the one that is done again."""
    return nullcontext(), recomputation()
