"""Views by the same operators in every step are, to the bit, those that every operation makes of its own pictures."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_new_method import OVERRIDES, add_method
from torch.utils._python_dispatch import TorchDispatchMode

from runs import on_cpu
from selfsup.augment import Draws, apply, augment_batch, crop_singly, draw
from selfsup.augment.static_views import StaticViews, packed
from selfsup.recipe import check_recipe, load_recipe, merge
from selfsup.settings.typed import plain as as_plain
from selfsup.training.static_step import compiled

RECIPES = sorted(path.stem for path in Path("workflow/recipes").glob("*.yaml"))
COUNT = 12


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Half of them smooth, half noise, one black and one grey: uint8 [count, 3, height, width]."""
    random = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (count, 3, height, width), generator=random, dtype=torch.uint8)
    coarse = torch.rand(count // 2, 3, 4, 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    noise[: count // 2] = (smooth * 255).byte()
    noise[0], noise[1] = 0, noise[1, :1]
    return noise


def drawn(recipe, images: torch.Tensor, epoch: int = 0) -> Draws:
    sizes = np.tile(images.shape[2:], (len(images), 1))
    draws = draw(recipe, seed=5, epoch=epoch, indices=np.arange(len(images)), sizes=sizes)
    return replace(draws, plain=None)


def static(recipe, draws: Draws, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parameters = torch.from_numpy(packed(draws, np.arange(len(images))))
    return StaticViews(recipe, draws.policies, images.device).of_images(images, parameters)


def check_equal(found, wanted) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.equal(other), float((one - other).abs().max())


@pytest.mark.parametrize("name", RECIPES)
def test_views_are_those_of_subsets_to_the_bit(name):
    """Every recipe's policies; large pictures are made smaller, but for more than one strip of a blur."""
    whole = load_recipe(name)
    size = min(whole["augment"]["size"], 40)
    changes = {"augment": {"size": size}}
    if whole["method"] == "equimod":
        changes |= {"equimod": {"parameters": "measured"}}
        changes["augment"] |= {"plain": {"resize": size, "crop": size}}
    recipe = load_recipe(name, changes)
    images = pictures(COUNT, size + 5, size + 2)
    for epoch in range(3):
        draws = drawn(recipe, images, epoch)
        check_equal(static(recipe, draws, images), augment_batch(recipe, images, draws).images)


UNLIKE = [
    {"size": 12, "jitter": None, "blur": {"p": 1.0}},
    {"size": 20, "blur": {"p": 0.5, "kernel": 5}, "solarize": {"p": 0.5}},
    {"size": 20, "blur": {"p": 0.5, "kernel": None, "padding": "edge"}, "solarize": {"p": 0.5, "threshold": 0.3}},
    {"size": 12, "grayscale": 1.0, "blur": None},
]


@pytest.mark.parametrize("quantize", ["none", "crop", "uint8"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_views_of_unlike_sizes_blurs_and_operations_too(monkeypatch, quantize, interpolation, antialias):
    add_method(monkeypatch)  # one that takes any number of views
    policy = as_plain(load_recipe("cifar10")["augment"]["views"][1])
    views = [merge(policy, own) for own in UNLIKE]
    ways = {"size": 20, "quantize": quantize, "interpolation": interpolation, "antialias": antialias}
    recipe = check_recipe(merge(load_recipe("digits", OVERRIDES), {"augment": {**ways, "views": views}}), "a test")
    images = pictures(COUNT, 33, 21)
    draws = drawn(recipe, images)
    check_equal(static(recipe, draws, images), augment_batch(recipe, images, draws).images)


@pytest.mark.parametrize("name", ["cifar10", "cifar10_authors", "cifar10_official", "imagenet"])
def test_views_of_crops_that_a_loader_has_made(name):
    recipe = load_recipe(name, {"augment": {"size": 16}})
    images = pictures(COUNT, 24, 30)
    draws = drawn(recipe, images)
    crops, _ = crop_singly(images, draws, augment=recipe["augment"])
    parameters = torch.from_numpy(packed(draws, np.arange(COUNT)))
    check_equal(
        StaticViews(recipe, draws.policies, images.device).of_crops(crops, parameters), apply(recipe, crops, draws)
    )


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants g++ for kernels of the processor")
@pytest.mark.parametrize(("name", "quantized"), [("cifar10", False), ("cifar10_authors", True)])
def test_compiled_views_are_those_of_operators_but_for_their_rounding(name, quantized):
    """Of pixels from 0 to 1, draws of six epochs: to 1e-6 if nothing is rounded to 8 bits.

    Where every operation rounds, as Pillow's do, no pixel was off. 0.1 % may be, by 3 levels: a sum whose order is
    another one, between two levels, is rounded to the other one, and jitter takes it further.
    """
    recipe = load_recipe(name, {"augment": {"size": 8}})
    images, deviation = pictures(COUNT, 12, 10), torch.tensor(recipe["augment"]["std"]).view(-1, 1, 1)
    views = StaticViews(recipe, drawn(recipe, images).policies, images.device)
    compiled_views, apart = compiled(views.of_images, on_cpu()), []
    for epoch in range(6):
        parameters = torch.from_numpy(packed(drawn(recipe, images, epoch), np.arange(COUNT)))
        both = zip(compiled_views(images, parameters), views.of_images(images, parameters), strict=True)
        apart += [((one - other) * deviation).abs() for one, other in both]
    apart = torch.stack(apart)
    off = float((apart > 1e-6).double().mean())
    assert off <= (0.001 if quantized else 0)
    assert float(apart.max()) <= (3.1 / 255 if quantized else 1e-6)


class Operators(TorchDispatchMode):
    """Notes each operator with the shapes and types of its tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [
            one for one in torch.utils._pytree.tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor)
        ]
        self.seen.append((str(function), *((tuple(one.shape), one.dtype) for one in tensors)))
        return made


@pytest.mark.parametrize("name", ["cifar10", "cifar10_authors", "cifar10_official", "moco_v3_digits"])
def test_operators_and_shapes_are_the_same_whatever_was_drawn(name):
    """Draws of four epochs, and ones in which no operation applies or all do."""
    recipe = load_recipe(name, {"augment": {"size": 16}})
    images = pictures(COUNT, 16, 16)
    views, sequences = None, []
    for epoch in range(4):
        draws = drawn(recipe, images, epoch)
        never, always = (
            (replace(one, jitter=one.jitter * 0 > 0, sigma=one.sigma * 0) for one in draws.views),
            draws.views,
        )
        draws = replace(draws, views=tuple(never) if epoch == 1 else always)
        views = views or StaticViews(recipe, draws.policies, images.device)
        with Operators() as operators:
            views.of_images(images, torch.from_numpy(packed(draws, np.arange(COUNT))))
        sequences.append(operators.seen)
    assert len(sequences[0]) > 50
    assert all(sequence == sequences[0] for sequence in sequences)
