"""Views of a batch: what was drawn on the host, done to the pictures, many at once and on any device.

Order of a view (paper, section 6.4, and the authors' code): crop, flip, jitter, greyscale, blur, solarise, normalise.
`quantize: none` works on floats in [0, 1], clamped where an operation can leave it; `crop` does too, but rounds resized
pictures to 8 bits, a quarter of the bytes from loader to device; `uint8` keeps whole numbers 0 to 255 after every
operation, as the authors' Pillow pictures did.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from selfsup.augment import official_jitter, resampling
from selfsup.augment.colour import Bytes, Floats
from selfsup.augment.draws import Draws, ViewDraws, draw
from selfsup.augment.resampling import resample, resize_matrix
from selfsup.augment.settings import Augment, Blur, Plain, View
from selfsup.augment.transfer import sent
from selfsup.recipe import Recipe

INTERPOLATION = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
OPERATIONS = {"none": Floats, "crop": Floats, "uint8": Bytes}
RESIZED = {"none": Floats, "crop": Bytes, "uint8": Bytes}
JITTERS = {"official": official_jitter.OPERATIONS, "simclr_v2": official_jitter.SIMCLR_V2}  # beside torchvision's
ROWS_AT_ONCE = 128  # pictures of 32 pixels, on a CPU: what is worked on stays in its cache
PIXELS_AT_ONCE = ROWS_AT_ONCE * 32 * 32


@dataclass(frozen=True)
class Views:
    """The augmented pictures of a batch. Unpacks like the tuple of its images.

    images: one float32 tensor [N, 3, size, size] per view, normalised. parameters: what was drawn for them. plain: the
    unaugmented pictures, float32 [N, 3, crop, crop], normalised; None where the recipe wants none.
    """

    images: tuple[torch.Tensor, ...]
    parameters: Draws
    plain: torch.Tensor | None = None

    def __iter__(self):
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, view: int) -> torch.Tensor:
        return self.images[view]


def crop(image: torch.Tensor, draws: Draws, sample: int, *, augment: Mapping) -> tuple[torch.Tensor, ...]:
    """Cut the sample's crop out of an image, resize and flip it, for each view: for images of any size, one by one.

    image: uint8 [3, H, W]. sample: the image's place in `draws`. augment: the recipe's block of that name.
    Returns a tensor [3, size, size] per view: float32 in [0, 1] with `quantize: none`, else uint8.
    """
    augment = Augment.of(augment)
    sizes = view_sizes(draws.policies, augment)
    return tuple(_crop_view(image, view, sample, augment, size) for view, size in zip(draws.views, sizes, strict=True))


def crop_singly(
    images: Iterable[torch.Tensor], draws: Draws, *, augment: Mapping
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
    """Return what `apply` makes views of, from images of any size: each view's crops, and the unaugmented pictures.

    images: uint8 [3, H, W], as many as were drawn for. On one thread, so that the bits are the same in a loader's
    worker and in the process that trains.
    """
    augment, crops, plain = Augment.of(augment), [], []
    with one_thread():
        for sample, image in enumerate(images):
            crops.append(crop(image, draws, sample, augment=augment))
            if draws.plain:
                plain.append(_centred(image[None], draws.plain, augment))
    if not crops:  # a rank's part of a last batch that has fewer images than there are ranks
        none = tuple(map(_no_pictures, view_sizes(draws.policies, augment)))
        return none, draws.plain and _no_pictures(draws.plain.crop)
    return stack_crops(crops), torch.cat(plain) if plain else None


def crop_batch(images: torch.Tensor, rows: np.ndarray, views: ViewDraws, augment: Augment, size: int) -> torch.Tensor:
    """Do what `crop` does for images of one size, all at once: uint8 [N, 3, H, W] on any device.

    rows: int [M], the image of each crop; views: its parameters. Returns float32 [M, 3, size, size].
    """
    device, resized = images.device, RESIZED[augment.quantize]
    height, width = images.shape[2:]
    box = sent(views.boxes.astype(np.float32), device)
    top, left, crop_height, crop_width = box.unbind(1)
    mirrored = sent(views.flip, device)
    gain = resized.top / 255
    down = resize_matrix(top, crop_height, height, size, augment, gain=gain)
    across = resize_matrix(left, crop_width, width, size, augment, mirrored=mirrored)
    chosen = images.index_select(0, sent(rows, device)).float()
    return in_working_range(resized.rounded(resample(chosen, down, across, resized.between_passes)), resized, augment)


def plain_crops(images: torch.Tensor, plain: Plain, augment: Augment) -> torch.Tensor:
    """Return the unaugmented pictures of images of one size, uint8 [N, 3, H, W], as `crop_singly` does."""
    with one_thread():
        return _centred(images, plain, augment).contiguous()  # a worker would hand over what it is a part of


def apply(recipe: Mapping, crops: Sequence, draws: Draws, plain: torch.Tensor | None = None) -> Views:
    """Apply everything after crop and flip, and normalise.

    crops: for each view a tensor [N, 3, size, size] on any device, or for each sample what `crop` returned. plain: the
    unaugmented pictures, as `crop_singly` returns them, on the same device.
    """
    if crops and isinstance(crops[0], tuple):
        crops = stack_crops(crops)
    augment = Recipe.of(recipe).augment
    resized = RESIZED[augment.quantize]

    def alike(views: list[int], size: int) -> tuple[torch.Tensor, ...]:
        pictures = torch.cat([crops[view] for view in views])

        def taken(rows: np.ndarray, _: ViewDraws) -> torch.Tensor:
            chosen = pictures.index_select(0, sent(rows, pictures.device)).float()
            return in_working_range(chosen, resized, augment)

        return _finish(augment, draws.of(views), size, pictures.device, taken)

    return Views(_by_size(draws, augment, alike), draws, finished_plain(plain, augment))


def augment_batch(recipe: Mapping, images: torch.Tensor, draws: Draws, plain: torch.Tensor | None = None) -> Views:
    """Return the views of images of one size: uint8 [N, 3, H, W], on the device that is to make them.

    plain: as for `apply`; without it the unaugmented pictures, where the recipe wants them, are cut from the images.
    """
    augment = Recipe.of(recipe).augment
    if plain is None and draws.plain:
        plain = plain_crops(images, draws.plain, augment)

    def alike(views: list[int], size: int) -> tuple[torch.Tensor, ...]:
        def cropped(rows: np.ndarray, parameters: ViewDraws) -> torch.Tensor:
            return crop_batch(images, rows % len(images), parameters, augment, size)

        return _finish(augment, draws.of(views), size, images.device, cropped)

    return Views(_by_size(draws, augment, alike), draws, finished_plain(plain, augment))


def stack_crops(crops: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Turn each sample's crops into each view's, [N, 3, size, size]."""
    return tuple(map(torch.stack, zip(*crops, strict=True)))


def build_views(recipe: Mapping, image_size: tuple[int, int] | int) -> Callable[..., Views]:
    """Return f(images uint8 [N, 3, H, W], *, seed, epoch, indices) -> Views, for images of one size."""
    recipe = Recipe.of(recipe)
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)

    def views(images: torch.Tensor, *, seed: int, epoch: int, indices: np.ndarray) -> Views:
        sizes = np.tile(size, (len(images), 1))
        return augment_batch(recipe, images, draw(recipe, seed=seed, epoch=epoch, indices=indices, sizes=sizes))

    return views


def centre_view(recipe: Mapping, images: Iterable[torch.Tensor], test: Plain | None = None) -> torch.Tensor:
    """Resize and crop test images as the linear protocol says (paper, section 6.5). Returns [N, 3, crop, crop].

    test: another way, with the same keys as `linear.test`. Neighbours of one size go together: the same bits, and for
    small pictures several times as fast.
    """
    recipe = Recipe.of(recipe)
    test, augment = test or recipe.linear.test, recipe.augment
    with one_thread():
        together = (torch.stack(tuple(alike)) for _, alike in groupby(images, key=lambda image: image.shape))
        pictures = [_centred(batch, test, augment) for batch in together]
    if not pictures:  # a rank's part of a last batch that has fewer images than there are ranks
        return _no_pictures(test.crop)
    return _normalise(in_working_range(torch.cat(pictures).float(), RESIZED[augment.quantize], augment), augment)


def _centred(images: torch.Tensor, how: Plain, augment: Augment) -> torch.Tensor:
    """Return images of one size, uint8 [N, 3, H, W], resized and cropped: [N, 3, crop, crop], not normalised.

    how: `augment.plain`, or `linear.test`, which has the same keys. Returns float32 in [0, 1] with `quantize: none`,
    else uint8.
    """
    if augment.quantize == "none":
        images = tv.to_dtype_image(images, torch.float32, scale=True)
    if how.resize is not None:
        mode = INTERPOLATION[how.interpolation]
        images = _in_range(tv.resize(images, [how.resize], interpolation=mode, antialias=augment.antialias))
    return tv.center_crop(images, [how.crop])


def finished_plain(pictures: torch.Tensor | None, augment: Augment) -> torch.Tensor | None:
    """Return unaugmented pictures, as `plain_crops` returns them, normalised."""
    if pictures is None:
        return None
    pictures = pictures.to(torch.float32, copy=True)  # what was given stays as it is
    return _normalise(in_working_range(pictures, RESIZED[augment.quantize], augment), augment)


@contextmanager
def one_thread():
    """Compute on one thread inside the block: a sum over many threads differs from it in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _crop_view(image: torch.Tensor, view: ViewDraws, sample: int, augment: Augment, size: int) -> torch.Tensor:
    top, left, height, width = map(int, view.boxes[sample])
    piece = tv.crop_image(image, top, left, height, width)
    if augment.quantize == "none":
        piece = tv.to_dtype_image(piece, torch.float32, scale=True)
    mode = INTERPOLATION[augment.interpolation]
    piece = _in_range(tv.resize_image(piece, [size, size], interpolation=mode, antialias=augment.antialias))
    return tv.horizontal_flip_image(piece) if view.flip[sample] else piece


def in_working_range(pictures: torch.Tensor, resized: type[Floats], augment: Augment) -> torch.Tensor:
    """Bring resized pictures, float32, to the range that the colour operations work in, in place."""
    gain = OPERATIONS[augment.quantize].top / resized.top
    return pictures if gain == 1 else pictures.mul_(gain)


def _in_range(picture: torch.Tensor) -> torch.Tensor:
    # Bicubic interpolation overshoots; on uint8 torchvision saturates by itself.
    return picture.clamp_(0, 1) if picture.is_floating_point() else picture


def _no_pictures(size: int) -> torch.Tensor:
    return torch.empty(0, 3, size, size)


def view_sizes(policies: Sequence[View], augment: Augment) -> list[int]:
    """Return the pixels of each view's side."""
    return [policy.size or augment.size for policy in policies]


def _by_size(
    draws: Draws, augment: Augment, alike: Callable[[list[int], int], tuple[torch.Tensor, ...]]
) -> tuple[torch.Tensor, ...]:
    """Return all views, made together with those of their size. alike: makes some views of one size."""
    sizes, made = view_sizes(draws.policies, augment), {}
    for size in dict.fromkeys(sizes):
        views = [view for view, one in enumerate(sizes) if one == size]
        made.update(zip(views, alike(views, size), strict=True))
    return tuple(made[view] for view in range(len(sizes)))


def _finish(
    augment: Augment,
    draws: Draws,
    size: int,
    device: torch.device,
    cropped: Callable[[np.ndarray, ViewDraws], torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Make views of one size, as rows of one tensor, view after view. cropped: returns the crops of some rows."""
    count, views = len(draws.views[0].flip), len(draws.views)
    together, view = draws.together(), np.repeat(np.arange(views), count)
    done = torch.empty(views * count, 3, size, size, device=device)

    def make(part: slice) -> None:
        passes = _passes(together.part(part), view[part], draws.policies, augment)
        places = _Arrangement(passes, part.stop - part.start, device)
        rows = part.start + places.first
        pictures = places.run(cropped(rows, together.part(rows)))
        done[part] = _normalise(pictures, augment)

    if device.type == "cpu":
        side_by_side(make, list(parts_of(len(done), max(1, PIXELS_AT_ONCE // size**2))))
    elif len(done):
        make(slice(0, len(done)))
    return tuple(done.view(views, count, *done.shape[1:]).unbind())


def parts_of(rows: int, step: int) -> Iterator[slice]:
    """Yield so many rows in pieces of `step`."""
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def side_by_side(make: Callable[[slice], None], parts: Sequence[slice]) -> None:
    """Make each part on one thread, as many parts at a time as torch has threads here.

    Threads that share an operation meet after each of the hundreds that a part takes: beside two loader workers on two
    cores that took three times as long. And so the bits do not depend on the number of threads.
    """
    threads = min(torch.get_num_threads(), len(parts))
    with one_thread():
        if threads <= 1:
            list(map(make, parts))
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(make, parts))


@dataclass(frozen=True)
class _Pass:
    """Operations that are done side by side, each on samples of its own; the rest of the samples stay as they are.

    operations: the operation, its samples (int64 [n]) and its argument for each of them (float32 [n]).
    """

    operations: list[tuple[Callable, np.ndarray, np.ndarray]]

    def order(self, count: int) -> np.ndarray:
        """Return the samples sorted by operation, int64 [count]."""
        touched = np.concatenate([chosen for _, chosen, _ in self.operations])
        rest = np.ones(count, bool)
        rest[touched] = False
        return np.concatenate([touched, np.flatnonzero(rest)])


class _Arrangement:
    """Runs passes over a batch that is sorted anew before each, so that every operation finds its samples in a row.

    One gather a pass instead of two a (small) operation; all indices and arguments reach the device in two copies.
    """

    def __init__(self, passes: list[_Pass], count: int, device: torch.device):
        self._passes = passes
        orders = [one.order(count) for one in passes]
        self.first = orders[0] if orders else np.arange(count)
        moves = [_move(old, new) for old, new in zip(orders, [*orders[1:], np.arange(count)], strict=False)]
        values = [argument for one in passes for _, _, argument in one.operations]
        self._moves = _sent(moves, device, np.int64)
        self._values = _sent(values, device, np.float32)

    def run(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the pictures, given in the order `first`, changed and in the samples' own order."""
        values = iter(self._values)
        for one, move in zip(self._passes, self._moves, strict=True):
            start = 0
            for operation, chosen, _ in one.operations:
                part = pictures[start : start + len(chosen)]
                changed = operation(part, next(values))
                if changed is not part:
                    part.copy_(changed)
                start += len(chosen)
            pictures = pictures.index_select(0, move)
        return pictures


def _move(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return where the samples of the order `new` lie in the order `old`."""
    place = np.empty_like(old)
    place[old] = np.arange(len(old))
    return place[new]


def _sent(arrays: list[np.ndarray], device: torch.device, kind: type) -> Sequence[torch.Tensor]:
    if not arrays:
        return ()
    together = sent(np.concatenate(arrays).astype(kind, copy=False), device)
    return together.split([len(array) for array in arrays])


def _passes(draws: ViewDraws, view: np.ndarray, policies: Sequence[View], augment: Augment) -> list[_Pass]:
    """Return what is to be done after the crop, in order. view: int [N], of each sample."""
    colours = OPERATIONS[augment.quantize]
    torchvisions = (colours.brightness, colours.contrast, colours.saturation, colours.hue)
    adjustments = JITTERS.get(augment.jitter_operations, torchvisions)

    def jitters(place: int) -> list[tuple]:
        chosen = [np.flatnonzero(draws.jitter & (draws.order[:, place] == number)) for number in range(4)]
        return [(adjust, chosen[n], draws.factors[chosen[n], n]) for n, adjust in enumerate(adjustments)]

    def in_view(number: int, applies: np.ndarray, operation: Callable, argument: np.ndarray) -> tuple:
        chosen = np.flatnonzero(applies & (view == number))
        return operation, chosen, argument[chosen]

    def blurs() -> Iterator[tuple]:
        for number, policy in enumerate(policies):
            if policy.blur:
                yield in_view(number, draws.sigma > 0, blur_by(policy.blur, colours), draws.sigma)

    def solarizes() -> Iterator[tuple]:
        for number, policy in enumerate(policies):
            if policy.solarize:
                threshold = np.full(len(view), policy.solarize.threshold, np.float32)
                yield in_view(number, draws.solarize, colours.solarize, threshold)

    grey = np.flatnonzero(draws.grayscale)
    greys = [(colours.as_grey, grey, np.zeros(len(grey), np.float32))]
    passes = [*map(jitters, range(draws.order.shape[1])), greys, [*blurs()], [*solarizes()]]
    needed = [_Pass([step for step in one if len(step[1])]) for one in passes]
    return [one for one in needed if one.operations]


def blur_by(blur: Blur, colours: type[Floats]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return f(pictures, sigma): a policy's blur, by more than 0 pixels for each picture."""

    def gaussian(pictures: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return colours.rounded(resampling.blur(pictures, sigma, blur.kernel, blur.padding))

    def boxes(pictures: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return resampling.three_boxes(pictures, sigma, blur.sigma[1], blur.padding, colours.rounded)

    return boxes if blur.kernel is None else gaussian


def _normalise(pictures: torch.Tensor, augment: Augment) -> torch.Tensor:
    """Bring pictures to the recipe's mean and standard deviation, in place."""
    gain, shift = gain_and_shift(augment, pictures.device)
    return pictures.mul_(gain).sub_(shift)


def gain_and_shift(augment: Augment, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what pictures are multiplied by, and what is then taken away, to be normalised: float32 [3, 1, 1] each."""
    return _gain_and_shift(tuple(augment.mean), tuple(augment.std), OPERATIONS[augment.quantize].top, device)


@lru_cache(maxsize=8)
def _gain_and_shift(mean: tuple, std: tuple, top: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    return (1 / (top * std)).float().to(device), (mean / std).float().to(device)
