"""Cropping, resizing, flipping and blurring a batch, each picture with its own parameters, as matrix products.

Each is linear and separable: picture -> rows @ picture @ columns^T, with a matrix of weights per picture and direction.
Two batched products are exact, run on any device, and need no gathering of pixels.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch

from selfsup.augment.settings import Augment

CUBIC_PLAIN = -0.75  # torch's cubic coefficient without antialiasing; with it, Pillow's and torch's is -0.5
STRIP = 32  # rows or columns of a blurred picture made by one product
BOXES = 3  # passes of Pillow's GaussianBlur, each way
FAR = 1e4  # in pixels: beyond any kernel's reach


def resample(
    pictures: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, between: Callable | None = None
) -> torch.Tensor:
    """Return rows @ pictures @ columns^T for each picture and channel.

    pictures: float32 [N, C, H, W]; rows: [N, h, H]; columns: [N, w, W]. Returns [N, C, h, w]. `between` is called on
    the pictures between the two passes; columns come first, as in Pillow.
    """
    count, channels, height, width = pictures.shape
    across = torch.bmm(pictures.reshape(count, channels * height, width), columns.transpose(1, 2))
    across = across.view(count, channels, height, -1)
    if between is not None:
        across = between(across)
    return torch.matmul(rows[:, None], across)


def resize_matrix(
    begin: torch.Tensor,
    length: torch.Tensor,
    total: int,
    size: int,
    augment: Augment,
    *,
    gain: float = 1.0,
    mirrored: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weights that cut `length` pixels from `begin` on and resize them to `size`: float32 [N, size, total].

    begin, length: float32 [N], in pixels of pictures that have `total`; augment: the recipe's block of that name.
    gain: the sum of a pixel's weights. mirrored: bool [N], which pictures are flipped. The rule is torch's, which is
    Pillow's: the kernel stretched by the reduction (antialias), cut off at the crop's borders.
    """
    device, begin, length = begin.device, begin[:, None], length[:, None]
    place = torch.arange(size, device=device) + 0.5
    if mirrored is not None:
        place = torch.where(mirrored[:, None], size - place, place)
    reduction = length / size
    pixel = torch.arange(total, device=device) - begin
    if not augment.antialias:
        return _plain_matrix(place * reduction - 0.5, pixel, length, augment.interpolation).mul_(gain)
    stretch = reduction.clamp_min(1.0)
    places = torch.where((pixel >= 0) & (pixel < length), (pixel + 0.5) / stretch, FAR)
    weights = _kernel((places[:, None] - (place * reduction / stretch)[:, :, None]).abs_(), augment.interpolation)
    return weights.mul_(gain / weights.sum(2, keepdim=True))


def _kernel(distance: torch.Tensor, interpolation: str) -> torch.Tensor:
    """Keys' cubic kernel with a = -0.5, or the triangle. distance: >= 0, in steps of the kernel; overwritten."""
    if interpolation == "bilinear":
        return distance.neg_().add_(1).clamp_min_(0)
    # With p = max(2 - t, 0) and q = max(1 - t, 0) its pieces are p^2 (p - 1) / 2 + q^2 (1 - 2 q), without a branch.
    p = distance.neg_().add_(2).clamp_min_(0)
    less = p - 1
    q = less.clamp_min(0)
    outer = less.mul_(p).mul_(p.mul_(0.5))
    return outer.addcmul_(q.square(), q.mul_(-2).add_(1))


def _plain_matrix(source: torch.Tensor, pixel: torch.Tensor, length: torch.Tensor, interpolation: str) -> torch.Tensor:
    """Without antialiasing: two or four taps around a place, those beyond the crop's borders moved onto them."""
    first = source.floor()
    weights = torch.zeros(*source.shape, pixel.shape[1], device=source.device)
    for tap in (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2):
        place = torch.minimum((first + tap).clamp_min(0), length - 1)
        weights += (_tap_weight((source - first - tap).abs(), interpolation)[:, :, None]) * (
            pixel[:, None] == place[:, :, None]
        )
    return weights


def _tap_weight(t: torch.Tensor, interpolation: str) -> torch.Tensor:
    if interpolation == "bilinear":
        return (1 - t).clamp_min(0)
    a = CUBIC_PLAIN
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    return torch.where(t <= 1, near, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a)


def blur(pictures: torch.Tensor, sigma: torch.Tensor, kernel: int, padding: str) -> torch.Tensor:
    """Return pictures, float32 [N, C, H, W], blurred by a Gaussian each. sigma: float32 [N], in pixels, > 0.

    kernel: taps, odd; padding: "reflect" (torchvision's), "zero" or "edge". The matrices have a band of `kernel` only,
    so large pictures are multiplied in strips of them: a quarter of the work at 224 pixels and 23 taps.
    """
    rows, columns = _both_ways(lambda size: blur_matrix(sigma, size, kernel, padding), pictures)
    return _down(_across(pictures, columns, kernel), rows, kernel)


def _both_ways(matrix: Callable[[int], torch.Tensor], pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices of a picture's height and width, one where these are equal."""
    height, width = pictures.shape[2:]
    rows = matrix(height)
    return rows, rows if width == height else matrix(width)


def three_boxes(
    pictures: torch.Tensor, sigma: torch.Tensor, largest: float, padding: str, rounded: Callable
) -> torch.Tensor:
    """Return pictures, float32 [N, C, H, W], blurred as Pillow's GaussianBlur does it: by a box, three times each way.

    sigma: float32 [N], in pixels, > 0 and at most `largest`. rounded: called on pictures after each of the six passes,
    as Pillow keeps 8 bits there. Columns come first, as in Pillow.
    """
    reach = _box_reach(largest)
    kernel, weights = 2 * reach + 1, _box(sigma, reach)
    rows, columns = _both_ways(lambda size: _band(weights, size, padding), pictures)
    for _ in range(BOXES):
        pictures = rounded(_across(pictures, columns, kernel))
    for _ in range(BOXES):
        pictures = rounded(_down(pictures, rows, kernel))
    return pictures


@torch.compiler.assume_constant_result
def _box_reach(largest: float) -> int:
    """Return how many pixels the widest box weighs on each side."""
    return math.floor(float(_box_radius(torch.tensor(largest)))) + 1


def _box_radius(sigma: torch.Tensor) -> torch.Tensor:
    """Return the radius of the box that three times in turn has this deviation (Gwosdek et al. 2011, eq. 7 to 14).

    A radius of 1.3 weighs a pixel, its two neighbours, and the next two by 0.3.
    """
    variance = sigma.square() / BOXES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    return whole + part


def _box(sigma: torch.Tensor, reach: int) -> torch.Tensor:
    """Return each picture's box: float32 [N, 2 reach + 1]."""
    distance, radius = torch.arange(-reach, reach + 1, device=sigma.device).abs(), _box_radius(sigma)[:, None]
    return (radius + 1 - distance).clamp(0, 1) / (2 * radius + 1)


def _across(pictures: torch.Tensor, columns: torch.Tensor, kernel: int) -> torch.Tensor:
    """Return pictures @ columns^T, whose band is `kernel` wide."""
    count, channels, height, width = pictures.shape
    flat = pictures.reshape(count, channels * height, width)
    strips = [
        torch.bmm(flat[:, :, read], columns[:, made, read].transpose(1, 2)) for made, read in _strips(width, kernel)
    ]
    return torch.cat(strips, dim=2).view(pictures.shape)


def _down(pictures: torch.Tensor, rows: torch.Tensor, kernel: int) -> torch.Tensor:
    """Return rows @ pictures, whose band is `kernel` wide."""
    strips = [rows[:, None, made, read] @ pictures[:, :, read] for made, read in _strips(pictures.shape[2], kernel)]
    return torch.cat(strips, dim=2)


def _strips(size: int, kernel: int) -> Iterator[tuple[slice, slice]]:
    """Yield which pixels a strip makes, and which it reads."""
    for start in range(0, size, STRIP):
        yield slice(start, start + STRIP), slice(max(start - kernel // 2, 0), start + STRIP + kernel // 2)


def blur_matrix(sigma: torch.Tensor, size: int, kernel: int, padding: str) -> torch.Tensor:
    """Return the weights of a Gaussian blur along one direction: float32 [N, size, size]."""
    taps = torch.arange(kernel, device=sigma.device) - kernel // 2
    return _band(torch.softmax(-0.5 * (taps / sigma[:, None]).square(), dim=1), size, padding)


def _band(weights: torch.Tensor, size: int, padding: str) -> torch.Tensor:
    """Return the matrix that weighs each pixel's neighbours: float32 [N, size, size]. weights: [N, taps]."""
    return (weights @ _tap_places(size, weights.shape[1], padding, weights.device)).view(-1, size, size)


@torch.compiler.assume_constant_result
def _tap_places(size: int, kernel: int, padding: str, device: torch.device) -> torch.Tensor:
    """For each tap the matrix that fetches its pixel: float32 [kernel, size * size]."""
    return _made_tap_places(size, kernel, padding, device)


@lru_cache(maxsize=16)  # a few megabytes that never change
def _made_tap_places(size: int, kernel: int, padding: str, device: torch.device) -> torch.Tensor:
    places = np.zeros((kernel, size, size), np.float32)
    row = np.arange(size)
    for tap in range(kernel):
        pixel = row + tap - kernel // 2
        inside = size - 1 - np.abs(size - 1 - np.abs(pixel))  # reflected at both ends
        if padding == "edge":
            inside = pixel.clip(0, size - 1)
        kept = inside == pixel if padding == "zero" else np.ones(size, bool)
        places[tap, row[kept], inside[kept]] = 1
    return torch.from_numpy(places).view(kernel, -1).to(device)
