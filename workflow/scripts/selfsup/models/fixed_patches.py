"""A vision transformer whose patches are embedded by what does not learn (Chen, Xie & He 2021: MoCo v3, section 4)."""

import math

import torch
from torch import nn

from selfsup.errors import PermanentError

TEMPERATURE = 10_000.0  # the official code's, vits.py


def fix_positions(network: nn.Module, name: str) -> None:
    """Replace the learned positions of a model of timm by sines and cosines; those of the class token are 0.

    Raises PermanentError for a model, called `name`, that has none to replace.
    """
    positions, (height, width) = getattr(network, "pos_embed", None), _grid(network, name)
    places, channels = height * width, 0 if positions is None else positions.shape[-1]
    if positions is None or positions.dim() != 3 or channels % 4:
        raise PermanentError(f"model.positions is sin_cos, but {name} has no learned positions of 4 n channels")
    fixed = torch.zeros(positions.shape)
    fixed[0, positions.shape[1] - places :] = sin_cos_positions(height, width, channels)
    network.pos_embed = nn.Parameter(fixed, requires_grad=False)


def sin_cos_positions(height: int, width: int, channels: int) -> torch.Tensor:
    """Return [height x width, channels], row after row: sines and cosines of the row, then those of the column.

    Frequencies fall from 1 to nearly 1 / 10,000. float32.
    """
    frequencies = 1 / TEMPERATURE ** (torch.arange(channels // 4) / (channels // 4))
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    row, column = (place[:, None] * frequencies for place in places.T)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)


def freeze_patch_projection(network: nn.Module, name: str) -> None:
    """Draw the projection of patches anew, Xavier-uniform with a bias of 0, and let it learn nothing."""
    _grid(network, name)
    projection = network.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + projection.weight.shape[0]))
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)


def _grid(network: nn.Module, name: str) -> tuple[int, int]:
    patches = getattr(network, "patch_embed", None)
    if not isinstance(getattr(patches, "proj", None), nn.Conv2d) or not hasattr(patches, "grid_size"):
        raise PermanentError(f"model: {name} has no projection of patches that could be fixed: choose a timm/vit_*")
    return patches.grid_size
