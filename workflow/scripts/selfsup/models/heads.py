"""Projectors and predictors (paper, section 6.2: two linear layers, batch norm and ReLU after the first)."""

from itertools import pairwise

import torch
from torch import nn

from selfsup.models.batch_norm import BatchNorm
from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.models.head_settings import HeadSettings, LayersSettings


class Head(nn.Sequential):
    """Layers in turn. Its own forward: torch.compile passes over functions of torch.nn, as nn.Sequential's is."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for layer in self:
            features = layer(features)
        return features


def build_head(features: int, head: HeadSettings | LayersSettings, batch_norm: BatchNormSettings) -> Head:
    """Return a head from [N, features] to [N, head.out]. head, batch_norm: the recipe's blocks."""
    modules: list[nn.Module] = []
    for inner, outer in pairwise([features, *head.layers[:-1]]):
        modules += [nn.Linear(inner, outer, bias=head.bias_before_bn), _norm(outer, batch_norm), nn.ReLU(inplace=True)]
    last = head.layers[-2] if len(head.layers) > 1 else features
    modules.append(nn.Linear(last, head.out, bias=head.bias_last))
    if head.last_batch_norm != "none":
        norm = _norm(head.out, batch_norm)
        norm.weight.requires_grad_(head.last_batch_norm != "without_affine")
        norm.bias.requires_grad_(head.last_batch_norm == "with_scale_and_shift")
        modules.append(norm)
    return Head(*modules)


def _norm(width: int, batch_norm: BatchNormSettings) -> BatchNorm:
    """Return a batch norm. One without scale or shift keeps them at 1 and 0: the same numbers, by the same kernels."""
    return BatchNorm(width, momentum=batch_norm.momentum, eps=batch_norm.eps)
