"""Each operation of a batch against its original, one picture at a time, with the same parameters.

`quantize: none` against torchvision on float tensors; `quantize: uint8` against Pillow, which the paper's authors used.
"""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow
from torchvision.transforms.v2 import functional as tensors

from selfsup.augment.colour import Bytes, Floats
from selfsup.augment.resampling import blur, resample, resize_matrix, three_boxes
from selfsup.augment.settings import Augment
from selfsup.recipe import load_recipe

COUNT, HEIGHT, WIDTH = 48, 40, 52
MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng()  # fresh at every run


@pytest.fixture(scope="module")
def pictures(random) -> torch.Tensor:
    """Noise, smooth pictures, greys and black, white and saturated ones: uint8 [48, 3, 40, 52]."""
    noise = torch.from_numpy(random.integers(0, 256, (COUNT, 3, HEIGHT, WIDTH), np.uint8))
    coarse = torch.from_numpy(random.integers(0, 256, (16, 3, 5, 7), np.uint8))
    noise[:16] = tensors.resize(coarse, [HEIGHT, WIDTH], interpolation=InterpolationMode.BICUBIC)
    noise[16:20] = noise[16:20, :1]
    noise[20:28] = noise[20:28] // 128 * 255
    return noise


@pytest.fixture(scope="module")
def factors(random) -> torch.Tensor:
    return torch.from_numpy(random.uniform(0.4, 1.6, COUNT).astype(np.float32))


@pytest.fixture(scope="module")
def turns(random) -> torch.Tensor:
    return torch.from_numpy(random.uniform(-0.5, 0.5, COUNT).astype(np.float32))


COLOURS = {
    "brightness": (pillow.adjust_brightness, tensors.adjust_brightness),
    "contrast": (pillow.adjust_contrast, tensors.adjust_contrast),
    "saturation": (pillow.adjust_saturation, tensors.adjust_saturation),
    "hue": (pillow.adjust_hue, tensors.adjust_hue),
    "as_grey": (lambda p, _: pillow.rgb_to_grayscale(p, 3), lambda p, _: tensors.rgb_to_grayscale(p, 3)),
    "solarize": (lambda p, _: ImageOps.solarize(p, 128), lambda p, _: tensors.solarize(p, 128 / 255)),
}


def arguments(name: str, factors: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    return {"hue": turns, "solarize": torch.full((COUNT,), 128 / 255)}.get(name, factors)


def by_pillow(pictures: torch.Tensor, change) -> torch.Tensor:
    changed = (change(Image.fromarray(p.permute(1, 2, 0).numpy()), n) for n, p in enumerate(pictures))
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1).float() for p in changed])


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_operation_is_torchvisions_on_floats(name, pictures, factors, turns):
    values = arguments(name, factors, turns)
    ours = getattr(Floats, name)(pictures.float() / 255, values)
    theirs = torch.stack([COLOURS[name][1](p / 255, float(v)) for p, v in zip(pictures, values, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_operation_on_bytes_is_pillows_to_the_digit(name, pictures, factors, turns):
    values = arguments(name, factors, turns)
    ours = getattr(Bytes, name)(pictures.float(), values)
    assert torch.equal(ours, by_pillow(pictures, lambda p, n: COLOURS[name][0](p, float(values[n]))))


def boxes(random) -> np.ndarray:
    height, width = random.integers(1, HEIGHT + 1, COUNT), random.integers(1, WIDTH + 1, COUNT)
    top, left = random.integers(0, HEIGHT - height + 1), random.integers(0, WIDTH - width + 1)
    return np.stack([top, left, height, width], axis=1)


def resizing(antialias: bool, interpolation: str) -> Augment:
    """A recipe's block that resizes so."""
    return load_recipe("cifar10", {"augment": {"antialias": antialias, "interpolation": interpolation}}).augment


def cut(pictures: torch.Tensor, box: np.ndarray, size: int, augment: Augment, between=None) -> torch.Tensor:
    top, left, height, width = torch.from_numpy(box.astype(np.float32)).unbind(1)
    rows = resize_matrix(top, height, pictures.shape[2], size, augment)
    columns = resize_matrix(left, width, pictures.shape[3], size, augment)
    return resample(pictures, rows, columns, between)


@pytest.mark.parametrize("size", [7, 32, 64])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", MODES)
def test_a_crop_is_torchvisions_on_floats(interpolation, antialias, size, pictures, random):
    box = boxes(random)
    ours = cut(pictures / 255, box, size, resizing(antialias, interpolation))
    settings = {"size": [size, size], "interpolation": MODES[interpolation], "antialias": antialias}
    theirs = [tensors.resized_crop(p / 255, *map(int, b), **settings) for p, b in zip(pictures, box, strict=True)]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("interpolation", MODES)
def test_a_crop_on_bytes_is_pillows_up_to_rounding(interpolation, pictures, random):
    """Pillow's weights have 22 bits, ours 24: a value close to a half, of which simple ratios of the sizes give many,
    may round to its neighbour, or, rounded between the passes and amplified by the second, to the next. The paper's
    Pillow began with the columns, as ours do; new ones begin with the rows where that is cheaper.
    """
    box, augment = boxes(random), resizing(True, interpolation)
    columns_first = Bytes.rounded(cut(pictures.float(), box, 32, augment, Bytes.between_passes))
    turned = cut(pictures.float().transpose(2, 3), box[:, [1, 0, 3, 2]], 32, augment, Bytes.between_passes)
    theirs = by_pillow(pictures, lambda p, n: pillow.resized_crop(p, *map(int, box[n]), [32, 32], MODES[interpolation]))
    either = [(ours - theirs).abs() for ours in (columns_first, Bytes.rounded(turned).transpose(2, 3))]
    largest = torch.stack([difference.amax((1, 2, 3)) for difference in either])
    assert largest.amin(0).max() <= 2
    assert (largest[0] <= 2).float().mean() > 0.5
    difference = torch.where((largest[0] <= 2).view(-1, 1, 1, 1), *either)
    assert (difference > 0).float().mean() < 0.2  # cut off instead of rounded: half of them


@pytest.mark.parametrize("kernel", [3, 23])
def test_a_blur_is_torchvisions(kernel, pictures, random):
    sigma = torch.from_numpy(random.uniform(0.1, 2.0, COUNT).astype(np.float32))
    floats = [
        tensors.gaussian_blur(p / 255, [kernel] * 2, [float(s)] * 2) for p, s in zip(pictures, sigma, strict=True)
    ]
    torch.testing.assert_close(blur(pictures / 255, sigma, kernel, "reflect"), torch.stack(floats), rtol=0, atol=5e-6)
    ours = Bytes.rounded(blur(pictures.float(), sigma, kernel, "reflect"))
    theirs = by_pillow(pictures, lambda p, n: pillow.gaussian_blur(p, [kernel] * 2, [float(sigma[n])] * 2))
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 1e-3


def test_three_boxes_are_pillows_blur(pictures, random):
    """On bytes to the digit but where a sum is close to a half, for Pillow cuts its weights to 24 bits: one grey level
    in a thousandth of the pixels, or two where the next passes go on from it. On floats, which Pillow does not blur, up
    to what it rounds away in six passes: three levels at most, and 0.56 in the mean, that of six independent roundings,
    where a narrow blur evens none of them out.
    """
    sigma = torch.from_numpy(random.uniform(0.1, 2.0, COUNT).astype(np.float32))
    sigma[:4] = torch.tensor([0.1, 2.0, 2**0.5, 1.4])  # the ends; about where the box gets its next whole pixel
    theirs = by_pillow(pictures, lambda p, n: p.filter(ImageFilter.GaussianBlur(float(sigma[n]))))
    ours = three_boxes(pictures.float(), sigma, 2.0, "edge", Bytes.rounded)
    assert (ours - theirs).abs().max() <= 2 and (ours != theirs).float().mean() < 5e-3
    floats = three_boxes(pictures / 255, sigma, 2.0, "edge", Floats.rounded) * 255
    assert (floats - theirs).abs().max() <= 3.01 and (floats - theirs).abs().mean() < 0.6


def test_three_boxes_have_together_the_variance_that_is_asked_for():
    """Of a single bright point far from the border: the sum stays 1, the second moment is sigma squared each way."""
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0])
    point = torch.zeros(5, 1, 41, 41)
    point[:, :, 20, 20] = 1
    spread = three_boxes(point, sigma, 4.0, "edge", lambda x: x).double()[:, 0]
    place = torch.arange(41) - 20
    assert spread.sum((1, 2)).sub(1).abs().max() < 1e-6
    for axis in (1, 2):
        moments = (spread.sum(axis) * place.square()).sum(1)
        torch.testing.assert_close(moments, sigma.double().square(), rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_the_whole_policy_gives_the_statistics_of_torchvisions_own_draws(random):
    """Means of 2,000 views each way, their own random draws: within seven standard errors of the difference, which
    eight comparisons leave by chance once in 1e10 runs.

    Of each view: mean, standard deviation, and the mean difference between neighbours, which blur and crop change.
    """
    from torchvision.transforms import v2

    from selfsup.augment import build_views

    recipe = load_recipe("cifar10", {"augment": {"mean": [0.0] * 3, "std": [1.0] * 3}})
    coarse = torch.from_numpy(random.integers(0, 256, (2000, 3, 6, 6), np.uint8))
    batch = tensors.resize(coarse, [32, 32], interpolation=InterpolationMode.BICUBIC)
    torch.manual_seed(int(random.integers(2**31)))
    ours = build_views(recipe, 32)(batch, seed=int(random.integers(2**31)), epoch=0, indices=np.arange(2000))
    for number, (blurred, solarized) in enumerate([(1.0, 0.0), (0.1, 0.2)]):
        policy = v2.Compose(
            [
                v2.ToDtype(torch.float32, scale=True),
                v2.RandomResizedCrop(32, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.Lambda(lambda picture: picture.clamp(0, 1)),
                v2.RandomHorizontalFlip(0.5),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], blurred),
                v2.RandomSolarize(0.5, solarized),
            ]
        )
        theirs = torch.stack([policy(picture) for picture in batch])
        for measure in (
            lambda x: x.mean((1, 2, 3)),
            lambda x: x.std((1, 2, 3)),
            lambda x: x.diff(dim=3).abs().mean((1, 2, 3)),
            lambda x: x.amax(1).sub(x.amin(1)).mean((1, 2)),
        ):
            a, b = measure(ours[number]).double(), measure(theirs).double()
            assert abs(a.mean() - b.mean()) < 7 * ((a.var() + b.var()) / 2000) ** 0.5
