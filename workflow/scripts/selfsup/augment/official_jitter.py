"""The colour jitter of BYOL's JAX release (deepmind-research/byol, utils/augmentations.py), on a batch.

SimCLR's release (google-research/simclr, data_util.py) has the same, in version 2 with another brightness.

Pictures are float [n, 3, H, W] in [0, 1]; factors float [n], drawn as torchvision's: 1 is neutral for three of them,
0 for the hue, in turns. Each operation is clipped to [0, 1]. Only the hue's is torchvision's: here brightness is added,
contrast is about each channel's own mean, and saturation scales HSV's instead of mixing with the grey picture.
"""

import torch


def brightness(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Add `factor` - 1."""
    return (pictures + (_column(factors) - 1)).clamp(0, 1)


def multiplied_brightness(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply by `factor`."""
    return (pictures * _column(factors)).clamp(0, 1)


def contrast(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Scale each channel's distance from its mean over the picture."""
    mean = pictures.mean((2, 3), keepdim=True)
    return (_column(factors) * (pictures - mean) + mean).clamp(0, 1)


def saturation(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Scale HSV's saturation, at most to 1; value and hue stay.

    A channel is v (1 - s d), where d in [0, 1] depends on the hue alone: so its distance from v scales as s does.
    """
    value, lowest = pictures.amax(1, keepdim=True), pictures.amin(1, keepdim=True)
    chroma = value - lowest
    scaled = torch.minimum(_column(factors) * chroma, value)  # of s to at most 1
    share = torch.where(chroma > 0, scaled / torch.where(chroma > 0, chroma, 1.0), 0.0)
    return (value - (value - pictures) * share).clamp(0, 1)


def hue(pictures: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn HSV's hue by a share of the circle; value and saturation stay."""
    red, green, blue = pictures.unbind(1)
    value = pictures.amax(1)
    chroma = value - pictures.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    turned = sextant + 6 * turns.view(-1, 1, 1)
    channels = []
    for start in (5, 3, 1):  # HSV's channels as trapezia over the hue's circle
        place = (start + turned) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, 1).clamp(0, 1)


OPERATIONS = (brightness, contrast, saturation, hue)  # in the order of the drawn factors
SIMCLR_V2 = (multiplied_brightness, contrast, saturation, hue)


def _column(factors: torch.Tensor) -> torch.Tensor:
    return factors.view(-1, 1, 1, 1)
