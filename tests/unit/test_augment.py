import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tv

from selfsup.augment import apply, augment_batch, build_views, centre_view, crop, draw
from selfsup.augment.draws import JITTER_ORDERS, _exp
from selfsup.methods import Batch
from selfsup.recipe import check_recipe, load_recipe, merge

CLOSE = 1e-5  # of pixels divided by their standard deviation: float32's rounding in another order of sums
SIZES = np.tile([40, 60], (4000, 1))


@pytest.fixture(scope="module")
def draws():
    return draw(load_recipe("cifar10"), seed=3, epoch=1, indices=np.arange(4000), sizes=SIZES)


def images(count, height=24, width=20, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8))


def plain_view(**changes):
    view = {
        "crop": {"scale": [1.0, 1.0], "ratio": [1.0, 1.0]},
        "flip": 0.0,
        "jitter": None,
        "grayscale": 0.0,
        "blur": None,
        "solarize": None,
    }
    return {**view, **changes}


def with_view(**changes):
    """CIFAR-10's recipe with one policy for both views: nothing but what `changes` say."""
    return load_recipe("cifar10", {"augment": {"views": [plain_view(**changes)] * 2}})


def with_augment(recipe, **changes):
    """The same recipe with other values of its block `augment`."""
    return check_recipe(merge(recipe, {"augment": changes}), "a test")


UNSCALED = {"mean": [0.0] * 3, "std": [1.0] * 3}


def same_draws(one, other):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one.views, other.views, strict=True)
        for name in vars(a)
    )


def test_a_draw_depends_on_no_other_sample_of_the_batch(draws):
    chosen = np.array([17, 3999, 0])
    alone = draw(load_recipe("cifar10"), seed=3, epoch=1, indices=chosen, sizes=SIZES[chosen])
    picked = [type(view)(**{name: value[chosen] for name, value in vars(view).items()}) for view in draws.views]
    assert same_draws(alone, type(draws)(tuple(picked), draws.policies))


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 2}, {"indices": np.arange(1, 4001)}])
def test_a_draw_changes_with_seed_epoch_and_sample(draws, change):
    settings = {"seed": 3, "epoch": 1, "indices": np.arange(4000), **change}
    other = draw(load_recipe("cifar10"), sizes=SIZES, **settings)
    assert (other.views[0].boxes != draws.views[0].boxes).any(axis=1).mean() > 0.9


def test_the_views_of_an_image_are_drawn_independently(draws):
    first, second = draws.views
    assert (first.boxes != second.boxes).any(axis=1).mean() > 0.9
    assert (first.flip == second.flip).mean() == pytest.approx(0.5, abs=0.04)
    assert abs(np.corrcoef(first.boxes[:, 2], second.boxes[:, 2])[0, 1]) < 0.08  # five standard errors


def test_a_new_operation_changes_no_old_draw(draws):
    changed = {"blur": None, "solarize": {"p": 1.0, "threshold": 0.5}}
    recipe = with_augment(load_recipe("cifar10"), views={0: changed})
    other = draw(recipe, seed=3, epoch=1, indices=np.arange(4000), sizes=SIZES)
    for name in ("boxes", "flip", "jitter", "factors", "order", "grayscale"):
        assert np.array_equal(getattr(other.views[0], name), getattr(draws.views[0], name))


def test_shares_and_ranges_are_those_of_the_policy(draws):
    """4000 samples: a share p has a standard error of at most 0.008; five of them are allowed."""
    first, second = draws.views
    for found, wanted in [
        (first.flip, 0.5),
        (first.jitter, 0.8),
        (first.grayscale, 0.2),
        (first.sigma > 0, 1.0),
        (first.solarize, 0.0),
        (second.sigma > 0, 0.1),
        (second.solarize, 0.2),
    ]:
        assert found.mean() == pytest.approx(wanted, abs=0.04)
    factors = first.factors[first.jitter]
    spread = np.array([0.4, 0.4, 0.2, 0.1])
    assert np.abs(factors - [1, 1, 1, 0]).max(axis=0) == pytest.approx(spread, rel=0.01)
    assert factors.mean(axis=0) == pytest.approx([1, 1, 1, 0], abs=0.02)
    assert np.array_equal(first.factors[~first.jitter], np.tile(np.float32([1, 1, 1, 0]), (sum(~first.jitter), 1)))
    assert first.sigma.min() >= 0.1 and first.sigma.max() <= 2.0
    assert {tuple(order) for order in first.order} == {tuple(order) for order in JITTER_ORDERS}


def test_crops_follow_torchvisions_distribution(draws):
    """Areas and ratios against 4000 crops of torchvision's own rule: means within five standard errors."""
    torch.manual_seed(0)
    picture = torch.empty(3, 40, 60)
    theirs = np.array([RandomResizedCrop.get_params(picture, (0.2, 1.0), (3 / 4, 4 / 3))[2:] for _ in range(4000)])
    ours = draws.views[0].boxes[:, 2:].astype(float)
    for measure in (lambda h, w: h * w / 2400, lambda h, w: np.log(w / h)):
        a, b = measure(*ours.T), measure(*theirs.astype(float).T)
        error = math.sqrt(a.var() / 4000 + b.var() / 4000)
        assert abs(a.mean() - b.mean()) < 5 * error
        assert a.std() == pytest.approx(b.std(), rel=0.08)


def test_crops_lie_in_the_image_with_area_and_ratio_in_range(draws):
    for view in draws.views:
        top, left, height, width = view.boxes.T
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 40).all() and (left + width <= 60).all()
        share = height * width / 2400
        assert share.min() > 0.18 and share.max() <= 1
        assert (width / height).min() > 0.7 and (width / height).max() < 1.43


def test_an_image_in_which_no_crop_fits_is_cropped_in_the_middle():
    recipe = with_view(crop={"scale": [1.0, 1.0], "ratio": [0.75, 4 / 3]})
    boxes = draw(recipe, seed=0, epoch=0, indices=np.arange(2), sizes=np.array([[10, 100], [100, 10]])).views[0].boxes
    assert boxes.tolist() == [[0, 43, 10, 13], [43, 0, 13, 10]]


def test_exp_from_basic_operations_is_exact_to_the_last_digits():
    x = np.random.default_rng(0).uniform(-4, 4, 10_000)
    assert np.abs(_exp(x) / np.exp(x) - 1).max() < 4e-15


def test_without_operations_a_view_is_the_resized_image():
    recipe, picture = with_view(), images(1, 48, 48)[0]
    views = build_views(recipe, 48)(picture[None], seed=0, epoch=0, indices=np.array([0]))
    mode = v2.InterpolationMode.BICUBIC
    wanted = tv.resize(tv.to_dtype(picture, torch.float32, scale=True), [32, 32], interpolation=mode, antialias=True)
    wanted = tv.normalize(wanted.clamp(0, 1), recipe["augment"]["mean"], recipe["augment"]["std"])
    first, second = views
    torch.testing.assert_close(first[0], wanted, rtol=0, atol=CLOSE)
    assert torch.equal(first[0], second[0])


def test_every_operation_changes_the_picture_as_torchvision_does():
    jitter = {"p": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    blur = {"p": 1.0, "kernel": 3, "sigma": [0.1, 2.0], "padding": "reflect"}
    policy = {"flip": 1.0, "jitter": jitter, "grayscale": 0.0, "blur": blur, "solarize": {"p": 1.0, "threshold": 0.5}}
    recipe, batch = with_view(**policy), images(6, 32, 32)
    drawn = draw(recipe, seed=1, epoch=0, indices=np.arange(6), sizes=np.tile([32, 32], (6, 1)))
    ours = augment_batch(recipe, batch, drawn)
    view = drawn.views[0]
    for sample in range(6):
        picture = tv.horizontal_flip(tv.to_dtype(batch[sample], torch.float32, scale=True))
        functions = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
        for operation in view.order[sample]:
            picture = functions[operation](picture, float(view.factors[sample, operation]))
        picture = tv.gaussian_blur(picture, [3, 3], [float(view.sigma[sample])] * 2)
        picture = tv.normalize(tv.solarize(picture, 0.5), recipe["augment"]["mean"], recipe["augment"]["std"])
        torch.testing.assert_close(ours[0][sample], picture, rtol=0, atol=CLOSE)


def test_grayscale_leaves_one_value_per_pixel():
    recipe = with_augment(with_view(grayscale=1.0), **UNSCALED)
    view = build_views(recipe, (24, 20))(images(2), seed=0, epoch=0, indices=np.arange(2))[0]
    assert torch.equal(view[:, 0], view[:, 1]) and torch.equal(view[:, 0], view[:, 2])


def test_blur_with_zero_padding_darkens_the_border_only():
    blur = {"p": 1.0, "kernel": 5, "sigma": [1.0, 1.0]}
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    means = {}
    for padding in ("reflect", "zero"):
        recipe = with_augment(with_view(blur={**blur, "padding": padding}), **UNSCALED)
        means[padding] = build_views(recipe, 32)(white, seed=0, epoch=0, indices=np.arange(1))[0][0, 0]
    torch.testing.assert_close(means["reflect"], torch.ones(32, 32))
    torch.testing.assert_close(means["zero"][2:-2, 2:-2], torch.ones(28, 28))
    kernel = np.exp(-0.5 * np.arange(-2, 3) ** 2)
    wanted = (kernel[2:].sum() / kernel.sum()) ** 2
    assert means["zero"][0, 0].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("quantize", ["none", "uint8"])
def test_a_recipe_may_ask_for_pillows_blur(quantize):
    """A view that only blurs is what Pillow makes of the picture with the radius that was drawn."""
    blur = {"p": 1.0, "kernel": None, "sigma": [0.1, 2.0], "padding": "edge"}
    recipe = with_augment(with_view(blur=blur), **{**UNSCALED, "quantize": quantize})
    pictures = torch.from_numpy(np.random.default_rng().integers(0, 256, (6, 3, 32, 32), np.uint8))
    views = build_views(recipe, 32)(pictures, seed=0, epoch=0, indices=np.arange(6))
    for picture, ours, sigma in zip(pictures, views[0], views.parameters.views[0].sigma, strict=True):
        drawn = Image.fromarray(picture.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(float(sigma)))
        wanted = torch.from_numpy(np.array(drawn)).permute(2, 0, 1) / 255
        assert (ours - wanted).abs().max() * 255 <= (2 if quantize == "uint8" else 3) + 1e-3


def test_uint8_rounds_after_every_operation_and_stays_near_the_floats():
    recipe = with_augment(load_recipe("cifar10"), **UNSCALED)
    batch, indices = images(16, 32, 32), np.arange(16)
    floats = build_views(recipe, 32)(batch, seed=0, epoch=0, indices=indices)[0]
    recipe = with_augment(recipe, quantize="uint8")
    rounded = build_views(recipe, 32)(batch, seed=0, epoch=0, indices=indices)[0]
    torch.testing.assert_close(rounded * 255, (rounded * 255).round(), rtol=0, atol=1e-4)
    assert 0 < (rounded - floats).abs().mean() < 0.02


def test_only_the_crop_is_rounded_when_the_recipe_says_so():
    recipe = with_augment(with_view(), **UNSCALED, quantize="crop")
    crops = build_views(recipe, 48)(images(4, 48, 48), seed=0, epoch=0, indices=np.arange(4))[0] * 255
    torch.testing.assert_close(crops, crops.round(), rtol=0, atol=1e-4)
    jitter = {"p": 1.0, "brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    recipe = with_augment(recipe, views={0: {"jitter": jitter}})
    jittered = build_views(recipe, 48)(images(4, 48, 48), seed=0, epoch=0, indices=np.arange(4))[0] * 255
    assert (jittered - jittered.round()).abs().mean() > 0.1


@pytest.mark.parametrize("threads", [2, 3])
def test_pixels_do_not_depend_on_the_number_of_threads(threads):
    """To the last bit: each part of a batch is made on one thread. And torch has as many afterwards as before."""
    recipe = load_recipe("imagenet", {"augment": {"quantize": "none"}})
    batch = images(7, 256, 300)
    settings = {"seed": 0, "epoch": 0, "indices": np.arange(7)}
    torch.set_num_threads(1)
    one = build_views(recipe, (256, 300))(batch, **settings)
    torch.set_num_threads(threads)
    several = build_views(recipe, (256, 300))(batch, **settings)
    assert all(map(torch.equal, one, several)) and torch.get_num_threads() == threads


def test_crops_become_the_same_views_however_a_batch_is_shared_between_ranks():
    recipe = load_recipe("imagenet")
    crops, indices = [images(12, 224, 224, seed=view) for view in (0, 1)], np.arange(12)
    drawn = draw(recipe, seed=2, epoch=0, indices=indices, sizes=np.full((12, 2), 300))
    whole = apply(recipe, crops, drawn)
    for part in (slice(0, 4), slice(4, 9), slice(9, 12)):
        for a, b in zip(apply(recipe, [view[part] for view in crops], drawn.part(part)), whole, strict=True):
            assert torch.equal(a, b[part])


@pytest.mark.parametrize("quantize", ["none", "crop", "uint8"])
def test_crops_one_by_one_give_the_views_that_the_whole_batch_gives(quantize):
    """As loader workers make them for images of any size; 8-bit crops may round to the next grey level."""
    recipe = load_recipe("cifar10", {"augment": {"quantize": quantize}})
    batch, indices = images(70, 40, 36), np.arange(70)
    drawn = draw(recipe, seed=5, epoch=0, indices=indices, sizes=np.tile([40, 36], (70, 1)))
    singly = [crop(image, drawn, number, augment=recipe["augment"]) for number, image in enumerate(batch)]
    for a, b in zip(apply(recipe, singly, drawn), augment_batch(recipe, batch, drawn), strict=True):
        if quantize == "none":
            torch.testing.assert_close(a, b, rtol=0, atol=CLOSE)
        else:
            assert (a - b).abs().mean() < 2e-3


def test_views_do_not_depend_on_the_batch_around_a_sample():
    """150 rows are worked on in several parts; alone a sample's matrix products have another shape."""
    recipe = load_recipe("cifar10")
    batch, make = images(75, 32, 32), build_views(recipe, 32)
    together = make(batch, seed=0, epoch=0, indices=np.arange(75))
    for sample in (0, 17, 74):
        alone = make(batch[sample : sample + 1], seed=0, epoch=0, indices=np.array([sample]))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[sample], b[0], rtol=0, atol=CLOSE)


def test_the_linear_protocol_has_one_view_and_draws_of_its_own():
    recipe = load_recipe("cifar10")
    settings = {"seed": 0, "epoch": 0, "indices": np.arange(50), "sizes": SIZES[:50]}
    linear, pretrain = draw(recipe, stage="linear", **settings), draw(recipe, **settings)
    assert len(linear.views) == 1 and len(pretrain.views) == 2
    assert (linear.views[0].flip != pretrain.views[0].flip).any()
    assert not linear.views[0].jitter.any() and not linear.views[0].sigma.any()


def test_test_pictures_are_resized_by_their_shorter_side_and_cropped_in_the_middle():
    recipe = load_recipe("cifar10")
    picture = images(1, 48, 72)[0]
    mode = v2.InterpolationMode.BICUBIC
    wanted = tv.resize(tv.to_dtype(picture, torch.float32, scale=True), [36, 54], interpolation=mode, antialias=True)
    wanted = tv.normalize(wanted.clamp(0, 1)[:, 2:34, 11:43], recipe["augment"]["mean"], recipe["augment"]["std"])
    torch.testing.assert_close(centre_view(recipe, [picture])[0], wanted, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("quantize", ["none", "uint8"])
def test_test_pictures_are_the_same_alone_and_among_neighbours_of_their_size(quantize):
    recipe = load_recipe("digits", {"augment": {"quantize": quantize}})
    random = np.random.default_rng()
    sizes = [(20, 31), (20, 31), (32, 18), (18, 18), (18, 18), (18, 18), (20, 31)]  # 18: nothing is to be resized
    pictures = [torch.from_numpy(random.integers(0, 256, (3, *size), np.uint8)) for size in sizes]
    before = [picture.clone() for picture in pictures]
    together, alone = centre_view(recipe, pictures), [centre_view(recipe, [picture])[0] for picture in pictures]
    assert torch.equal(together, torch.stack(alone))
    assert all(map(torch.equal, pictures, before))


def test_half_a_batch_of_views_carries_half_the_parameters():
    recipe = load_recipe("cifar10")
    views = build_views(recipe, (24, 20))(images(8), seed=0, epoch=0, indices=np.arange(8))
    first, second = Batch.of(views, np.arange(8), torch.arange(8)).chunk(2)
    assert torch.equal(torch.cat([first.views[1], second.views[1]]), views[1])
    assert second.indices.tolist() == second.labels.tolist() == [4, 5, 6, 7]
    assert np.array_equal(second.parameters.views[1].boxes, views.parameters.views[1].boxes[4:])
