"""What a recipe says of augmentation (paper, section 6.4)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from selfsup.settings.notes import Bounds, Count, Length, Range, RGBOfDataset, Share
from selfsup.settings.typed import Settings, since

Interpolation = Literal["bicubic", "bilinear"]


def disordered(**ranges: list[float]) -> Iterator[str]:
    """Yield what is wrong with ranges whose first number is the larger one."""
    for key, (low, high) in ranges.items():
        if low > high:
            yield f"{key} is [{low}, {high}], wanted the smaller number first"


class Crop(Settings):
    scale: Range
    """share of the image's area"""
    ratio: Range
    """width over height"""

    def problems(self) -> Iterator[str]:
        yield from disordered(scale=self.scale, ratio=self.ratio)


class Jitter(Settings):
    p: Share
    """share of the pictures that are jittered"""
    brightness: Share
    """factors are drawn from 1 - this to 1 + this"""
    contrast: Share
    """as brightness"""
    saturation: Share
    """as brightness"""
    hue: Annotated[float, Bounds(at_least=0, at_most=0.5)]
    """largest turn of the hue circle, either way"""


class Blur(Settings):
    p: Share
    """share of the pictures that are blurred"""
    kernel: Count | None
    """pixels, odd, of a Gaussian; null: Pillow's GaussianBlur, three box blurs that together have that variance"""
    sigma: Range
    """pixels; for Pillow's blur, its radius"""
    padding: Literal["reflect", "zero", "edge"]
    """what lies beyond the border; edge, Pillow's: the border's pixels again"""

    def problems(self) -> Iterator[str]:
        if self.kernel is not None and self.kernel % 2 == 0:
            yield f"kernel is {self.kernel}, wanted an odd number"
        yield from disordered(sigma=self.sigma)


class Solarize(Settings):
    p: Share
    """share of the pictures that are solarised"""
    threshold: Share
    """values at or above it are inverted; the full range is 1"""


class View(Settings):
    """Operations in this order: crop, flip, jitter, greyscale, blur, solarise, normalise."""

    size: ClassVar[int | None] = None  # the linear evaluation's view has augment.size

    crop: Crop
    flip: Share
    """share of the pictures that are mirrored"""
    jitter: Jitter | None
    """null: no colour jitter"""
    grayscale: Share
    """share of the pictures that become grey"""
    blur: Blur | None
    """null: no blur"""
    solarize: Solarize | None
    """null: no solarisation"""


class SizedView(View):
    size: Count | None = since(None)
    """pixels of this view's side; null: augment.size"""


class Plain(Settings):
    """The unaugmented picture: resized, cut out of the middle, normalised; nothing is drawn for it."""

    resize: Count | None
    """pixels of the shorter side before the centre crop; null: the picture as it is"""
    crop: Count
    """pixels of the centre crop's side"""
    interpolation: Interpolation
    """of the resize"""

    def problems(self) -> Iterator[str]:
        if self.resize is not None and self.crop > self.resize:
            yield f"crop is {self.crop}, larger than the resized picture of {self.resize}"


class Augment(Settings):
    size: Count
    """pixels of a view's side"""
    interpolation: Interpolation
    """of the random resized crop"""
    antialias: bool
    """whether the kernel grows when a picture is made smaller"""
    quantize: Literal["none", "crop", "uint8"]
    """what is rounded to 8 bits: uint8: the result of every operation, as on PIL pictures; crop: resized pictures, so
    that loaders send a quarter of the bytes to the device; none: nothing"""
    jitter_operations: Literal["torchvision", "official", "simclr_v2"] = since("torchvision")
    """official: brightness is added, contrast is about each channel's mean, saturation is HSV's; simclr_v2: the same,
    but brightness is multiplied"""
    mean: RGBOfDataset
    """mean of the dataset's channels, 0 to 1, which is subtracted; dataset: as packing has measured it"""
    std: RGBOfDataset
    """standard deviation of the dataset's channels, 0 to 1, which divides; dataset: as packing has measured it"""
    views: Annotated[list[SizedView], Length(1)]
    """one augmentation policy per view of an image"""
    plain: Plain | None = since(None)
    """the unaugmented picture, for a method that needs it beside its views; null: none is made"""

    def problems(self) -> Iterator[str]:
        if self.jitter_operations != "torchvision" and self.quantize != "none":
            kind = self.jitter_operations
            yield f"jitter_operations is {kind!r}, which works on floats: set augment.quantize: none"
