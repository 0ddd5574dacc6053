"""EquiMod: parameter vector, losses and gradients restated in NumPy's float64, its structure, and steps over ranks."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_simclr import SIMCLR, restated
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from many_ranks import on_ranks
from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.augment import build_views, draw
from selfsup.engine.distributed import Ranks
from selfsup.errors import PermanentError
from selfsup.measures import equivariance
from selfsup.methods import Batch, Method, Step, build_method
from selfsup.methods.equimod import parameter_vector, prediction_loss
from selfsup.methods.equimod_parameters import normalisation
from selfsup.models import build_backbone, initial_backbone
from selfsup.recipe import RecipeError, check_recipe, fingerprint, flattened, load_recipe
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings
from selfsup.training.pretraining import Run
from tiny import TINY
from whole_steps import check_steps_over_ranks, in_float64

HEAD = {"bias_before_bn": False, "bias_last": False, "last_batch_norm": "without_affine"}
EQUIMOD = {
    "wraps": "simclr",
    "projector": {**HEAD, "layers": [16, 12, 8]},
    "parameter_encoder": {**HEAD, "layers": [6], "last_batch_norm": "with_scale_and_shift"},
    "predictor": {**HEAD, "layers": [8]},
    "temperature": 0.2,
    "weight": 1.0,
    "negatives": "all",
    "parameters": "measured",
}
PLAIN = {"resize": 8, "crop": 8, "interpolation": "bilinear"}
ON_SIMCLR = {**SIMCLR, "method": "equimod", "equimod": EQUIMOD, "augment": {"size": 8, "plain": PLAIN}}
ON_BYOL = {**TINY, "method": "equimod", "equimod": {**EQUIMOD, "wraps": "byol"}, "augment": ON_SIMCLR["augment"]}
BOTH = pytest.mark.parametrize("overrides", [ON_SIMCLR, ON_BYOL], ids=["simclr", "byol"])

RECIPES = {
    "equimod_simclr_cifar10": 15,
    "equimod_simclr_imagenet": 17,
    "equimod_byol_cifar10": 18,
    "equimod_byol_imagenet": 18,
}


def fresh_draws(name: str, sizes, seed=None):
    """Draws that no other test has seen. sizes: heights and widths of the source images, [N, 2]."""
    seed = np.random.default_rng().integers(2**32) if seed is None else seed
    return draw(load_recipe(name), seed=int(seed), epoch=1, indices=np.arange(len(sizes)), sizes=np.asarray(sizes))


# --- the parameter vector ---------------------------------------------------------------------------------------------


def told_in_turn(one, sample: int, *, blur: bool, solarize: bool) -> list[float]:
    """What the transforms of transforms.py would have put down, one after the other, for one picture."""
    found = [*one.boxes[sample], float(one.flip[sample])]
    if one.jitter[sample]:
        found += [1.0, *one.order[sample]]
    else:
        found += [0.0, 0, 1, 2, 3]
    found += [*one.factors[sample], float(one.grayscale[sample])]
    if blur:
        found += [1.0, one.sigma[sample]] if one.sigma[sample] else [0.0, 0.0]
    return [*map(float, found), *([float(one.solarize[sample])] if solarize else [])]


@pytest.mark.parametrize(("name", "length"), RECIPES.items())
def test_the_parameter_vector_has_the_published_order_and_length(name, length):
    draws = fresh_draws(name, np.random.default_rng().integers(32, 500, (100, 2)))
    assert {True, False} == set(draws.views[0].jitter)
    for view in (0, 1):
        found = parameter_vector(draws, view)
        assert found.dtype == np.float32 and found.shape == (100, length)
        rows = [told_in_turn(draws.views[view], n, blur=length > 15, solarize=length == 18) for n in range(100)]
        np.testing.assert_array_equal(found, np.array(rows, np.float32))


def test_without_jitter_the_order_is_that_of_nothing_done_though_one_is_drawn():
    draws = fresh_draws("equimod_simclr_cifar10", [[32, 32]] * 200)
    still = ~draws.views[0].jitter
    assert (draws.views[0].order[still] != np.arange(4)).any()
    np.testing.assert_array_equal(
        parameter_vector(draws, 0)[still, 5:14], np.tile([0, 0, 1, 2, 3, 1, 1, 1, 0], (still.sum(), 1))
    )


def applied(picture: torch.Tensor, told: np.ndarray, recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Do to a picture, uint8 [3, H, W], what 18 numbers tell, by torchvision and nothing else.

    Returns it with the places of values so near to the threshold of a solarisation that rounding decides.
    """
    top, left, height, width = told[:4].astype(int).tolist()
    size, policy = recipe["augment"]["size"], recipe["augment"]["views"][0]["blur"]
    x = tv.resized_crop(picture / 255, top, left, height, width, [size] * 2, InterpolationMode.BICUBIC, antialias=True)
    x = tv.hflip(x.clamp(0, 1)) if told[4] else x.clamp(0, 1)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for operation in told[6:10].astype(int) if told[5] else ():
        x = adjust[operation](x, float(told[10 + operation]))
    x = tv.rgb_to_grayscale(x, 3) if told[14] else x
    x = tv.gaussian_blur(x, [policy["kernel"]] * 2, [float(told[16])] * 2) if told[15] else x
    undecided = (x - 128 / 255).abs() < (1e-5 if told[17] else 0)
    x = torch.where(x >= 128 / 255, 1 - x, x) if told[17] else x
    return tv.normalize(x, recipe["augment"]["mean"], recipe["augment"]["std"]), undecided


def test_the_vector_tells_all_that_was_done_to_a_picture():
    """float32 through up to seven operations: 1e-4 of values between -2 and 3, but where rounding decides whether they
    pass the threshold: that is up to a corner of one colour."""
    recipe, random = load_recipe("equimod_byol_cifar10", {"augment": {"quantize": "none"}}), np.random.default_rng()
    small = torch.from_numpy(random.random((24, 3, 4, 4), np.float32))
    pictures = (torch.nn.functional.interpolate(small, 32, mode="bilinear") * 255).round().to(torch.uint8)
    views = build_views(recipe, 32)(pictures, seed=int(random.integers(2**32)), epoch=2, indices=np.arange(24))
    for view in (0, 1):
        for found, picture, told in zip(views[view], pictures, parameter_vector(views.parameters, view), strict=True):
            wanted, undecided = applied(picture, told, recipe)
            wrong = ((found - wanted).abs() > 1e-4) & ~undecided
            assert wrong.float().mean() < 0.005


# --- its normalisation ------------------------------------------------------------------------------------------------


def shares(policy) -> list[list[tuple[float, float, float]]]:
    """What a policy makes of each parameter but the crop's four, of 18: shares of the views with their ranges."""
    jitter, blur, solarize = policy["jitter"], policy["blur"], policy["solarize"]

    def applied(share: float) -> list[tuple[float, float, float]]:
        return [(share, 1, 1), (1 - share, 0, 0)]

    found = [applied(policy["flip"]), applied(jitter["p"])]
    for place in range(4):
        found.append([*((jitter["p"] / 4, one, one) for one in range(4)), (1 - jitter["p"], place, place)])
    for key, centre in {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}.items():
        found.append([(jitter["p"], centre - jitter[key], centre + jitter[key]), (1 - jitter["p"], centre, centre)])
    found.append(applied(policy["grayscale"]))
    share = blur["p"] if blur else 0.0
    found += [applied(share), [(share, *(blur["sigma"] if blur else (0, 0))), (1 - share, 0, 0)]]
    return [*found, applied(solarize["p"] if solarize else 0.0)]


def power_of_a_range(power: int, low: float, high: float) -> float:
    """The mean of the power of what is evenly distributed."""
    if low == high:
        return low**power
    return (high ** (power + 1) - low ** (power + 1)) / (power + 1) / (high - low)


def exact_moments(recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation and fourth central moment of each parameter but the crop's, over a policy's views, [P - 4]."""
    views, found = recipe["augment"]["views"], []
    for one in zip(*map(shares, views), strict=True):
        parts = [(share / len(views), low, high) for shares_of_a_view in one for share, low, high in shares_of_a_view]
        mean = sum(share * power_of_a_range(1, low, high) for share, low, high in parts)
        second, fourth = (
            sum(share * power_of_a_range(power, low - mean, high - mean) for share, low, high in parts)
            for power in (2, 4)
        )
        found.append((mean, second**0.5, fourth))
    blurs, solarizes = (any(one[key] for one in views) for key in ("blur", "solarize"))
    kept = [*range(11), *([11, 12] if blurs else []), *([13] if solarizes else [])]
    return tuple(np.array(found)[kept].T)


def fresh_parameters(name: str, kind: str, count=20_000) -> np.ndarray:
    recipe = load_recipe(name)
    draws = fresh_draws(name, np.full((count, 2), recipe["augment"]["size"]))
    return normalisation(recipe, kind).all_views(draws).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in RECIPES for kind in ("authors", "measured")), ("equimod_digits", "measured")],
)
def test_draws_have_the_policys_means_and_deviations_as_either_kind_normalises_them(name, kind):
    """To seven standard errors, of which a hundred comparisons see one in 1e9 runs."""
    known, found = normalisation(load_recipe(name), kind), fresh_parameters(name, kind)[:, 4:]
    mean, deviation, fourth = exact_moments(load_recipe(name))
    error, error_of_square = deviation / len(found) ** 0.5, (fourth - deviation**4) ** 0.5 / len(found) ** 0.5
    raw = found * known.std[4:] + known.mean[4:]
    assert (abs(raw.mean(0) - mean) <= 7 * error + 1e-6).all()
    assert (abs(((raw - mean) ** 2).mean(0) - deviation**2) <= 7 * error_of_square + 1e-6).all()
    assert (deviation > 0).sum() >= 10 - (name == "equimod_digits")  # a digit is never mirrored


@pytest.mark.parametrize("name", [*RECIPES, "equimod_digits"])
def test_measured_crops_are_those_of_pictures_of_a_views_size(name):
    found = fresh_parameters(name, "measured")[:, :4]
    np.testing.assert_allclose(found.mean(0), 0, atol=0.055)  # the measurement is wrong by up to 0.012: eight errors
    np.testing.assert_allclose(found.std(0), 1, atol=0.05)


@pytest.mark.parametrize("name", ["equimod_simclr_cifar10", "equimod_simclr_imagenet"])
def test_the_authors_constants_normalise_the_simclr_branchs_draws(name):
    mean, deviation, _ = exact_moments(load_recipe(name))
    known = normalisation(load_recipe(name), "authors")
    np.testing.assert_allclose((mean - known.mean[4:]) / known.std[4:], 0, atol=0.01)
    np.testing.assert_allclose(deviation / known.std[4:], 1, atol=0.01)


def test_the_authors_constants_normalise_the_crops_of_pictures_of_32_pixels():
    """Not those of ImageNet, for a crop's pixels depend on the pictures' sizes. Eight standard errors."""
    found = fresh_parameters("equimod_simclr_cifar10", "authors", 50_000)[:, :4]
    np.testing.assert_allclose(found.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(found.std(0), 1, atol=0.03)


# What follows from policies and constants: their figures are of another jitter, and of no blur and no solarisation.
BYOLS = {
    "equimod_byol_cifar10": {10: (0, 1), 12: (0, 0.5), 15: (0.913, 1.638), 17: (0.770, 4.635)},
    "equimod_byol_imagenet": {10: (0, 0.5), 11: (0, 0.5), 12: (0, 0.25), 13: (0, 0.5), 15: (0.913, 1.638)},
}


@pytest.mark.parametrize("name", BYOLS)
def test_the_authors_constants_do_not_normalise_the_byol_branchs_draws(name):
    mean, deviation, _ = exact_moments(load_recipe(name))
    known = normalisation(load_recipe(name), "authors")
    for place, wanted in BYOLS[name].items():
        found = (mean[place - 4] - known.mean[place]) / known.std[place], deviation[place - 4] / known.std[place]
        assert found == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize("name", [*RECIPES, "equimod_digits"])
def test_measured_means_and_deviations_are_those_of_the_policy(name):
    """The measurement's draws are the same in each process."""
    mean, deviation, _ = exact_moments(load_recipe(name))
    known, changes = normalisation(load_recipe(name), "measured"), deviation > 0
    np.testing.assert_allclose((known.mean[4:] - mean)[changes] / deviation[changes], 0, atol=0.03)
    np.testing.assert_allclose(known.std[4:][changes], deviation[changes], rtol=0.03)
    np.testing.assert_array_equal(known.std[4:][~changes], 1)


def test_measured_crops_are_shares_of_pictures_of_any_size_and_the_same_in_every_run():
    recipe = load_recipe("equimod_simclr_imagenet")
    draws = fresh_draws("equimod_simclr_imagenet", [[400, 400]] * 20_000)
    found = normalisation(recipe, "measured").all_views(draws)
    np.testing.assert_allclose(found[:, :4].mean(0), 0, atol=0.05)
    np.testing.assert_allclose(found[:, :4].std(0), 1, atol=0.05)
    for key in ("mean", "std"):
        one, other = (
            getattr(normalisation(load_recipe(recipe_name), "measured"), key) for recipe_name in ["digits"] * 2
        )
        np.testing.assert_array_equal(one, other)


# --- losses -----------------------------------------------------------------------------------------------------------


def restated_prediction_loss(predictions, views, temperature):
    """Equation 4, row by row: each prediction among its view and those of other images; and its two gradients."""
    count = len(views)
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (predictions, views)]
    p, v = predictions / lengths[0], views / lengths[1]
    loss, by_p, by_v = 0.0, np.zeros_like(p), np.zeros_like(v)
    for row in range(count):
        allowed = [other for other in range(count) if other == row or other % (count // 2) != row % (count // 2)]
        scores = np.exp(v[allowed] @ p[row] / temperature)
        shares = scores / scores.sum()
        loss -= np.log(shares[allowed.index(row)]) / count
        shares[allowed.index(row)] -= 1
        by_p[row] += shares @ v[allowed] / temperature / count
        by_v[allowed] += np.outer(shares, p[row]) / temperature / count
    through = [
        (g - (g * u).sum(1, keepdims=True) * u) / n for g, u, n in zip((by_p, by_v), (p, v), lengths, strict=True)
    ]
    return loss, *through


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equation_4_and_its_gradients(temperature):
    arrays = np.random.default_rng().normal(size=(2, 24, 7))
    ours = [torch.tensor(one, requires_grad=True) for one in arrays]
    loss = prediction_loss(*ours, temperature)
    loss.backward()
    wanted, *gradients = restated_prediction_loss(*arrays, temperature)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)
    for one, gradient in zip(ours, gradients, strict=True):
        assert np.linalg.norm(one.grad.numpy() - gradient) / np.linalg.norm(gradient) < 1e-12


def test_a_prediction_that_knows_nothing_has_all_views_of_other_images_as_near():
    """Its view and 2N - 2 others, of 2N."""
    same = torch.ones(10, 3, dtype=torch.float64)
    assert prediction_loss(same, same, 0.2).item() == pytest.approx(np.log(9), rel=1e-14)


def _on_rank(ranks: Ranks, predictions: list, views: list) -> tuple:
    """This rank's rows, images in a row; the mean over ranks of loss and gradients, as training takes it."""
    images = np.array_split(np.arange(len(views) // 2), ranks.size)[ranks.rank]
    rows = np.concatenate([images, images + len(views) // 2])
    ours = [torch.tensor(one, dtype=torch.float64)[rows].requires_grad_() for one in (predictions, views)]
    loss = prediction_loss(*ours, 0.3, ranks)
    loss.backward()
    return rows.tolist(), ranks.mean(loss.detach()).item(), [(one.grad / ranks.size).tolist() for one in ours]


def test_two_ranks_compute_equation_4_and_its_gradients_as_one():
    arrays = np.random.default_rng().normal(size=(2, 16, 5))
    wanted, *gradients = restated_prediction_loss(*arrays, 0.3)
    for rows, loss, parts in on_ranks(_on_rank, 2, *arrays.tolist()):
        assert loss == pytest.approx(wanted, rel=1e-12)
        for part, gradient in zip(parts, gradients, strict=True):
            np.testing.assert_allclose(part, gradient[rows], rtol=1e-10, atol=1e-14)


def test_the_health_figures_are_the_authors():
    y, guess, start = np.random.default_rng().normal(size=(3, 30, 6))

    def cosine(a, b):
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    found = equivariance(*map(torch.tensor, (y, guess, start)))
    near, far = cosine(y, guess), cosine(y, start)
    assert found["equivariance_gain"].item() == pytest.approx((near - far).mean(), rel=1e-12)
    assert found["equivariance_ratio"].item() == pytest.approx(((1 - far) / (1 - near)).mean(), rel=1e-12)


# --- the whole loss ---------------------------------------------------------------------------------------------------


def method_and_batch(overrides, count=8):
    recipe = load_recipe("digits", {**overrides, "global_batch": count})
    method = build_method(recipe, seed=1, total_steps=20)
    method.networks.double()
    method.connect()
    images = torch.from_numpy(np.random.default_rng().integers(0, 256, (count, 3, 12, 12), np.uint8))
    views = build_views(recipe, 12)(images, seed=3, epoch=0, indices=np.arange(count))
    return method, Batch.of(in_float64(views), np.arange(count))


def kept(networks: dict) -> dict:
    """What each network is given and gives, with gradients, filled by the next forward pass."""
    found = {}
    for name, network in networks.items():

        def keep(module, inputs, output, name=name):
            output.retain_grad()
            found[name] = (inputs[0], output)

        network.register_forward_hook(keep)
    return found


def batch_norm(x, eps=1e-5):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + eps)


def back_through_batch_norm(gradient, x, eps=1e-5):
    unit = batch_norm(x, eps)
    return (gradient - gradient.mean(0) - unit * (gradient * unit).mean(0)) / np.sqrt(x.var(0) + eps)


@pytest.mark.parametrize("negatives", ["all", "views_of_other_images"])
def test_the_modules_loss_and_gradients_are_those_of_the_equations(negatives):
    """From the projector's output to the loss and back, in NumPy: encoder, predictor, NT-Xent over 4N rows."""
    overrides = {**ON_SIMCLR, "equimod": {**EQUIMOD, "negatives": negatives, "weight": 0.7}}
    method, batch = method_and_batch(overrides)
    seen = kept(dict(method.module.items()))
    output = method.loss(batch, Step(0))
    output.loss.backward()
    weights = {key: value.detach().numpy() for key, value in method.module.state_dict().items()}
    places = seen["projector"][1].detach().numpy()
    count = len(places) // 3
    start, views = np.tile(places[:count], (2, 1)), places[count:]

    vectors = np.concatenate([parameter_vector(batch.parameters, view) for view in (0, 1)]).astype(np.float64)
    known = normalisation(method.context.recipe, "measured")
    vectors[:, :4] *= 8 / 12  # pictures of 12 pixels, views of 8
    codes = ((vectors - known.mean) / known.std).astype(np.float32) @ weights["parameter_encoder.0.weight"].T
    codes = batch_norm(codes) * weights["parameter_encoder.1.weight"] + weights["parameter_encoder.1.bias"]
    both, matrix = np.concatenate([start, codes], axis=1), weights["predictor.0.weight"]
    before = both @ matrix.T
    predicted = batch_norm(before)
    if negatives == "all":
        loss, gradients = restated(views, predicted, 0.2)
        by_views, by_predicted = np.split(gradients, 2)
    else:
        loss, by_predicted, by_views = restated_prediction_loss(predicted, views, 0.2)
    by_before = back_through_batch_norm(by_predicted, before)
    by_start = (by_before @ matrix)[:, : places.shape[1]]
    by_places = np.concatenate([by_start[:count] + by_start[count:], by_views])

    assert output.scalars["equivariance_loss"].item() == pytest.approx(loss, rel=1e-12)
    whole = output.scalars["invariance_loss"].item() + 0.7 * loss
    assert output.loss.item() == pytest.approx(whole, rel=1e-12)
    for found, wanted in (
        (seen["projector"][1].grad.numpy(), 0.7 * by_places),
        (method.module["predictor"][0].weight.grad.numpy(), 0.7 * by_before.T @ both),
    ):
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-11  # through batch norm and back


@BOTH
def test_the_picture_itself_goes_first_through_the_backbone_and_into_no_other_loss(overrides):
    method, batch = method_and_batch(overrides)
    networks, wraps_byol = method.wrapped.networks, overrides["equimod"]["wraps"] == "byol"
    inside = networks["online"] if wraps_byol else networks
    seen, fed = kept({"backbone": method.encoder(), "projector": inside["projector"]}), []
    if wraps_byol:
        networks["target"]["backbone"].register_forward_hook(lambda module, inputs, output: fed.append(inputs[0]))
    method.loss(batch, Step(0)).loss.backward()
    assert seen["backbone"][0].equal(torch.cat([batch.plain, *batch.views]))
    assert seen["projector"][0].equal(seen["backbone"][1][8:])
    assert all(one.equal(torch.cat(batch.views)) for one in fed) and len(fed) == wraps_byol
    assert all(row.abs().sum() > 0 for row in seen["backbone"][1].grad)  # no stop of the gradient: the picture's learns


@BOTH
def test_the_wrapped_methods_loss_is_its_own_for_the_same_features(overrides):
    method, batch = method_and_batch(overrides)
    alone = build_method(method.context.recipe, seed=1, total_steps=20).wrapped
    alone.networks.double()
    alone.connect()
    features = method.encoder()(torch.cat([batch.plain, *batch.views]))[8:]
    wanted = alone.loss_of(features.detach(), torch.cat(batch.views)).loss
    assert method.loss(batch, Step(0)).scalars["invariance_loss"].item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "statistics"),
    [
        (ON_SIMCLR, "both_views"),
        pytest.param(ON_BYOL, "per_view", marks=pytest.mark.long),
        pytest.param(ON_SIMCLR, "per_view", marks=pytest.mark.long),
        pytest.param(ON_BYOL, "both_views", marks=pytest.mark.long),
    ],
)
def test_whole_steps_are_the_same_on_one_two_and_four_ranks(overrides, statistics):
    model = {**overrides["model"], "batch_norm": {"statistics": statistics}}
    negatives = {"both_views": "all", "per_view": "views_of_other_images"}[statistics]
    module = {**overrides["equimod"], "negatives": negatives}
    check_steps_over_ranks({**overrides, "model": model, "equimod": module, "global_batch": 16})


@BOTH
def test_it_is_stopped_in_mid_epoch_and_continued_to_the_bit(overrides, tiny_store, tmp_path):
    overrides = {**overrides, "augment": {"size": 8, "plain": PLAIN}}
    runs = {}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        runs[name] = Run(load_recipe("digits", overrides), 0, 1, tiny_store, tmp_path / name, on_cpu(), 60)
    assert train(runs["whole"], 4)
    assert not train(runs["parts"], 2, stop=StopAfter(3)) and train(runs["parts"], 2, 4)
    assert equal_states(*map(state_of, runs.values()))
    rows = pd.read_csv(tmp_path / "whole" / "history.csv")
    assert {"invariance_loss", "equivariance_loss", "equivariance_gain", "equivariance_ratio"} <= set(rows)
    assert ("tau" in rows) == (overrides["equimod"]["wraps"] == "byol") and rows["equivariance_gain"].notna().all()
    np.testing.assert_allclose(rows["loss"], rows["invariance_loss"] + rows["equivariance_loss"], rtol=1e-6)


# --- structure --------------------------------------------------------------------------------------------------------


# Of the published code, measured by building it: all that learns; what the module adds of it.
@pytest.mark.parametrize(
    ("name", "parameters", "of_the_module"),
    [
        ("equimod_simclr_cifar10", 22_230_208, 5_548_160),
        ("equimod_simclr_imagenet", 40_861_120, 8_694_144),
        ("equimod_byol_cifar10", 21_977_152, 5_548_544),
        ("equimod_byol_imagenet", 43_753_536, 8_694_272),
    ],
)
def test_the_networks_have_the_published_numbers_of_parameters(name, parameters, of_the_module, of_shapes_alone):
    recipe = load_recipe(name)
    method = build_method(recipe, seed=0, total_steps=1)
    learned = method.parameter_groups()
    assert sum(one.parameter.numel() for one in learned) == parameters
    own = [one for one in learned if one.name.startswith("equivariance.")]
    assert sum(one.parameter.numel() for one in own) == of_the_module
    features, length = method.encoder().out_features, RECIPES[name]
    assert {one.name.removeprefix("equivariance."): tuple(one.parameter.shape) for one in own} == {
        "projector.0.weight": (2048, features),
        "projector.1.weight": (2048,),
        "projector.1.bias": (2048,),
        "projector.3.weight": (2048, 2048),
        "projector.4.weight": (2048,),
        "projector.4.bias": (2048,),
        "projector.6.weight": (128, 2048),
        "parameter_encoder.0.weight": (128, length),
        "parameter_encoder.1.weight": (128,),
        "parameter_encoder.1.bias": (128,),
        "predictor.0.weight": (128, 256),
    }
    decay = recipe["optimizer"]["weight_decay"]
    for one in own:
        treated = (decay, 1.0) if one.parameter.dim() == 2 else (0.0, 0.0)
        assert (one.weight_decay, one.lars_weight) == treated, one.name


@BOTH
def test_the_wrapped_method_starts_with_the_weights_it_has_alone(overrides):
    recipe = load_recipe("digits", overrides)
    method, wraps = build_method(recipe, seed=5, total_steps=1), overrides["equimod"]["wraps"]
    only = {key: value for key, value in overrides.items() if key != "equimod"}
    alone = build_method(load_recipe("digits", {**only, "method": wraps}), seed=5, total_steps=1)
    assert all(value.equal(alone.state_dict()[name]) for name, value in method.wrapped.state_dict().items())
    backbone = initial_backbone(recipe, 5).state_dict()
    assert all(value.equal(backbone[name]) for name, value in method.encoder().state_dict().items())
    assert method.floors == alone.floors


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_a_method_and_what_it_wraps_are_chosen_by_overrides():
    recipe = load_recipe("digits", ON_SIMCLR)
    assert "byol" not in recipe and {"equimod", "simclr"} <= recipe.keys()
    assert load_recipe("equimod_simclr_cifar10", {"method": "simclr"}).keys() == load_recipe("simclr_cifar10").keys()
    other = {"equimod": {"wraps": "byol"}, "byol": load_recipe("cifar10")["byol"]}
    assert {"simclr", "byol"} & load_recipe("equimod_simclr_cifar10", other).keys() == {"byol"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"equimod": {**EQUIMOD, "wraps": "equimod"}},
            "equimod.wraps is 'equimod', wanted another method; known: ",
        ),
        ({"equimod": {**EQUIMOD, "wraps": "simclear"}}, "equimod.wraps is 'simclear', wanted another method; did you"),
        ({"augment": {"size": 8, "plain": None}}, "augment.plain is null, wanted the unaugmented picture"),
        ({"augment": {"size": 8, "plain": {**PLAIN, "crop": 7}}}, "have sizes 7 and 8, wanted one size"),
        ({"equimod": {**EQUIMOD, "parameters": "authors"}}, "no constants for views of 8 pixels with 18 parameters"),
        ({"equimod": {**EQUIMOD, "predictor": {**HEAD, "layers": [4]}}}, "equimod.predictor.out is 4, wanted 8"),
    ],
)
def test_what_does_not_fit_together_is_one_line(change, words):
    with pytest.raises(RecipeError) as error:
        load_recipe("digits", {**ON_SIMCLR, **change})
    assert words in str(error.value) and "\n" not in str(error.value)


def without(key: str) -> dict:
    return {name: value for name, value in ON_SIMCLR.items() if name != key}


def test_the_blocks_of_a_method_and_of_what_it_wraps_are_wanted_and_no_others():
    wanted = r"of that name and of 'simclr', which it wraps, and of no other method, found equimod"
    with pytest.raises(RecipeError, match=f"{wanted}$"):
        load_recipe("digits", without("simclr"))
    with pytest.raises(RecipeError, match=wanted.replace("equimod", "byol, equimod, simclr")):
        check_recipe({**load_recipe("digits", ON_SIMCLR), "byol": load_recipe("digits")["byol"]}, "a test")
    with pytest.raises(RecipeError, match="override 'byol' names no recipe key"):
        load_recipe("digits", {**ON_SIMCLR, "byol": {"tau_base": 0.9}})


class NeedsLabels(Method):
    """One that has a `loss` of its own, and no `loss_of`."""

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.networks = torch.nn.ModuleDict({"backbone": build_backbone(context.recipe)})

    def encoder(self):
        return self.networks["backbone"]


def test_a_method_that_asks_for_more_than_features_cannot_be_wrapped(monkeypatch):
    monkeypatch.setitem(METHODS.classes, "needs_labels", type("NeedsLabelsSettings", (Settings,), {}))
    monkeypatch.setitem(METHODS.components, "needs_labels", "test_equimod:NeedsLabels")
    recipe = load_recipe(
        "digits", {**without("simclr"), "equimod": {**EQUIMOD, "wraps": "needs_labels"}, "needs_labels": {}}
    )
    with pytest.raises(PermanentError, match=r"equimod\.wraps is 'needs_labels', whose class has no `loss_of`"):
        build_method(recipe, seed=0, total_steps=1)


# Launch scripts and dataset.py of both branches.
VALUES = {
    "equimod_simclr_cifar10": {"epochs": 800, "global_batch": 512, "optimizer.peak_lr": 4.0, "simclr.temperature": 0.5},
    "equimod_simclr_imagenet": {
        "epochs": 800,
        "global_batch": 4096,
        "optimizer.peak_lr": 2.4,
        "optimizer.weight_decay": 1e-6,
        "simclr.temperature": 0.2,
        "augment.plain": {"resize": 256, "crop": 224, "interpolation": "bilinear"},
    },
    "equimod_byol_cifar10": {"epochs": 800, "global_batch": 512, "optimizer.peak_lr": 2.0, "byol.tau_base": 0.996},
    "equimod_byol_imagenet": {
        "epochs": 1000,
        "global_batch": 4096,
        "optimizer.peak_lr": 4.8,
        "optimizer.weight_decay": 1.5e-6,
        "augment.plain": {"resize": 256, "crop": 224, "interpolation": "bilinear"},
    },
}
SHARED = {
    "equimod.temperature": 0.2,
    "equimod.weight": 1.0,
    "equimod.negatives": "all",
    "equimod.parameters": "authors",
}
SHARED |= {"optimizer.cosine_extra_epochs": 0, "linear.cosine_extra_epochs": 0, "augment.quantize": "uint8"}
SHARED |= {"optimizer.warmup_epochs": 10, "optimizer.lr_floor": 1e-8, "linear.lr_floor": 1e-4}


@pytest.mark.parametrize("name", VALUES)
def test_recipes_hold_the_published_values(name):
    found = load_recipe(name)
    flat = {**flattened(found), "augment.plain": found["augment"]["plain"]}
    wanted = {**SHARED, "augment.plain": {"resize": None, "crop": 32, "interpolation": "bilinear"}, **VALUES[name]}
    assert {key: flat[key] for key in wanted} == wanted


# Where one moves, what was trained under the old one is not continued.
FINGERPRINTS = {
    "equimod_byol_cifar10": "8670e2423bddd4d917fabe377afbd8e695dc160b15276b71b0819b82cb61ba60",
    "equimod_byol_imagenet": "cc42de11a8aa5fa4c59a14c4b3d8242b7a89b57fc953c68f9427fff84fb5cc1f",
    "equimod_digits": "4865d67f20f015bc3b06bd53b4275b1370d82d121952dcc76df0a5451c7a5922",
    "equimod_simclr_cifar10": "bf807da945b48a2089ca82d1e1c287d8381ccc5f752f87663fef21a104f76fbb",
    "equimod_simclr_imagenet": "82db5571c7934ef72de8650037199ab0e790d1b73c4fb812b5c103934c489ca5",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_recipe_keeps_its_fingerprint(name):
    assert fingerprint(load_recipe(name), 1) == FINGERPRINTS[name]
