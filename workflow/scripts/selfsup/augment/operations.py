"""The augmentations themselves: torchvision's operators, one image at a time, with the parameters drawn beforehand.

Order of a view (paper, section 6.4, and the authors' code): crop, flip, jitter, greyscale, blur, solarise, normalise.
`quantize: none` works on floats in [0, 1], clamped where an operation can leave it; `quantize: uint8` rounds to 8 bits
after every operation, as the authors' PIL pictures did.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from selfsup.augment.draws import Draws, ViewDraws, draw

INTERPOLATION = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


@dataclass(frozen=True)
class Views:
    """The augmented pictures of a batch. Unpacks like the tuple of its images.

    images: one float32 tensor [N, 3, size, size] per view, normalised. parameters: what was drawn for them.
    """

    images: tuple[torch.Tensor, ...]
    parameters: Draws

    def __iter__(self):
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, view: int) -> torch.Tensor:
        return self.images[view]

    def to(self, device: torch.device) -> "Views":
        """Return the views on a device."""
        return Views(tuple(image.to(device, non_blocking=True) for image in self.images), self.parameters)

    def chunk(self, parts: int) -> Iterator["Views"]:
        """Yield the batch in equal parts."""
        count = len(self.images[0])
        for rows in np.arange(count).reshape(parts, -1):
            part = slice(rows[0], rows[-1] + 1)
            yield Views(tuple(image[part] for image in self.images), self.parameters.part(part))


def crop(image: torch.Tensor, draws: Draws, sample: int, *, augment: Mapping) -> tuple[torch.Tensor, ...]:
    """Cut the sample's crop out of an image and resize it, for each view.

    image: uint8 [3, H, W]. sample: the image's place in `draws`. augment: the recipe's block of that name.
    Returns a tensor [3, size, size] per view: float32 in [0, 1], or uint8 with `quantize: uint8`.
    """
    return tuple(_crop_view(image, view, sample, augment) for view in draws.views)


def apply(recipe: Mapping, crops: Sequence[tuple[torch.Tensor, ...]], draws: Draws) -> Views:
    """Apply everything after the crop. crops: one tuple of views per sample, as `crop` returns it."""
    augment = recipe["augment"]
    images = []
    for number, (view, policy) in enumerate(zip(draws.views, draws.policies, strict=True)):
        pictures = [_change(crops[sample][number], view, sample, policy) for sample in range(len(crops))]
        images.append(normalise(pictures, augment))
    return Views(tuple(images), draws)


def augment_batch(recipe: Mapping, images: Iterable[torch.Tensor], draws: Draws) -> Views:
    """Return the views of a batch of images, uint8 [3, H, W] each, sizes may differ.

    Runs on one thread, so that a view's bits do not depend on how many threads the caller computes with.
    """
    with one_thread():
        crops = [crop(image, draws, sample, augment=recipe["augment"]) for sample, image in enumerate(images)]
        return apply(recipe, crops, draws)


def build_views(recipe: Mapping, image_size: tuple[int, int] | int) -> Callable[..., Views]:
    """Return f(images uint8 [N, 3, H, W], *, seed, epoch, indices) -> Views, for images of one size."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)

    def views(images: torch.Tensor, *, seed: int, epoch: int, indices: np.ndarray) -> Views:
        sizes = np.tile(size, (len(images), 1))
        return augment_batch(recipe, images, draw(recipe, seed=seed, epoch=epoch, indices=indices, sizes=sizes))

    return views


def centre_view(recipe: Mapping, images: Iterable[torch.Tensor]) -> torch.Tensor:
    """Resize and crop test images as the linear protocol says (paper, section 6.5). Returns [N, 3, crop, crop]."""
    test, augment = recipe["linear"]["test"], recipe["augment"]
    mode = INTERPOLATION[test["interpolation"]]
    with one_thread():
        resized = (
            tv.resize(
                _to_working_type(image, augment), [test["resize"]], interpolation=mode, antialias=augment["antialias"]
            )
            for image in images
        )
        return normalise([tv.center_crop(_clamp(picture), [test["crop"]]) for picture in resized], augment)


def normalise(pictures: Sequence[torch.Tensor], augment: Mapping) -> torch.Tensor:
    """Stack pictures, uint8 or float in [0, 1], into one normalised float32 [N, 3, H, W]."""
    if not pictures:  # a rank's part of a last batch that has fewer images than there are ranks
        return torch.empty(0, 3, augment["size"], augment["size"])
    stacked = tv.to_dtype(torch.stack(list(pictures)), torch.float32, scale=True)
    return tv.normalize(stacked, augment["mean"], augment["std"], inplace=True)


@contextmanager
def one_thread():
    """Compute on one thread inside the block: a sum over many threads differs from it in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _crop_view(image: torch.Tensor, view: ViewDraws, sample: int, augment: Mapping) -> torch.Tensor:
    top, left, height, width = map(int, view.boxes[sample])
    piece = _to_working_type(tv.crop_image(image, top, left, height, width), augment)
    mode = INTERPOLATION[augment["interpolation"]]
    size = [augment["size"], augment["size"]]
    return _clamp(tv.resize_image(piece, size, interpolation=mode, antialias=augment["antialias"]))


def _change(picture: torch.Tensor, view: ViewDraws, sample: int, policy: Mapping) -> torch.Tensor:
    if view.flip[sample]:
        picture = tv.horizontal_flip_image(picture)
    if view.jitter[sample]:
        picture = _jitter(picture, view.factors[sample], view.order[sample])
    if view.grayscale[sample]:
        picture = tv.rgb_to_grayscale_image(picture, num_output_channels=3)
    if view.sigma[sample] > 0:
        picture = _blur(picture, float(view.sigma[sample]), policy["blur"])
    if view.solarize[sample]:
        threshold = policy["solarize"]["threshold"]
        # 128 / 255 times 255 may miss 128 by a last digit, which would move the threshold by a whole grey level.
        picture = tv.solarize_image(picture, threshold if picture.is_floating_point() else round(threshold * 255, 6))
    return picture


def _jitter(picture: torch.Tensor, factors: np.ndarray, order: np.ndarray) -> torch.Tensor:
    adjustments = (
        tv.adjust_brightness_image,
        tv.adjust_contrast_image,
        tv.adjust_saturation_image,
        tv.adjust_hue_image,
    )
    for operation in order:
        picture = adjustments[operation](picture, float(factors[operation]))
    return picture


def _blur(picture: torch.Tensor, sigma: float, blur: Mapping) -> torch.Tensor:
    size, border = [blur["kernel"]] * 2, blur["kernel"] // 2
    if blur["padding"] == "reflect":  # torchvision's own
        return tv.gaussian_blur_image(picture, size, [sigma, sigma])
    padded = tv.gaussian_blur_image(pad(picture, [border] * 4), size, [sigma, sigma])
    return padded[..., border:-border, border:-border] if border else padded


def _to_working_type(image: torch.Tensor, augment: Mapping) -> torch.Tensor:
    return image if augment["quantize"] == "uint8" else tv.to_dtype_image(image, torch.float32, scale=True)


def _clamp(picture: torch.Tensor) -> torch.Tensor:
    # Bicubic interpolation overshoots; on uint8 torchvision saturates by itself.
    return picture.clamp_(0, 1) if picture.is_floating_point() else picture
