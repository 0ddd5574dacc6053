"""The colour jitter of the JAX release against its equations, restated in float64, HSV by Python's colorsys."""

import colorsys

import numpy as np
import pytest
import torch

from selfsup.augment import build_views, draw, official_jitter
from selfsup.recipe import load_recipe


def restated_brightness(picture, factor):
    return np.clip(picture + (factor - 1), 0, 1)


def restated_contrast(picture, factor):
    means = picture.mean(axis=(1, 2), keepdims=True)
    return np.clip(factor * (picture - means) + means, 0, 1)


def through_hsv(picture, change):
    """Each pixel to HSV and back by Python's colorsys."""
    flat = picture.reshape(3, -1).T
    return np.array([colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in flat]).T.reshape(
        picture.shape
    )


def restated_saturation(picture, factor):
    return np.clip(through_hsv(picture, lambda h, s, v: (h, min(max(s * factor, 0), 1), v)), 0, 1)


def restated_hue(picture, turns):
    return np.clip(through_hsv(picture, lambda h, s, v: ((h + turns) % 1, s, v)), 0, 1)


RESTATED = (restated_brightness, restated_contrast, restated_saturation, restated_hue)
# SimCLR's release, version 2: color_jitter(impl="simclrv2") of its data_util.py.
SIMCLR_V2 = (lambda picture, factor: np.clip(picture * factor, 0, 1), *RESTATED[1:])
KINDS = {"official": (official_jitter.OPERATIONS, RESTATED), "simclr_v2": (official_jitter.SIMCLR_V2, SIMCLR_V2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", range(4))
def test_each_operation_follows_its_equation(operation, kind):
    ours, restated = KINDS[kind]
    random = np.random.default_rng()
    pictures = random.random((6, 3, 5, 7))
    pictures[0, :, 0] = 0.5  # grey: no hue, no saturation
    pictures[0, :, 1] = 0.0
    pictures[0, :, 2] = 1.0
    pictures[1, 1] = pictures[1, 0]  # two channels alike
    factors = random.uniform(-0.5, 0.5, 6) if operation == 3 else random.uniform(0.2, 1.8, 6)
    found = ours[operation](torch.from_numpy(pictures), torch.from_numpy(factors)).numpy()
    wanted = np.stack([restated[operation](*pair) for pair in zip(pictures, factors, strict=True)])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipes_pictures_are_jittered_so_in_the_drawn_order(kind):
    """Views of pictures as large as the crop, with all else switched off, are the jittered pictures."""
    still = {"crop": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]}, "flip": 0.0, "grayscale": 0.0, "blur": None}
    view = {
        **still,
        "solarize": None,
        "jitter": {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    }
    augment = {"size": 8, "mean": [0.0] * 3, "std": [1.0] * 3, "jitter_operations": kind, "views": [view, view]}
    recipe = load_recipe("cifar10", {"augment": augment, "linear": {"test": {"crop": 8}}})
    images = torch.from_numpy(np.random.default_rng().integers(0, 256, (20, 3, 8, 8), np.uint8))
    settings = {"seed": 3, "epoch": 1, "indices": np.arange(20)}
    found = build_views(recipe, 8)(images, **settings)[0]
    drawn = draw(recipe, sizes=np.tile(8, (20, 2)), **settings).views[0]
    assert len({tuple(order) for order in drawn.order}) > 5
    for sample in range(20):
        wanted = images[sample].numpy() / 255
        for operation in drawn.order[sample]:
            wanted = KINDS[kind][1][operation](wanted, float(drawn.factors[sample, operation]))
        np.testing.assert_allclose(found[sample].numpy(), wanted, rtol=0, atol=1e-5)  # float32 through four operations


def test_it_is_another_jitter_than_torchvisions():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32), np.uint8))
    settings = {"seed": 0, "epoch": 0, "indices": np.arange(16)}
    ours, theirs = (
        build_views(load_recipe("cifar10", {"augment": {"jitter_operations": kind}}), 32)(images, **settings)[0]
        for kind in ("official", "torchvision")
    )
    changed = (ours - theirs).abs().amax((1, 2, 3)) > 1e-3
    jittered = draw(load_recipe("cifar10"), sizes=np.tile(32, (16, 2)), **settings).views[0].jitter
    assert np.array_equal(changed.numpy(), jittered)
