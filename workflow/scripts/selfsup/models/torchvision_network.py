"""The network of plain torchvision that an encoder's file fits, for those who use it without this package."""

import torchvision
from torch import nn

from selfsup.models.resnet_settings import ResNetSettings, Stem
from selfsup.models.same_padding import pad_as_jax
from selfsup.recipe import Recipe

STANDARD_STEM = Stem(kernel=7, stride=2, padding=3, max_pool=True)
WIDTH = 64  # of torchvision's ResNets, which cannot be told another one


def torchvision_twin(model: ResNetSettings) -> nn.Module | None:
    """Return torchvision's network with the changes that `torchvision_recipe` names; None where there is none.

    model: the recipe's block of that name. Takes the encoder's state dict with strict=True and gives its features.
    """
    if model.width != WIDTH:
        return None
    network, stem = getattr(torchvision.models, model.backbone)(weights=None), model.stem
    network.fc = nn.Identity()
    if stem != STANDARD_STEM:
        network.conv1 = nn.Conv2d(3, WIDTH, stem.kernel, stem.stride, stem.padding, bias=False)
        network.maxpool = network.maxpool if stem.max_pool else nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = model.batch_norm.eps
    if model.padding == "same":
        pad_as_jax(network)
    return network


def torchvision_recipe(recipe: Recipe) -> list[str]:
    """Return in Python how that network is made and fed, a line each, for the encoder's card; or why there is none."""
    model = recipe.model
    if model.width != WIDTH:
        return [
            f"# torchvision's ResNets have a width of {WIDTH}, this one has {model['width']}:",
            "# selfsup.evaluation.encoder.load_encoder reads it, see docs/results.md, Using an encoder",
        ]
    stem, eps = model.stem, model.batch_norm.eps
    lines = ["import safetensors.torch, torch, torchvision"]
    lines += [f"network = torchvision.models.{model['backbone']}()", "network.fc = torch.nn.Identity()"]
    if stem != STANDARD_STEM:
        sizes = f"{stem['kernel']}, {stem['stride']}, {stem['padding']}"
        lines.append(f"network.conv1 = torch.nn.Conv2d(3, {WIDTH}, {sizes}, bias=False)")
    if not stem.max_pool:
        lines.append("network.maxpool = torch.nn.Identity()")
    if eps != nn.BatchNorm2d(1).eps:
        lines.append(f"for m in network.modules(): m.eps = {eps}")
    if model.padding == "same":
        lines.append("import selfsup.models.same_padding  # of this repository, whose workflow/scripts is on sys.path")
        lines.append("selfsup.models.same_padding.pad_as_jax(network)  # without it features are wrong")
    return [*lines, *feeding_lines(recipe)]


def feeding_lines(recipe: Recipe) -> list[str]:
    """Return in Python how an encoder's file is loaded into `network`, and how that is fed, a line each."""
    augment, test = recipe.augment, recipe.linear.test
    mean, std = (f"<{key} of the pictures>" if augment[key] == "dataset" else augment[key] for key in ("mean", "std"))
    return [
        "network.load_state_dict(safetensors.torch.load_file('encoder.safetensors'), strict=True)",
        "network.eval()",
        f"# pictures: float32 [N, 3, {test['crop']}, {test['crop']}], 0 to 1: the centre, after the shorter side was",
        f"# resized to {test['resize']} ({test['interpolation']}{', antialiased' if augment['antialias'] else ''})",
        f"normalise = torchvision.transforms.Normalize({mean}, {std})",
        "# features = network(normalise(pictures))",
    ]
