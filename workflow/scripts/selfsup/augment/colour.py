"""Colour operations on a batch: float32 pictures [n, 3, H, W], factors [n], changed in place where that is quicker.

Two sets of them. `Floats` works in [0, 1] as torchvision does on float tensors, clamped after every operation.
`Bytes` holds whole numbers 0 to 255 and does what Pillow does to 8-bit pictures, to the digit: the paper's pipeline.
"""

from collections.abc import Iterator

import torch

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, torchvision's digits
GREY_BYTES = (19595, 38470, 7471)  # the same in 1/65536: Pillow's convert("L")


class Floats:
    """Pictures in [0, 1]."""

    top = 1.0

    @staticmethod
    def bounded(x: torch.Tensor) -> torch.Tensor:
        """Bring what left the range back, in place."""
        return x.clamp_(0, 1)

    rounded = bounded  # after a resize or a blur
    between_passes = None  # of a resize

    @staticmethod
    def grey(x: torch.Tensor) -> torch.Tensor:
        """Return the luma, [n, 1, H, W]."""
        return (x[:, 0:1] * GREY[0]).add_(x[:, 1:2], alpha=GREY[1]).add_(x[:, 2:3], alpha=GREY[2])

    @classmethod
    def as_grey(cls, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return cls.grey(x).expand_as(x)

    @staticmethod
    def mean_of(grey: torch.Tensor) -> torch.Tensor:
        """Return the mean of a luma over each picture, [n, 1, 1, 1]."""
        return grey.mean((2, 3), keepdim=True)

    @classmethod
    def brightness(cls, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return cls.bounded(x.mul_(_column(factor)))

    @classmethod
    def contrast(cls, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return cls._away_from(x, cls.mean_of(cls.grey(x)), factor)

    @classmethod
    def saturation(cls, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return cls._away_from(x, cls.grey(x), factor)

    @classmethod
    def _away_from(cls, x: torch.Tensor, dull: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return cls.bounded(x.sub_(dull).mul_(_column(factor)).add_(dull))

    @classmethod
    def hue(cls, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Turn the hue (HSV's) by a share of the circle; value and saturation stay."""
        for channel, (value, lowered) in enumerate(cls._turned_channels(x, turns)):
            torch.sub(value, lowered, out=x[:, channel])
        return x

    @classmethod
    def with_hue(cls, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Return what `hue` makes of pictures that stay as they are."""
        return torch.stack([value - lowered for value, lowered in cls._turned_channels(x, turns)], dim=1)

    @classmethod
    def _turned_channels(cls, x: torch.Tensor, turns: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield HSV's value, and how far each channel is below it: a trapezium over the hue, times the chroma."""
        value, chroma, sextant = cls._hue_sextant(x)
        sextant.add_(turns.mul(6).view(-1, 1, 1)).remainder_(6)
        for start in (0.0, -2.0, -4.0):
            # min(k, 4 - k) cut to [0, 1], of period 6 in k.
            yield value, (sextant + start).abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma)

    @staticmethod
    def _hue_sextant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return HSV's value, chroma and hue in sixths of the circle, -1 to 5: [n, H, W] each."""
        # torch.where and comparisons are several times slower on a CPU than these. Where two channels are the largest,
        # both formulas give the same hue, up to whole turns.
        red, green, blue, value, chroma = _chroma(x)
        divisor = chroma.clamp_min(1e-12)
        below_red, below_green, below_blue = ((value - channel).div_(divisor) for channel in (red, green, blue))
        sextant = below_blue - below_green
        sextant.lerp_((below_red - below_blue).add_(2), _is_zero(below_green))
        sextant.lerp_((below_green - below_red).add_(4), _is_zero(below_blue))
        return value, chroma, sextant

    @classmethod
    def solarize(cls, x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """Invert what is at or above the threshold, a share of the range."""
        return torch.where(x >= _column(threshold), 1 - x, x)


class Bytes(Floats):
    """Pictures of whole numbers 0 to 255, in float32. Pillow cuts off fractions in jitter, rounds in the rest."""

    top = 255.0

    @staticmethod
    def bounded(x: torch.Tensor) -> torch.Tensor:
        return x.clamp_(0, 255).floor_()

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.add_(0.5).floor_().clamp_(0, 255)

    between_passes = rounded  # Pillow keeps 8 bits there too

    @staticmethod
    def grey(x: torch.Tensor) -> torch.Tensor:
        red, green, blue = (x[:, c : c + 1] * weight for c, weight in enumerate(GREY_BYTES))
        return red.add_(green).add_(blue).add_(32768).div_(65536).floor_()  # all below 2**24: exact in float32

    @staticmethod
    def mean_of(grey: torch.Tensor) -> torch.Tensor:
        total = grey.double().sum((2, 3), keepdim=True)  # whole numbers: exact
        return (total / (grey.shape[2] * grey.shape[3]) + 0.5).floor_().float()

    @classmethod
    def hue(cls, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Through Pillow's 8-bit HSV, its single and double precision; the shift is whole 255ths and wraps at 256."""
        value, chroma, sextant = cls._hue_sextant(x)
        hue = _to_single(sextant.double().div_(6).add_(1).remainder_(1)).mul_(255).floor_()
        saturation = _to_single((chroma / value.clamp_min(1)).double().mul_(255).floor_().div_(255))
        shift = (turns.double() * 255).trunc_().view(-1, 1, 1)
        place = hue.add_(shift).remainder_(256).mul_(6).div_(255)
        sector = place.floor()
        part = _to_single(place.sub_(sector))
        chosen = {
            "v": value,
            "p": _rounded_share(value, 1 - saturation),
            "q": _rounded_share(value, 1 - saturation * part),
            "t": _rounded_share(value, 1 - saturation * (1 - part)),
        }
        sector.remainder_(6)
        for channel, names in enumerate(_SECTORS):
            plane = value
            for number, name in enumerate(names):
                plane = torch.where(sector == number, chosen[name], plane)
            x[:, channel] = plane
        return x

    @classmethod
    def with_hue(cls, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        return cls.hue(x.clone(), turns)

    @staticmethod
    def _hue_sextant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        red, green, blue, value, chroma = _chroma(x)
        divisor = torch.where(chroma == 0, 1.0, chroma)
        below_red, below_green, below_blue = ((value - channel).div_(divisor) for channel in (red, green, blue))
        from_red = below_blue - below_green
        from_green = (below_red.double() + 2 - below_blue).float()
        from_blue = (below_green.double() + 4 - below_red).float()
        return value, chroma, torch.where(value == red, from_red, torch.where(value == green, from_green, from_blue))

    @classmethod
    def solarize(cls, x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        # 128 / 255 times 255 may miss 128 by a last digit, which would move the threshold by a whole grey level.
        return torch.where(x >= _column((threshold * 255).mul_(1e3).round_().div_(1e3)), 255 - x, x)


_SECTORS = ("vqpptv", "tvvqpp", "pptvvq")  # red, green, blue in each sixth of the hue circle, HSV's textbook rule


def _chroma(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return a picture's channels, the largest of them, and how far the smallest is below it: [n, H, W] each."""
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    return red, green, blue, value, value - torch.minimum(torch.minimum(red, green), blue)


def _is_zero(x: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where x is 0 and 0.0 where it is larger than the smallest quotient of two floats in [0, 1]."""
    return (x * -1e30).add_(1).clamp_min_(0)


def _to_single(x: torch.Tensor) -> torch.Tensor:
    """Round to single precision and return doubles; x >= 0, float64.

    abs changes nothing. Without it torch's compiler takes a conversion there and back for none, and the hue of one
    pixel in 200 is another 255th.
    """
    return x.float().abs_().double()


def _rounded_share(value: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return (value * share).add_(0.5).floor_().float()


def _column(factor: torch.Tensor) -> torch.Tensor:
    return factor.view(-1, 1, 1, 1)
