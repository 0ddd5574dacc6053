"""The network of plain torchvision that an encoder's file fits, for those who use it without this package."""

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from selfsup.models.same_padding import pad_as_jax

STANDARD_STEM = {"kernel": 7, "stride": 2, "padding": 3, "max_pool": True}
WIDTH = 64  # of torchvision's ResNets, which cannot be told another one


def torchvision_twin(model: Mapping[str, Any]) -> nn.Module | None:
    """Return torchvision's network with the changes that `torchvision_recipe` names; None where there is none.

    model: the recipe's block of that name. Takes the encoder's state dict with strict=True and gives its features.
    """
    if model["width"] != WIDTH:
        return None
    network, stem = getattr(torchvision.models, model["backbone"])(weights=None), model["stem"]
    network.fc = nn.Identity()
    if stem != STANDARD_STEM:
        network.conv1 = nn.Conv2d(3, WIDTH, stem["kernel"], stem["stride"], stem["padding"], bias=False)
        network.maxpool = network.maxpool if stem["max_pool"] else nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = model["batch_norm"]["eps"]
    if model["padding"] == "same":
        pad_as_jax(network)
    return network


def torchvision_recipe(model: Mapping[str, Any]) -> list[str] | None:
    """Return in Python how that network is made, a line each, for the encoder's card."""
    if model["width"] != WIDTH:
        return None
    stem, eps = model["stem"], model["batch_norm"]["eps"]
    lines = [f"network = torchvision.models.{model['backbone']}()", "network.fc = torch.nn.Identity()"]
    if stem != STANDARD_STEM:
        sizes = f"{stem['kernel']}, {stem['stride']}, {stem['padding']}"
        lines.append(f"network.conv1 = torch.nn.Conv2d(3, {WIDTH}, {sizes}, bias=False)")
    if not stem["max_pool"]:
        lines.append("network.maxpool = torch.nn.Identity()")
    if eps != nn.BatchNorm2d(1).eps:
        lines.append(f"for m in network.modules(): m.eps = {eps}")
    if model["padding"] == "same":
        lines.append("selfsup.models.same_padding.pad_as_jax(network)  # without it features are wrong")
    return [*lines, "network.load_state_dict(safetensors.torch.load_file('encoder.safetensors'), strict=True)"]
