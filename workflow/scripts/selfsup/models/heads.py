"""The projector and the predictor (paper, section 6.2: two linear layers, batch norm and ReLU after the first)."""

import torch
from torch import nn

from selfsup.models.batch_norm import BatchNorm
from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.models.head_settings import HeadSettings


class Head(nn.Sequential):
    """Layers in turn. Its own forward: torch.compile passes over functions of torch.nn, as nn.Sequential's is."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self:
            features = layer(features)
        return features


def build_head(features: int, head: HeadSettings, batch_norm: BatchNormSettings) -> Head:
    """Return a head from [N, features] to [N, head.out]. head, batch_norm: the recipe's blocks."""
    return Head(
        nn.Linear(features, head.hidden, bias=head.bias_before_bn),
        BatchNorm(head.hidden, momentum=batch_norm.momentum, eps=batch_norm.eps),
        nn.ReLU(inplace=True),
        nn.Linear(head.hidden, head.out, bias=head.bias_last),
    )
