"""Views of different sizes in one batch, the unaugmented picture beside them, and what was drawn as tensors."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_new_method import OVERRIDES, add_method

from selfsup.augment import apply, augment_batch, build_views, centre_view, crop, crop_singly, draw, transfer
from selfsup.augment.draws import ViewDraws
from selfsup.data import loader
from selfsup.data.loader import CPU, Batches, ViewMaker
from selfsup.data.preparing import prepare
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.methods import Batch
from selfsup.recipe import RecipeError, check_recipe, fingerprint, load_recipe, merge
from selfsup.settings.typed import plain as as_plain
from trees import write_tree

CLOSE = 1e-5  # of pixels divided by their standard deviation: float32's rounding in another order of sums
QUANTIZE = ["none", "crop", "uint8"]
SIZES = [None, 12, 20, 12]  # of four views; null is the recipe's 20
RAW = {"mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture(autouse=True)
def simsiam(monkeypatch):
    """A method that takes any number of views of any size; nothing here trains it."""
    add_method(monkeypatch)


def images(count, height=40, width=36, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8))


def recipe_of(sizes=(None, None), plain=None, quantize="none", **augment):
    """The tiny recipe with CIFAR-10's two policies in turn, one for each size."""
    base = load_recipe("digits", OVERRIDES)
    policies = load_recipe("cifar10")["augment"]["views"]
    views = [as_plain(policies[place % 2]) | {"size": size} for place, size in enumerate(sizes)]
    changes = {"size": 20, "views": views, "plain": plain, "quantize": quantize, **augment}
    return check_recipe(merge(base, {"augment": changes}), "a test")


def plain(resize=None, crop=24, interpolation="bilinear"):
    return {"resize": resize, "crop": crop, "interpolation": interpolation}


def drawn_for(recipe, batch):
    sizes = np.tile(batch.shape[2:], (len(batch), 1))
    return draw(recipe, seed=5, epoch=1, indices=np.arange(len(batch)), sizes=sizes)


def one_by_one(recipe, batch, draws):
    crops = [crop(image, draws, number, augment=recipe["augment"]) for number, image in enumerate(batch)]
    return apply(recipe, crops, draws)


def same_draws(one, other):
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for a, b in zip(one.views, other.views, strict=True)
        for field in fields(ViewDraws)
    )


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_without_a_size_a_view_is_what_it_was_before_there_were_sizes(quantize):
    """To the bit, and the run has the same name. Where each view states the recipe's size, the bits are the same."""
    silent = as_plain(recipe_of(quantize=quantize))
    for view in silent["augment"]["views"]:
        del view["size"]
    del silent["augment"]["plain"]
    silent, null, stated = (
        check_recipe(silent, "a test"),
        recipe_of(quantize=quantize),
        recipe_of((20, 20), None, quantize),
    )
    assert fingerprint(silent, 1) == fingerprint(null, 1) != fingerprint(stated, 1)
    batch = images(70)
    for make in (one_by_one, augment_batch):
        wanted, *others = (make(one, batch, drawn_for(one, batch)) for one in (silent, null, stated))
        assert wanted.plain is None and all(len(other) == 2 for other in others)
        assert all(torch.equal(a, b) for other in others for a, b in zip(wanted, other, strict=True))


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_a_view_among_those_of_other_sizes_is_what_it_is_alone(quantize):
    """One by one to the bit. As a batch its products have another shape: 8-bit crops may round to the next level."""
    several, batch = recipe_of(SIZES, quantize=quantize), images(70)
    draws = drawn_for(several, batch)
    singly, together = one_by_one(several, batch, draws), augment_batch(several, batch, draws)
    assert [tuple(view.shape) for view in together] == [(70, 3, size or 20, size or 20) for size in SIZES]
    for number, size in enumerate(SIZES):
        alone = recipe_of([size] * 4, quantize=quantize)
        assert same_draws(drawn_for(alone, batch), draws)
        assert torch.equal(singly[number], one_by_one(alone, batch, drawn_for(alone, batch))[number])
        found, wanted = together[number], augment_batch(alone, batch, drawn_for(alone, batch))[number]
        if quantize == "none":
            torch.testing.assert_close(found, wanted, rtol=0, atol=CLOSE)
        else:
            assert (found - wanted).abs().mean() < 2e-3


def test_a_size_changes_no_draw():
    batch = images(70)
    assert same_draws(drawn_for(recipe_of([12, 16]), batch), drawn_for(recipe_of(), batch))


def by_pillow(image, resize, crop, interpolation):
    """A picture's shorter side resized and its middle cut out, by Pillow on float32, in 255ths."""
    height, width = image.shape[1:]
    if resize is not None:
        short = min(height, width)
        height, width = (resize if side == short else int(resize * side / short) for side in (height, width))
    way = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    channels = [Image.fromarray(one).resize((width, height), way) for one in image.numpy().astype(np.float32)]
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    cut = [np.asarray(one)[top : top + crop, left : left + crop] for one in channels]
    return torch.from_numpy(np.stack(cut)).clamp(0, 255)


@pytest.mark.parametrize("how", [plain(), plain(30), plain(52, 48), plain(30, 24, "bicubic"), plain(52, 40, "bicubic")])
@pytest.mark.parametrize("quantize", QUANTIZE)
def test_the_unaugmented_picture_is_pillows_resize_and_centre_crop(how, quantize):
    """Larger and smaller, upright and lying: floats to 0.01 of 255, 8-bit pictures, rounded twice, to 1.5.

    Without black and white, which a cubic kernel overshoots, and 8-bit pictures do between the two passes as well.
    """
    recipe = recipe_of(plain=how, quantize=quantize, **RAW)
    for height, width in [(40, 36), (36, 45)]:
        batch = images(5, height, width) // 2 + 64
        draws = drawn_for(recipe, batch)
        crops, cut = crop_singly(batch, draws, augment=recipe["augment"])
        wanted = torch.stack([by_pillow(image, **how) for image in batch])
        for found in (augment_batch(recipe, batch, draws), apply(recipe, crops, draws, cut)):
            assert found.plain.dtype == torch.float32 and len(found) == 2
            assert (found.plain * 255 - wanted).abs().max() < (0.01 if quantize == "none" else 1.5)


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_the_unaugmented_picture_has_the_bits_of_a_test_picture(quantize):
    how = plain(30, 24, "bicubic")
    recipe = check_recipe(merge(recipe_of(plain=how, quantize=quantize), {"linear": {"test": how}}), "a test")
    batch = images(9)
    made = build_views(recipe, (40, 36))(batch, seed=0, epoch=0, indices=np.arange(9))
    assert torch.equal(made.plain, centre_view(recipe, batch))


@pytest.fixture
def encoded_store(tmp_path) -> PackedStore:
    """Twelve pictures of several sizes, 8 to 19 pixels a side."""
    write_tree(tmp_path / "tree", {"train": ["ant", "bee", "cat", "dog"], "test": ["ant"]})
    prepare("folder", tmp_path / "tree", tmp_path / "store")
    return PackedStore(tmp_path / "store")


HOW = {
    "as it is": plain(crop=8),
    "resized": plain(14, 12),
    "of the size that it has": plain(10, 9, "bicubic"),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("quantize", [pytest.param("none", marks=pytest.mark.long), "crop"])
@pytest.mark.parametrize("store", ["tiny_store", "encoded_store"])
def test_workers_and_memory_change_no_bit_of_views_and_unaugmented_pictures(store, quantize, how, request, monkeypatch):
    """Images on the device or carried to it, none or two loader workers: views alike, unaugmented as test pictures."""
    split = request.getfixturevalue(store).train
    recipe = recipe_of([8, 6], HOW[how], quantize)
    as_test = merge(recipe, {"linear": {"test": HOW[how]}}) if HOW[how]["resize"] else None
    make, found = ViewMaker(split, recipe, CPU), []
    for resident in (True, False):
        monkeypatch.setattr(loader, "fits_on", lambda *_, answer=resident: answer and split.raw is not None)
        batches = Batches(split, recipe, seed=0, stage="pretrain")
        for workers in (0, 2):
            found.append([(one, make(one)) for one in batches.read(1, 4, workers=workers, pin_memory=False)])
    for (batch, wanted), *others in zip(*found, strict=True):
        on_the_host = split.raw is None or how == "resized"  # else the device cuts it out of what it has
        assert (batch.plain is not None) == on_the_host
        assert [view.shape[-1] for view in wanted] == [8, 6] and wanted.plain.shape == (8, 3, *[HOW[how]["crop"]] * 2)
        for other, views in others:
            assert np.array_equal(other.indices, batch.indices) and torch.equal(views.plain, wanted.plain)
            assert all(map(torch.equal, views, wanted))
        if as_test:
            assert torch.equal(wanted.plain, centre_view(as_test, map(split.image, batch.indices)))


def test_making_views_twice_of_one_batch_gives_the_same_picture(encoded_store):
    recipe = recipe_of([8, 6], plain(14, 12))
    make, batch = (
        ViewMaker(encoded_store.train, recipe, CPU),
        Batches(encoded_store.train, recipe, seed=0, stage="pretrain")[0],
    )
    first = make(batch).plain.clone()
    assert torch.equal(make(batch).plain, first)


@pytest.mark.parametrize("store", ["tiny_store", "encoded_store"])
def test_who_does_not_ask_for_the_unaugmented_picture_gets_none(store, request):
    """No recipe without the key, and no linear evaluation, whose view has the recipe's size too."""
    split = request.getfixturevalue(store).train
    for recipe, stage in [(recipe_of([8, 6]), "pretrain"), (recipe_of([8, 6], plain(14, 12)), "linear")]:
        batch = Batches(split, recipe, seed=0, stage=stage)[0]
        views = ViewMaker(split, recipe, CPU)(batch)
        assert batch.plain is None and views.plain is None
        assert [view.shape[-1] for view in views] == ([20] if stage == "linear" else [8, 6])


def test_a_rank_without_images_gets_empty_views(encoded_store):
    recipe = recipe_of([8, 6], plain(14, 12))
    draws = draw(recipe, seed=0, epoch=0, indices=np.arange(0), sizes=np.zeros((0, 2), np.int64))
    crops, cut = crop_singly([], draws, augment=recipe["augment"])
    made = apply(recipe, crops, draws, cut)
    assert [tuple(view.shape) for view in made] == [(0, 3, 8, 8), (0, 3, 6, 6)] and made.plain.shape == (0, 3, 12, 12)
    assert draws.views[0].tensors(CPU)["boxes"].shape == (0, 4)


def test_sizes_that_cannot_be_are_told_in_one_line(tiny_store):
    with pytest.raises(RecipeError, match=r"augment.plain.crop is 24, larger than the resized picture of 20$"):
        recipe_of(plain=plain(20, 24))
    with pytest.raises(UserError, match=r"^augment.plain.crop is 12, but the smallest training image has a side"):
        Batches(tiny_store.train, recipe_of(plain=plain(crop=12)), seed=0, stage="pretrain")
    Batches(tiny_store.train, recipe_of(plain=plain(crop=12)), seed=0, stage="linear")
    with pytest.raises(RecipeError, match=r"augment.views have sizes 32 and 24, wanted one size for BYOL$"):
        load_recipe("cifar10", {"augment": {"views": {1: {"size": 24}}}})
    assert load_recipe("cifar10", {"augment": {"views": {0: {"size": 24}, 1: {"size": 24}}}})
    with pytest.raises(RecipeError, match=r"unknown key 'size' in linear.train_view"):
        check_recipe(merge_into_view(load_recipe("cifar10")), "a test")


def merge_into_view(recipe):
    recipe = as_plain(recipe)
    recipe["linear"]["train_view"]["size"] = 24
    return recipe


TYPES = {
    "sizes": torch.int64,
    "boxes": torch.int64,
    "flip": torch.bool,
    "jitter": torch.bool,
    "factors": torch.float32,
    "order": torch.int64,
    "grayscale": torch.bool,
    "sigma": torch.float32,
    "solarize": torch.bool,
}


def test_what_was_drawn_is_sent_by_name_in_one_copy_and_kept(monkeypatch):
    sent, copies = transfer.sent, []
    monkeypatch.setattr(transfer, "sent", lambda *given: copies.append(given) or sent(*given))
    draws = drawn_for(recipe_of(), images(71))
    for number, view in enumerate(draws.views, 1):
        found = view.tensors(CPU)
        assert {name: tensor.dtype for name, tensor in found.items()} == TYPES
        assert all(np.array_equal(found[name].numpy(), getattr(view, name)) for name in TYPES)
        assert view.tensors(CPU) is found and len(copies) == number
    half = draws.part(slice(30, 71)).views[1].tensors(CPU)
    assert torch.equal(half["factors"], draws.views[1].tensors(CPU)["factors"][30:]) and half["flip"].sum() > 0


def test_what_was_drawn_keeps_the_pictures_sizes():
    """In a part, in all views together, and on the way from a worker, which takes along nothing that was sent."""
    sizes = np.array([[30, 40], [50, 60], [70, 80]])
    draws = draw(recipe_of(plain=plain()), seed=0, epoch=0, indices=np.arange(3), sizes=sizes)
    before = len(pickle.dumps(draws))
    draws.views[0].tensors(CPU)
    arrived = pickle.loads(pickle.dumps(draws))
    assert len(pickle.dumps(draws)) == before and same_draws(arrived, draws) and arrived.plain == draws.plain
    for one in (draws, arrived):
        assert one.sizes.dtype == np.int64 and np.array_equal(one.sizes, sizes)
        assert np.array_equal(one.part(slice(1, 3)).sizes, sizes[1:])
        assert np.array_equal(one.together().sizes, np.concatenate([sizes, sizes]))
        tops, lefts, heights, widths = one.views[1].boxes.T
        assert ((tops + heights <= one.sizes[:, 0]) & (lefts + widths <= one.sizes[:, 1])).all()


def test_half_a_batch_carries_half_the_unaugmented_pictures():
    recipe, batch = recipe_of([8, 6], plain()), images(8)
    views = augment_batch(recipe, batch, drawn_for(recipe, batch))
    whole = Batch.of(views, np.arange(8), torch.arange(8))
    first, second = whole.chunk(2)
    assert torch.equal(torch.cat([first.plain, second.plain]), whole.plain) and whole.plain is views.plain
    assert [view.shape for view in second.views] == [(4, 3, 8, 8), (4, 3, 6, 6)]
    assert next(replace(whole, plain=None).chunk(2)).plain is None
