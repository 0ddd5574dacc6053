import numpy as np
import pytest
import torch

from selfsup.augment import build_views
from selfsup.methods import Batch, Step, build_method
from selfsup.methods.byol import byol_loss, tau
from selfsup.optim import parameter_treatments, treatment_table
from selfsup.recipe import load_recipe
from tiny import TINY


def byol(recipe, total_steps=20):
    method = build_method(recipe, seed=0, total_steps=total_steps)
    method.connect()
    return method


def views_of(recipe, count=8, epoch=0):
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, 12, 12), np.uint8))
    return build_views(recipe, 12)(images, seed=0, epoch=epoch, indices=np.arange(count))


def batch_of(views):
    return Batch.of(views, np.arange(len(views[0])))


def test_the_loss_is_two_minus_twice_the_cosine():
    random = np.random.default_rng(0)
    p, z = random.normal(size=(2, 50, 7))
    cosines = (p * z).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    ours = byol_loss(torch.tensor(p), torch.tensor(z)).item()
    assert ours == pytest.approx((2 - 2 * cosines).mean(), rel=1e-14)
    assert byol_loss(torch.tensor(p), torch.tensor(3 * p)).item() == pytest.approx(0, abs=1e-14)
    assert byol_loss(torch.tensor(p), torch.tensor(-p)).item() == pytest.approx(4)


def test_the_losss_gradient_is_that_of_the_equation():
    """d(2 - 2 p.z/|p||z|)/dp = -2 (z/|z| - cos p/|p|) / |p|, divided by the number of rows."""
    random = np.random.default_rng(0)
    p, z = random.normal(size=(2, 5, 7))
    prediction = torch.tensor(p, requires_grad=True)
    byol_loss(prediction, torch.tensor(z)).backward()
    p_norm, z_norm = (np.linalg.norm(x, axis=1, keepdims=True) for x in (p, z))
    cosine = (p * z).sum(1, keepdims=True) / p_norm / z_norm
    wanted = -2 * (z / z_norm - cosine * p / p_norm) / p_norm / len(p)
    np.testing.assert_allclose(prediction.grad.numpy(), wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_per_tensor_at_any_scale(dtype, scale):
    random = np.random.default_rng()
    p, z = scale * random.normal(size=(2, 64, 256))
    prediction = torch.tensor(p, dtype=dtype, requires_grad=True)
    loss = byol_loss(prediction, torch.tensor(z, dtype=dtype))
    loss.backward()
    p_norm, z_norm = (np.linalg.norm(x, axis=1, keepdims=True) for x in (p, z))
    cosine = (p * z).sum(1, keepdims=True) / p_norm / z_norm
    gradient = -2 * (z / z_norm - cosine * p / p_norm) / p_norm / len(p)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    assert loss.item() == pytest.approx((2 - 2 * cosine).mean(), rel=tolerance)
    error = np.linalg.norm(prediction.grad.double().numpy() - gradient) / np.linalg.norm(gradient)
    assert error < tolerance


def test_an_embedding_of_no_length_has_a_finite_loss_and_gradient():
    """Of norm 0, and below the 1e-12 at which the normalisation stops dividing: no NaN reaches the weights."""
    for size in (0.0, 1e-20):
        prediction = torch.full((2, 4), size, requires_grad=True)
        loss = byol_loss(prediction, torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        loss.backward()
        assert loss.item() == pytest.approx(2, abs=1e-6)
        assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("total", [20, 77_600, 97_000, 312_000])
def test_golden_values_of_tau(total):
    """At the start, the middle and the last step, where it is one step short of 1."""
    assert tau(0, total_steps=total, base=0.996) == 0.996
    assert tau(total // 2, total_steps=total, base=0.996) == pytest.approx(0.998, abs=1e-15)
    last = 1 - 0.004 * (1 - np.cos(np.pi / total)) / 2
    assert tau(total - 1, total_steps=total, base=0.996) == pytest.approx(last, abs=1e-15)
    assert tau(total - 1, total_steps=total, base=0.996) < 1


def test_tau_rises_from_its_base_to_one_along_a_cosine():
    assert tau(0, total_steps=100, base=0.996) == 0.996
    assert tau(50, total_steps=100, base=0.996) == pytest.approx(0.998, abs=1e-15)
    assert tau(100, total_steps=100, base=0.996) == 1
    for step in range(100):
        wanted = 1 - (1 - 0.996) * (np.cos(np.pi * step / 100) + 1) / 2
        assert tau(step, total_steps=100, base=0.996) == pytest.approx(wanted, abs=1e-15)


def test_both_directions_are_summed_or_averaged(tiny_recipe):
    views = views_of(tiny_recipe)
    summed, _ = byol(tiny_recipe).loss(batch_of(views), Step(0))
    halved = load_recipe("digits", {**TINY, "byol": {**TINY["byol"], "loss_reduction": "mean"}})
    averaged, _ = byol(halved).loss(batch_of(views), Step(0))
    assert averaged.item() == pytest.approx(summed.item() / 2, rel=1e-6)


def test_the_loss_compares_each_view_with_the_targets_projection_of_the_other(tiny_recipe):
    method, views = byol(tiny_recipe), views_of(tiny_recipe)
    loss, _ = method.loss(batch_of(views), Step(0))
    again = byol(tiny_recipe)
    online, target = again.networks["online"], again.networks["target"]
    pictures = torch.cat([views[0], views[1]])
    q = online["predictor"](online["projector"](online["backbone"](pictures)))
    z = target["projector"](target["backbone"](pictures))
    rows = [byol_loss(q[i : i + 1], z[(i + 8) % 16 : (i + 8) % 16 + 1]).item() for i in range(16)]
    assert loss.item() == pytest.approx(2 * np.mean(rows), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_gradient_on_the_predictor_is_that_of_both_directions(reduction):
    """The last bias' gradient, restated in NumPy from both views' predictions: summed, or halved."""
    recipe = load_recipe("digits", {**TINY, "byol": {**TINY["byol"], "loss_reduction": reduction}})
    method, views, kept = byol(recipe), views_of(recipe), {}
    online, target = method.networks["online"], method.networks["target"]
    online["predictor"].register_forward_hook(lambda module, inputs, output: kept.update(q=output.detach()))
    target["projector"].register_forward_hook(lambda module, inputs, output: kept.update(z=output.detach()))
    method.loss(batch_of(views), Step(0))[0].backward()
    q, z = (kept[key].double().numpy() for key in "qz")
    z = np.concatenate([z[8:], z[:8]])  # the target's projection of the other view
    q_norm, z_norm = (np.linalg.norm(x, axis=1, keepdims=True) for x in (q, z))
    cosine = (q * z).sum(1, keepdims=True) / q_norm / z_norm
    wanted = (-2 * (z / z_norm - cosine * q / q_norm) / q_norm / 8).sum(0) * {"sum": 1, "mean": 0.5}[reduction]
    found = online["predictor"][3].bias.grad.double().numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-6


def test_only_the_online_network_learns(tiny_recipe):
    method = byol(tiny_recipe)
    loss, _ = method.loss(batch_of(views_of(tiny_recipe)), Step(0))
    loss.backward()
    assert all(p.grad is not None for p in method.networks["online"].parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.networks["target"].parameters())
    learned = {id(one.parameter) for one in method.parameter_groups()}
    assert learned == {id(p) for p in method.networks["online"].parameters()}


def test_the_target_normalises_with_its_batch_and_keeps_its_own_running_statistics(tiny_recipe):
    method = byol(tiny_recipe)
    target = method.networks["target"]["backbone"]
    assert target.bn1.training
    before = target.bn1.running_mean.clone()
    method.loss(batch_of(views_of(tiny_recipe)), Step(0))
    assert not torch.equal(target.bn1.running_mean, before)
    method.networks["online"]["backbone"].bn1.running_mean.fill_(9.0)
    method.before_step(Step(0))
    assert not (target.bn1.running_mean > 1).any()


@pytest.mark.parametrize("statistics", ["both_views", "per_view"])
def test_views_are_normalised_together_or_as_in_a_forward_of_each(statistics):
    """Both networks: the authors' one forward over 2N pictures, or the official two of N (byol_experiment.py)."""
    recipe = load_recipe("digits", {**TINY, "model": {**TINY["model"], "batch_norm": {"statistics": statistics}}})
    method, plain, views = byol(recipe), byol(load_recipe("digits", TINY)), views_of(recipe)
    for name in ("online", "target"):
        parts = [views[0], views[1]] if statistics == "per_view" else [torch.cat(tuple(views))]
        ours, theirs = (one.networks[name] for one in (method, plain))
        found = ours["projector"](ours["backbone"](torch.cat(tuple(views))))
        wanted = torch.cat([theirs["projector"](theirs["backbone"](part)) for part in parts])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # other batch sizes, other sums
        for (key, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


def test_averaged_buffers_and_running_statistics_on_request():
    recipe = load_recipe(
        "digits", {**TINY, "byol": {**TINY["byol"], "average_buffers": True, "target_batch_norm": "running"}}
    )
    method = byol(recipe)
    target = method.networks["target"]["backbone"]
    assert not target.bn1.training
    method.networks["online"]["backbone"].bn1.running_mean.fill_(1.0)
    method.before_step(Step(0))
    assert target.bn1.running_mean[0].item() == pytest.approx(1 - tau(0, total_steps=20, base=0.97), rel=1e-5)


def test_the_target_starts_as_a_copy_or_from_weights_of_its_own():
    for init, equal in {"copy": True, "independent": False}.items():
        method = byol(load_recipe("digits", {**TINY, "byol": {**TINY["byol"], "target_init": init}}))
        online, target = (method.networks[name]["backbone"].conv1.weight for name in ("online", "target"))
        assert torch.equal(online, target) == equal


def test_the_average_is_tau_target_plus_one_minus_tau_online(tiny_recipe):
    method = byol(tiny_recipe)
    online, target = (method.networks[name]["backbone"].conv1.weight for name in ("online", "target"))
    with torch.no_grad():
        online.add_(1.0)
    old, momentum = target.double().clone(), tau(7, total_steps=20, base=0.97)
    method.before_step(Step(7))
    wanted = momentum * old + (1 - momentum) * online.double()
    torch.testing.assert_close(target.double(), wanted, rtol=1e-6, atol=1e-7)
    before = target.clone()
    method.after_step(Step(7))
    assert torch.equal(target, before)


def test_updating_before_with_tau_k_equals_updating_after_with_tau_k_minus_one():
    """Both moments give the same target at every forward pass when it starts as a copy; only tau's index differs."""
    after = load_recipe("digits", {**TINY, "byol": {**TINY["byol"], "average_update": "after_step"}})
    one, other = byol(load_recipe("digits", TINY)), byol(after)
    torch.manual_seed(0)
    for step in range(4):
        one.before_step(Step(step))
        other.before_step(Step(step))
        for a, b in zip(one.networks["target"].parameters(), other.networks["target"].parameters(), strict=True):
            # not to the bit: the first update with tau(0) mixes two equal networks, which rounds
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        for a, b in zip(one.networks["online"].parameters(), other.networks["online"].parameters(), strict=True):
            with torch.no_grad():
                a.add_(torch.randn_like(a))
                b.copy_(a)
        one.after_step(Step(step))
        other.after_step(Step(step + 1))  # tau(k + 1) after step k: what `before` uses at step k + 1


def test_weights_decay_and_adapt_while_biases_and_norms_do_not():
    recipe = load_recipe("cifar10", {"model": {"width": 8}})
    treatments = parameter_treatments(byol(recipe).networks["online"], recipe["optimizer"])
    found = {one.name: (one.kind, one.weight_decay, one.lars_weight) for one in treatments}
    assert found["backbone.conv1.weight"] == ("weight", 1e-6, 1.0)
    assert found["backbone.layer2.0.downsample.0.weight"] == ("weight", 1e-6, 1.0)
    assert found["backbone.layer2.0.downsample.1.weight"] == ("norm", 0.0, 0.0)
    assert found["projector.1.bias"] == ("norm", 0.0, 0.0)
    assert found["predictor.0.weight"] == ("weight", 1e-6, 1.0)
    assert found["predictor.3.bias"] == ("bias", 0.0, 0.0)
    table = treatment_table(treatments)
    assert len(table.splitlines()) == len(treatments) + 1 and "predictor.3.bias" in table


def test_exclusions_are_keys_of_the_recipe():
    recipe = load_recipe("digits", {"optimizer": {"exclude_from_lars": [], "exclude_from_weight_decay": ["norm"]}})
    found = {one.name: one for one in parameter_treatments(byol(recipe).networks["online"], recipe["optimizer"])}
    assert found["backbone.bn1.weight"].lars_weight == 1.0 and found["backbone.bn1.weight"].weight_decay == 0
    assert found["projector.3.bias"].weight_decay == 1e-6


def test_health_tells_spread_features_from_collapsed_ones(tiny_recipe):
    method, views = byol(tiny_recipe), views_of(tiny_recipe)
    assert method.health(views)["feature_spread"] > 0
    assert method.encoder().training
    with torch.no_grad():
        for p in method.encoder().parameters():
            p.zero_()
        method.encoder().layer4[1].bn2.bias.fill_(1.0)
    assert method.health(views)["feature_spread"] == pytest.approx(0, abs=1e-6)
