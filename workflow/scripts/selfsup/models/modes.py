"""Modes of networks that are only looked at: no gradient, no random number, no running statistic changes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from selfsup.models.batch_norm import BatchNorm


@contextmanager
def evaluation_mode(networks: nn.Module) -> Iterator[None]:
    """Inside the block networks are in eval mode and give no gradients; then each module is in the mode it had."""
    with in_eval_mode(networks), torch.no_grad():
        yield


@contextmanager
def in_eval_mode(networks: nn.Module) -> Iterator[None]:
    """As `evaluation_mode`, with gradients."""
    modes = [(module, module.training) for module in networks.modules()]
    networks.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def keep_still(network: nn.Module, *, batch_statistics: bool) -> None:
    """Put a network in eval mode, in which it drops nothing; batch norms normalise by the batch where that is asked."""
    network.eval()
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.training = batch_statistics


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside the block batch norms in eval mode normalise by the batch, and touch no running statistics.

    What collapses is what the loss sees, in train mode; running statistics follow it late: after 20 steps alone they
    make the projections of a healthy network look as even as those of a collapsed one. Of this rank's batch alone.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance
