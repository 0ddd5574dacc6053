"""Encoders with batch norms folded into their convolutions, against the unfolded ones."""

import math

import pytest
import torch
from torch import nn

from runs import evaluate, evaluation, on_cpu
from selfsup.augment import centre_view
from selfsup.models import BatchNorm, build_backbone, fold_batch_norms
from selfsup.recipe import load_recipe, merge
from tiny import TINY

ENCODERS = {
    "basic blocks, CIFAR's stem": ("cifar10", {"width": 8}),
    "bottlenecks, ImageNet's stem": ("imagenet", {"width": 8}),
    "JAX's padding": ("imagenet_official", {"width": 8}),
}


def trained_encoder(name: str, model: dict) -> nn.Module:
    """An encoder in float64 whose statistics and affine weights are as arbitrary as training leaves them."""
    encoder = build_backbone(load_recipe(name, {"model": model})).double().eval()
    for norm in filter(lambda module: isinstance(module, BatchNorm), encoder.modules()):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 4)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return encoder


def features(encoder: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(pictures)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_a_folded_encoder_gives_the_unfolded_ones_features(encoder):
    """To some hundred units in the last place of float64: fifty layers' sums are rounded otherwise."""
    encoder = trained_encoder(*encoder)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    folded, pictures = fold_batch_norms(encoder, torch.float64), torch.randn(3, 3, 31, 34, dtype=torch.float64)
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    wanted = features(encoder, pictures)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(features(folded, pictures), wanted, rtol=0, atol=1e-13 * wanted.abs().max().item())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_folding_does_not_add_to_the_error_of_bf16(encoder):
    """Mean distances from float64, some 1 % both, of six encoders whose weights are drawn. The logarithm of their ratio
    has a mean of 0 to -0.1 and a deviation of 0.2 at most, over six of 0.08: twice as much is eight deviations away."""
    ratios = [math.log(folded / unfolded) for folded, unfolded in (errors_in_bf16(*encoder) for _ in range(6))]
    assert sum(ratios) / 6 < math.log(2)


def errors_in_bf16(name: str, model: dict) -> list[float]:
    """Of an encoder's features, folded and unfolded."""
    encoder = trained_encoder(name, model)
    pictures = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    wanted, pictures = features(encoder, pictures), pictures.float()
    folded = features(fold_batch_norms(encoder, torch.bfloat16), pictures.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        unfolded = features(encoder.float(), pictures)
    assert folded.dtype == torch.bfloat16
    return [(one.double() - wanted).abs().mean().item() for one in (folded, unfolded)]


def test_folded_weights_are_rounded_once():
    encoder = trained_encoder("cifar10", {"width": 8}).float()
    wanted = fold_batch_norms(encoder.double(), torch.float64).state_dict()
    found = fold_batch_norms(encoder.float(), torch.float32).state_dict()
    assert wanted.keys() == found.keys() and all(wanted[name].float().equal(found[name]) for name in wanted)


def test_a_batch_norm_stays_where_the_convolutions_output_has_another_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.second = nn.Conv2d(3, 4, 1), BatchNorm(4), BatchNorm(4)

        def forward(self, x):
            y = self.conv(x)
            return self.second(self.norm(y) + y)

    network, pictures = Twice().double().eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded = fold_batch_norms(network, torch.float64)
    assert isinstance(folded.norm, BatchNorm) and isinstance(folded.second, BatchNorm)
    assert torch.equal(features(folded, pictures), features(network, pictures))


def test_a_network_in_train_mode_is_refused():
    with pytest.raises(ValueError, match="eval mode only"):
        fold_batch_norms(build_backbone(load_recipe("digits", {"model": {"width": 4}})).train(), torch.float32)


def test_the_headlines_test_features_are_the_encoders_own_in_fp32(tiny_store, tiny_recipe, tmp_path):
    """To the bit, whatever the job computes with; the training's are folded and in bf16."""
    encoder = trained_encoder("digits", TINY["model"]).float().requires_grad_(False)
    one = evaluation(encoder, tiny_store, tiny_recipe, compute=on_cpu(precision="bf16"))
    evaluate(one, tmp_path)
    pictures = centre_view(tiny_recipe, map(tiny_store.test.image, range(19)))
    wanted = encoder(pictures)
    assert one._test_features.equal(wanted) and one.changed_predictions() == 0
    fast = one.features(pictures)
    assert fast.dtype == torch.float32 and fast.equal(fast.bfloat16().float()) and not fast.equal(wanted)
    torch.testing.assert_close(fast, wanted, rtol=0, atol=0.05 * wanted.abs().max().item())


def test_the_headlines_test_forward_is_full_fp32_where_tf32_is_allowed(tiny_store, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    encoder = trained_encoder("digits", TINY["model"]).float().requires_grad_(False)
    one, seen = evaluation(encoder, tiny_store, tiny_recipe), []
    encoder.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    evaluate(one, tmp_path)
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_predictions_that_a_faster_test_forward_changes_are_counted(tiny_store, tiny_recipe, tmp_path):
    encoder = trained_encoder("digits", TINY["model"]).float().requires_grad_(False)
    recipe = merge(tiny_recipe, {"linear": {"test_precision": "compute"}})
    one = evaluation(encoder, tiny_store, recipe, compute=on_cpu(precision="bf16"))
    evaluate(one, tmp_path)
    pictures = centre_view(tiny_recipe, map(tiny_store.test.image, range(19)))
    assert one._test_features.equal(one.features(pictures))
    # Two classes, by one feature and a threshold between an image's exact and fast one; a tie is the first class's.
    exact, fast = encoder(pictures), one.features(pictures)
    feature = int((exact - fast).abs().amax(0).argmax())
    exact, fast = exact[:, feature], fast[:, feature]
    thresholds = (exact + fast) / 2
    changed = [int(((exact >= t) != (fast >= t)).sum()) for t in thresholds]
    assert max(changed) > 0
    with torch.no_grad():
        for threshold, wanted in zip(thresholds, changed, strict=True):
            one._classifier.weight.zero_()[0, feature] = 1
            one._classifier.bias.copy_(torch.tensor([0, threshold, -1e9]))
            assert one.changed_predictions() == wanted
