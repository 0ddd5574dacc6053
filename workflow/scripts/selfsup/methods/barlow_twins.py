"""Barlow Twins: the cross-correlation of two views' projections becomes the identity (Zbontar et al. 2021).

Its diagonal makes the views alike, the rest takes redundancy from the dimensions. Over ranks the correlation is that of
the global batch, and so is its gradient; the official code's is the number of ranks times smaller, because its
all-reduce has no gradient. LARS hides that for weights; biases and norms feel it.
"""

from dataclasses import replace

import torch
from torch import nn

from selfsup.methods.joint_embedding import JointEmbedding, in_full, product
from selfsup.methods.method import Batch, Output, Step
from selfsup.optim.parameter_groups import ParameterTreatment

EPSILON = 1e-5  # of the official code's batch norm, which normalises the projections


def barlow_twins_loss(first: torch.Tensor, second: torch.Tensor, redundancy: float) -> torch.Tensor:
    """Return sum_i (C_ii - 1)^2 + redundancy sum_i sum_(j != i) C_ij^2 (eq. 1), C the cross-correlation (eq. 2).

    first, second: projections [N, D] of the two views, of the whole global batch; computed with in float32 or wider.
    """
    first, second = map(standardised, in_full(first, second))
    correlation = product(first.T / len(first), second)  # divided before it is D x D
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + redundancy * off_diagonal


def standardised(z: torch.Tensor) -> torch.Tensor:
    """Return [N, D] with each dimension's mean 0 and variance 1 over the rows: a batch norm without affine."""
    return nn.functional.batch_norm(z, None, None, training=True, eps=EPSILON)


class BarlowTwins(JointEmbedding):
    """The method, as training drives it: see `selfsup.methods.Method` for what each member means."""

    def parameter_groups(self) -> list[ParameterTreatment]:
        return [
            one if one.kind == "weight" else replace(one, lr_scale=self.settings.bias_and_norm_lr_scale)
            for one in super().parameter_groups()
        ]

    def loss(self, batch: Batch, step: Step) -> Output:
        first, second = map(self.context.ranks.gather_with_gradient, self.projections(batch).chunk(2))
        return Output(self.settings.loss_scale * barlow_twins_loss(first, second, self.settings.redundancy))
