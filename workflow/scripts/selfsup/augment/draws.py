"""The parameters of every augmentation, drawn on the host before a pixel is touched.

A draw is a function of (seed, stage, epoch, sample index, view, operation): the same for any number of ranks, loader
workers and batch cuts, and on any machine. Sampling rules are torchvision's (RandomResizedCrop, ColorJitter, ...).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations

import numpy as np
import torch

from selfsup.augment.settings import Blur, Crop, Jitter, Plain, View
from selfsup.augment.transfer import sent_together
from selfsup.random_draws import Stream, uniform, words
from selfsup.recipe import Recipe

# Operation ids, the counter's last word. They are part of every result: add new ones, never change these.
CROP = 0  # ten tries: 0 to 9
FLIP = 16
JITTER = 32
JITTER_FACTORS = 33
GRAYSCALE = 48
BLUR = 64
SOLARIZE = 80

DRAWN_ONCE = (CROP, FLIP, JITTER, JITTER_FACTORS, GRAYSCALE, BLUR, SOLARIZE)

CROP_TRIES = 10  # torchvision's RandomResizedCrop; then a central crop
JITTER_ORDERS = np.array(list(permutations(range(4))), np.int64)  # of brightness, contrast, saturation, hue


@dataclass(frozen=True)
class ViewDraws:
    """One view's parameters for N samples. An operation that does not apply to a sample has its neutral value.

    sizes: int64 [N, 2], the source images' heights and widths in pixels, whatever is drawn.
    boxes: int64 [N, 4], the crop as top, left, height, width in pixels of the source image.
    flip, jitter, grayscale, solarize: bool [N].
    factors: float32 [N, 4], of brightness, contrast, saturation (1 is neutral) and hue (0 is neutral, turns).
    order: int64 [N, 4], in which the four factors are applied; drawn also where jitter does not apply.
    sigma: float32 [N], of the blur in pixels; 0 where there is none.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    flip: np.ndarray
    jitter: np.ndarray
    factors: np.ndarray
    order: np.ndarray
    grayscale: np.ndarray
    sigma: np.ndarray
    solarize: np.ndarray

    def part(self, samples: slice | np.ndarray) -> "ViewDraws":
        """Return the parameters of some of the samples."""
        return ViewDraws(**{field.name: getattr(self, field.name)[samples] for field in fields(self)})

    def tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return each parameter by its name as a tensor on a device: int64, float32 and bool as above, same shapes.

        All go in one copy for which the host does not wait, made at the first call and kept: change none of them.
        """
        known = self.__dict__.setdefault("_sent", {})
        if device not in known:
            known[device] = sent_together({field.name: getattr(self, field.name) for field in fields(self)}, device)
        return known[device]

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Draws:
    """The parameters of a batch: one ViewDraws per view, and the policies they were drawn from.

    plain: how each image's unaugmented picture is made, if one is wanted.
    """

    views: tuple[ViewDraws, ...]
    policies: tuple[View, ...]
    plain: Plain | None = None

    @property
    def sizes(self) -> np.ndarray:
        """The source images' heights and widths in pixels, int64 [N, 2]."""
        return self.views[0].sizes

    def part(self, samples: slice) -> "Draws":
        """Return the parameters of some of the samples."""
        return replace(self, views=tuple(view.part(samples) for view in self.views))

    def of(self, views: Sequence[int]) -> "Draws":
        """Return the parameters of some of the views."""
        return replace(
            self, views=tuple(self.views[view] for view in views), policies=tuple(self.policies[view] for view in views)
        )

    def together(self) -> ViewDraws:
        """Return all views' parameters in one, view after view."""
        names = [field.name for field in fields(ViewDraws)]
        return ViewDraws(**{name: np.concatenate([getattr(view, name) for view in self.views]) for name in names})


@dataclass(frozen=True)
class Policies:
    """How a training's pictures are made: a policy for each view, the unaugmented picture, the stream that draws."""

    views: Sequence[View]
    plain: Plain | None
    stream: Stream


def policies_of(recipe: Recipe, stage: str) -> Policies:
    """Return what a recipe says: "pretrain" has the method's views, "linear" its one training view alone."""
    if stage == "pretrain":
        return Policies(recipe.augment.views, recipe.augment.plain, Stream.PRETRAIN)
    return Policies([recipe.linear.train_view], None, Stream.LINEAR)


def draw(
    recipe: Mapping,
    *,
    seed: int,
    epoch: int,
    indices: np.ndarray,
    sizes: np.ndarray,
    stage: str | Policies = "pretrain",
) -> Draws:
    """Draw the augmentation parameters of a batch (paper, section 6.4; section 6.5 for stage="linear").

    indices: int [N], the samples' places in the dataset. sizes: int [N, 2], their heights and widths in pixels. stage:
    one of the recipe's, or another training's policies.
    """
    policies = stage if isinstance(stage, Policies) else policies_of(Recipe.of(recipe), stage)
    indices, sizes = np.asarray(indices), np.asarray(sizes, np.int64)

    def units(view: int | np.ndarray, operations: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return uniform(words(seed, policies.stream, epoch=epoch, indices=samples, view=view, operation=operations))

    once = units(np.arange(len(policies.views))[:, None, None], np.array(DRAWN_ONCE)[:, None], indices)

    def view_draws(view: int, policy: View) -> ViewDraws:
        def further_tries(places: np.ndarray) -> np.ndarray:
            return units(view, CROP + np.arange(1, CROP_TRIES)[:, None], indices[places])

        return _view_draws(policy, dict(zip(DRAWN_ONCE, once[view], strict=True)), further_tries, sizes)

    drawn = tuple(view_draws(view, policy) for view, policy in enumerate(policies.views))
    return Draws(drawn, tuple(policies.views), policies.plain)


def _view_draws(policy: View, drawn: Mapping[int, np.ndarray], further_tries, sizes: np.ndarray) -> ViewDraws:
    """drawn: each operation's numbers in [0, 1), float64 [N, 4]. further_tries: see `_crop_boxes`."""
    count = len(sizes)
    jitter, blur, solarize = policy.jitter, policy.blur, policy.solarize
    jitters, factors, order = _jitter_draws(jitter, drawn) if jitter else _no_jitter(count)
    return ViewDraws(
        sizes=sizes,
        boxes=_crop_boxes(policy.crop, drawn[CROP], further_tries, sizes),
        flip=drawn[FLIP][:, 0] < policy.flip,
        jitter=jitters,
        factors=factors,
        order=order,
        grayscale=drawn[GRAYSCALE][:, 0] < policy.grayscale,
        sigma=_blur_sigmas(blur, drawn[BLUR]) if blur else np.zeros(count, np.float32),
        solarize=drawn[SOLARIZE][:, 0] < (solarize.p if solarize else 0.0),
    )


def _jitter_draws(jitter: Jitter, drawn: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    applies = drawn[JITTER][:, 0] < jitter.p
    order = JITTER_ORDERS[(drawn[JITTER][:, 1] * len(JITTER_ORDERS)).astype(np.int64)]
    spread = np.array([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    factors = centre + spread * (2 * drawn[JITTER_FACTORS] - 1)
    return applies, np.where(applies[:, None], factors, centre).astype(np.float32), order


def _no_jitter(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    neutral = np.tile(np.array([1, 1, 1, 0], np.float32), (count, 1))
    return np.zeros(count, bool), neutral, np.tile(JITTER_ORDERS[0], (count, 1))


def _blur_sigmas(blur: Blur, drawn: np.ndarray) -> np.ndarray:
    low, high = blur.sigma
    sigma = low + (high - low) * drawn[:, 1]
    return np.where(drawn[:, 0] < blur.p, sigma, 0.0).astype(np.float32)


def _crop_boxes(
    crop: Crop, first_try: np.ndarray, further_tries: Callable[[np.ndarray], np.ndarray], sizes: np.ndarray
) -> np.ndarray:
    """torchvision's rule: up to ten tries of a random area and aspect ratio, the first that fits in the image wins.

    first_try: numbers in [0, 1), float64 [N, 4]. further_tries: those of the other tries, [tries, M, 4], for the few
    samples at M places that need them.
    """
    found, tried = _tried_boxes(crop, first_try[None], sizes)
    boxes = np.where(found[:, None], tried, _central_boxes(crop.ratio, sizes))
    again = np.flatnonzero(~found)
    if len(again):
        found, tried = _tried_boxes(crop, further_tries(again), sizes[again])
        boxes[again[found]] = tried[found]
    return boxes


def _tried_boxes(crop: Crop, tries: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which images have a try that fits, bool [N], and the first such box of each, int64 [N, 4]."""
    heights, widths = sizes.T
    area = heights * widths * _between(crop.scale, tries[..., 0])
    ratio = _log_uniform(crop.ratio, tries[..., 1])
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= widths) & (height > 0) & (height <= heights)
    top = np.floor(tries[..., 2] * (heights - height + 1))
    left = np.floor(tries[..., 3] * (widths - width + 1))
    boxes = np.stack([top, left, height, width], axis=-1).astype(np.int64)
    return fits.any(axis=0), boxes[fits.argmax(axis=0), np.arange(len(sizes))]


def _central_boxes(ratio: Sequence[float], sizes: np.ndarray) -> np.ndarray:
    """The largest central crop whose aspect ratio lies in `ratio`."""
    heights, widths = sizes[:, 0], sizes[:, 1]
    aspect = widths / heights
    width = np.where(aspect > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    height = np.where(aspect < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


def _between(bounds: Sequence[float], unit: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def _log_uniform(bounds: Sequence[float], unit: np.ndarray) -> np.ndarray:
    # The bounds' logarithms are rounded to float32, so that a last digit in which mathematics libraries differ is gone.
    low, high = (float(np.float32(math.log(bound))) for bound in bounds)
    return _exp(_between((low, high), unit))


def _exp(x: np.ndarray) -> np.ndarray:
    """The exponential function from additions and multiplications alone, to 1e-15 relative for |x| <= 4.

    IEEE 754 fixes their results to the bit; NumPy's own exp differs between instruction sets in the last digit.
    """
    small, total = x / 8, np.ones_like(x)
    for term in range(16, 0, -1):
        total = 1 + small * total / term
    for _ in range(3):
        total = total * total
    return total
