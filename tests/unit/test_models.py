import pytest
import torch
import torchvision

from selfsup.models import BatchNorm, build_backbone, build_head, initial_backbone
from selfsup.models.batch_norm_settings import BatchNormSettings
from selfsup.models.head_settings import HeadSettings
from selfsup.recipe import load_recipe


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("recipe", "theirs"), [("imagenet", "resnet50"), ("cifar10", "resnet18")])
def test_the_backbone_is_torchvisions_network_without_its_classifier(recipe, theirs):
    ours = initial_backbone(load_recipe(recipe), seed=0)
    reference = getattr(torchvision.models, theirs)(weights=None)
    reference.fc = torch.nn.Identity()
    if recipe == "cifar10":  # paper, section 6.2
        reference.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        reference.maxpool = torch.nn.Identity()
    reference.load_state_dict(ours.state_dict(), strict=True)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(pictures), reference.eval()(pictures), rtol=0, atol=0)
    assert ours.out_features == {"resnet50": 2048, "resnet18": 512}[theirs]


def test_parameter_counts_are_the_published_ones():
    """torchvision's resnet50 has 25,557,032 with its classifier of 2,049,000; resnet18 11,689,512 with 513,000."""
    assert parameters(build_backbone(load_recipe("imagenet"))) == 25_557_032 - 2_049_000
    stem_difference = 3 * 64 * (7 * 7 - 3 * 3)
    assert parameters(build_backbone(load_recipe("cifar10"))) == 11_689_512 - 513_000 - stem_difference


def test_width_scales_every_layer():
    narrow = build_backbone(load_recipe("cifar10", {"model": {"width": 16}}))
    assert narrow.out_features == 128 and narrow.layer4[1].conv2.weight.shape == (128, 128, 3, 3)
    bottleneck = build_backbone(load_recipe("imagenet", {"model": {"width": 8}}))
    assert bottleneck.out_features == 256 and bottleneck(torch.zeros(2, 3, 64, 64)).shape == (2, 256)


@pytest.mark.parametrize("zero", [True, False])
def test_residual_branches_start_as_nothing_when_asked(zero):
    backbone = build_backbone(load_recipe("cifar10", {"model": {"zero_init_residual": zero}}))
    assert bool((backbone.layer3[0].bn2.weight == 0).all()) == zero


def test_initial_weights_are_a_function_of_the_seed_alone():
    recipe = load_recipe("digits")
    before = torch.get_rng_state()
    first = initial_backbone(recipe, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second, other = initial_backbone(recipe, seed=5), initial_backbone(recipe, seed=6)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize("bias", [True, False])
def test_heads_have_the_layers_of_section_6_2(bias):
    batch_norm = BatchNormSettings(statistics="both_views", momentum=0.1, eps=1e-5)
    head = build_head(6, HeadSettings(hidden=10, out=4, bias_before_bn=bias, bias_last=not bias), batch_norm)
    kinds = [type(layer) for layer in head]
    assert kinds == [torch.nn.Linear, BatchNorm, torch.nn.ReLU, torch.nn.Linear]
    assert (head[0].bias is not None, head[3].bias is not None) == (bias, not bias)
    assert head(torch.randn(3, 6)).shape == (3, 4)


def test_statistics_per_view_equal_two_calls_buffers_included():
    grouped, plain = BatchNorm(5), torch.nn.BatchNorm2d(5)
    grouped.groups = 2
    x = torch.randn(12, 5, 3, 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.manual_seed(0)
    weights = torch.randn(12, 5, 3, 3)
    ours = grouped(x)
    theirs = torch.cat([plain(y[:6]), plain(y[6:])])
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(ours, theirs) and torch.equal(x.grad, y.grad)
    for name, value in plain.state_dict().items():
        assert torch.equal(grouped.state_dict()[name], value), name


def test_statistics_over_both_views_are_torchs_own():
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm1d(5)
    x = torch.randn(12, 5)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_a_batch_that_cannot_be_cut_into_views_is_refused():
    norm = BatchNorm(2)
    norm.groups = 2
    with pytest.raises(ValueError, match="batch of 3 cannot be cut into 2 views"):
        norm(torch.randn(3, 2))
