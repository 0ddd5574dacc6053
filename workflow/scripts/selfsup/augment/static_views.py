"""Views of a batch as one sequence of operators, the same on the same shapes whatever was drawn.

`selfsup.augment.views` gives every operation the pictures that it applies to, so its operators and shapes change from
step to step. Here every picture goes through every operation, with neutral parameters where one does not apply to it:
so a step can be compiled as one graph, and takes a few large kernels instead of hundreds of small ones. Run operator by
operator on a CPU both give the same bits; compiled, fused kernels round otherwise in the last digits.

Colour jitter is four adjustments in a drawn order. Hue, the expensive one, is done once, in the middle: of the three
others those that come before it stand in three places before, the rest in three places behind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from selfsup.augment.colour import Floats
from selfsup.augment.draws import Draws, ViewDraws
from selfsup.augment.resampling import resample, resize_matrix
from selfsup.augment.settings import View
from selfsup.augment.views import JITTERS, OPERATIONS, RESIZED, blur_by, gain_and_shift, in_working_range, view_sizes
from selfsup.recipe import Recipe

# Columns of the packed parameters.
PICTURE, TOP, LEFT, HEIGHT, WIDTH, FLIP, JITTER, HUE, GRAYSCALE, SIGMA, SOLARIZE, NUMBERS = range(12)
PLACES = 3  # before the hue, and as many behind it
FACTORS = NUMBERS + 2 * PLACES
COLUMNS = FACTORS + 2 * PLACES
NOTHING, HUE_NUMBER = 4, 3  # beside brightness 0, contrast 1, saturation 2
NEVER = 2.0  # a threshold that no pixel reaches
MOST_PICTURES = 2**24  # float32 holds whole numbers so far


def packed(draws: Draws, pictures: np.ndarray) -> np.ndarray:
    """Return what was drawn for a batch's views: float32 [views, N, COLUMNS].

    pictures: int [N], the place of each image in what the views are made from, below MOST_PICTURES.
    """
    views = zip(draws.views, draws.policies, strict=True)
    return np.stack([_packed_view(view, policy, pictures) for view, policy in views])


def _packed_view(view: ViewDraws, policy: View, pictures: np.ndarray) -> np.ndarray:
    blob = np.empty((len(view.flip), COLUMNS), np.float32)
    blob[:, PICTURE], blob[:, TOP : WIDTH + 1], blob[:, FLIP] = pictures, view.boxes, view.flip
    blob[:, JITTER], blob[:, HUE], blob[:, GRAYSCALE] = view.jitter, view.factors[:, HUE_NUMBER], view.grayscale
    blob[:, SIGMA] = view.sigma
    blob[:, SOLARIZE] = np.where(view.solarize, policy.solarize.threshold if policy.solarize else NEVER, NEVER)
    numbers = _around_the_hue(view)
    factors = np.concatenate([view.factors[:, :HUE_NUMBER], np.ones((len(blob), 2), np.float32)], axis=1)
    blob[:, NUMBERS:FACTORS] = numbers
    blob[:, FACTORS:] = np.take_along_axis(factors, numbers, axis=1)
    return blob


def _around_the_hue(view: ViewDraws) -> np.ndarray:
    """Return which adjustments stand in the places before and behind the hue, int64 [N, 2 PLACES]."""
    reached = np.cumsum(view.order == HUE_NUMBER, axis=1) > 0  # from the hue on
    before = np.where(reached[:, :PLACES], NOTHING, view.order[:, :PLACES])
    behind = np.where(reached[:, :PLACES], view.order[:, 1:], NOTHING)
    return np.where(view.jitter[:, None], np.concatenate([before, behind], axis=1), NOTHING)


@dataclass(frozen=True)
class _Alike:
    """Views of one size, made together, and what any of their policies asks for. blurs: each view's, if it has one."""

    views: list[int]
    size: int
    jitters: bool
    grays: bool
    solarizes: bool
    blurs: list[Callable | None]
    one_blur: bool

    @classmethod
    def of(cls, policies: Sequence[View], views: list[int], size: int, colours: type[Floats]) -> "_Alike":
        own = [policies[view] for view in views]
        return cls(
            views,
            size,
            jitters=any(policy.jitter is not None for policy in own),
            grays=any(policy.grayscale > 0 for policy in own),
            solarizes=any(policy.solarize is not None for policy in own),
            blurs=[None if policy.blur is None else blur_by(policy.blur, colours) for policy in own],
            one_blur=len({_blur_alone(policy) for policy in own}) == 1,
        )


def _blur_alone(policy: View) -> tuple | None:
    """Return what says how a policy blurs, but not how many pictures."""
    blur = policy.blur
    return None if blur is None else (blur.kernel, blur.padding, *blur.sigma)


class StaticViews:
    """The views that policies ask for, as a function of pictures and packed parameters on one device."""

    def __init__(self, recipe: Mapping, policies: Sequence[View], device: torch.device):
        self._augment = Recipe.of(recipe).augment
        self._colours, self._resized = OPERATIONS[self._augment.quantize], RESIZED[self._augment.quantize]
        self._gain, self._shift = gain_and_shift(self._augment, device)
        sizes = view_sizes(policies, self._augment)
        together = {size: [view for view, one in enumerate(sizes) if one == size] for size in dict.fromkeys(sizes)}
        self._parts = [_Alike.of(policies, views, size, self._colours) for size, views in together.items()]
        for part in self._parts:  # what a blur keeps between batches is made here, so that the first is like the others
            blank = torch.zeros(len(part.views), 3, part.size, part.size, device=device)
            self._all_blurred(blank, torch.ones(len(part.views), device=device), part)

    @property
    def pixels(self) -> int:
        """Of all views of an image together."""
        return sum(len(part.views) * part.size**2 for part in self._parts)

    def of_images(self, images: torch.Tensor, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return float32 [N, 3, size, size] for each view, normalised.

        images: uint8 [images, 3, H, W]; parameters: float32 [views, N, COLUMNS], as `packed` returns them.
        """
        return self._made(parameters, lambda part, rows: self._cropped(images, rows, part.size))

    def of_crops(self, crops: Sequence[torch.Tensor], parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the same from what was cropped, resized and flipped before: for each view [N, 3, size, size]."""

        def taken(part: _Alike, _: torch.Tensor) -> torch.Tensor:
            chosen = torch.cat([crops[view] for view in part.views]).float()
            return in_working_range(chosen, self._resized, self._augment)

        return self._made(parameters, taken)

    def _made(self, parameters: torch.Tensor, cropped: Callable) -> tuple[torch.Tensor, ...]:
        made = {}
        for part in self._parts:
            rows = torch.cat([parameters[view] for view in part.views])
            pictures = self._finished(cropped(part, rows), rows, part)
            made.update(zip(part.views, pictures.chunk(len(part.views)), strict=True))
        return tuple(made[view] for view in range(len(made)))

    def _cropped(self, images: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
        """Cut crops out of images of one size, resize and flip them: as `views.crop_batch` does."""
        (height, width), gain = images.shape[2:], self._resized.top / 255
        chosen = images.index_select(0, rows[:, PICTURE].long()).float()
        down = resize_matrix(rows[:, TOP], rows[:, HEIGHT], height, size, self._augment, gain=gain)
        mirrored = rows[:, FLIP] > 0
        across = resize_matrix(rows[:, LEFT], rows[:, WIDTH], width, size, self._augment, mirrored=mirrored)
        made = self._resized.rounded(resample(chosen, down, across, self._resized.between_passes))
        return in_working_range(made, self._resized, self._augment)

    def _finished(self, x: torch.Tensor, rows: torch.Tensor, part: _Alike) -> torch.Tensor:
        """Do what follows crop and flip, and normalise. What no policy asks for is left out."""
        if part.jitters:
            x = self._jittered(x, rows)
        if part.grays:
            x = torch.where(_column(rows[:, GRAYSCALE] > 0), self._colours.grey(x), x)
        x = self._all_blurred(x, rows[:, SIGMA], part)
        if part.solarizes:
            x = self._colours.solarize(x, rows[:, SOLARIZE])
        return x * self._gain - self._shift

    def _jittered(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        named, turns = JITTERS.get(self._augment.jitter_operations), rows[:, HUE]
        for place in range(2 * PLACES):
            if place == PLACES:
                turned = self._colours.with_hue(x, turns) if named is None else named[HUE_NUMBER](x, turns)
                x = torch.where(_column(rows[:, JITTER] > 0), turned, x)
            number, factor = rows[:, NUMBERS + place], rows[:, FACTORS + place]
            x = self._mixed(x, number, factor) if named is None else _one_of(named, x, number, factor)
        return x

    def _mixed(self, x: torch.Tensor, number: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """Take pictures away from black, their mean grey or their grey: brightness, contrast or saturation."""
        number, grey = _column(number), self._colours.grey(x)
        dull = torch.where(number == 1, self._colours.mean_of(grey), torch.where(number == 2, grey, 0.0))
        return self._colours.bounded((x - dull).mul_(_column(factor)).add_(dull))

    def _all_blurred(self, x: torch.Tensor, sigma: torch.Tensor, part: _Alike) -> torch.Tensor:
        if part.one_blur:
            return _blurred(x, sigma, part.blurs[0])
        pieces = zip(x.chunk(len(part.blurs)), sigma.chunk(len(part.blurs)), part.blurs, strict=True)
        return torch.cat([_blurred(piece, own, blur) for piece, own, blur in pieces])


def _blurred(x: torch.Tensor, sigma: torch.Tensor, blur: Callable | None) -> torch.Tensor:
    """Blur the pictures whose sigma is not 0."""
    if blur is None:
        return x
    blurs = sigma > 0
    return torch.where(_column(blurs), blur(x, torch.where(blurs, sigma, 1.0)), x)


def _one_of(named: Sequence[Callable], x: torch.Tensor, number: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Adjust each picture by the one of brightness, contrast and saturation that has its number."""
    for own, adjust in enumerate(named[:HUE_NUMBER]):
        x = torch.where(_column(number == own), adjust(x, torch.where(number == own, factor, 1.0)), x)
    return x


def _column(one_each: torch.Tensor) -> torch.Tensor:
    return one_each.view(-1, 1, 1, 1)
