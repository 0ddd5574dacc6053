"""timm's models as backbones: no classifier, timm's names of parameters, batch norm over all ranks. Needs timm."""

import difflib
from typing import Any

import torch
from torch import nn

from selfsup.errors import PermanentError, UserError
from selfsup.models.batch_norm import BatchNorm, BatchNormAct
from selfsup.models.fixed_patches import fix_positions, freeze_patch_projection
from selfsup.models.modes import evaluation_mode
from selfsup.models.timm_settings import TimmSettings
from selfsup.models.torchvision_network import feeding_lines
from selfsup.recipe import Recipe

try:
    import timm
    from timm.layers import BatchNormAct2d
except ImportError as error:
    raise UserError(f"model.backbone is of timm, which is not installed ({error}): pip install timm==1.0.31") from error


def timm_backbone(recipe: Recipe) -> nn.Module:
    """Return the recipe's model of timm: from images [N, 3, S, S] to features [N, out_features].

    Raises UserError for a model that timm has not, that takes no pictures of the recipe's sizes, or whose batch norm
    cannot be that of all ranks; PermanentError where no free memory could help.
    """
    network = _created(recipe.model, recipe.model.drop_path, recipe.augment.size)
    if recipe.model.positions == "sin_cos":
        fix_positions(network, recipe.model.backbone)
    if recipe.model.freeze_patch_projection:
        freeze_patch_projection(network, recipe.model.backbone)
    _normalise_over_ranks(network, recipe.model)
    for size, key in _sizes(recipe).items():
        network.out_features = _features_of(network, recipe.model, key, size)
    return network


def _sizes(recipe: Recipe) -> dict[int, str]:
    """Return the sizes of all pictures that the network will see, in pixels, each with the recipe's key for it."""
    augment = recipe.augment
    views = {view.size: f"augment.views.{place}.size" for place, view in enumerate(augment.views) if view.size}
    plain = {augment.plain.crop: "augment.plain.crop"} if augment.plain else {}
    return {**plain, **views, recipe.linear.test.crop: "linear.test.crop", augment.size: "augment.size"}


def timm_twin(recipe: Recipe) -> nn.Module:
    """Return timm's own network, which takes the encoder's state dict with strict=True and gives its features."""
    network = _created(recipe.model, 0.0, recipe.augment.size)
    for module in _batch_norms(network):
        module.eps = recipe.model.batch_norm.eps
    return network


def timm_eps(recipe: Recipe) -> set[float]:
    """Return the eps of timm's own batch norms in that network."""
    return {module.eps for module in _batch_norms(_created(recipe.model, 0.0, recipe.augment.size))}


def timm_heads(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the layers that are the model's classifier in timm's files of weights."""
    _check_name(recipe.model)
    names = timm.models.get_pretrained_cfg(recipe.model.name).classifier or ()
    return (names,) if isinstance(names, str) else tuple(names)


def timm_recipe(recipe: Recipe) -> list[str]:
    """Return in Python how that network is made and fed, a line each, for the encoder's card."""
    model = recipe.model
    given = "".join(f", {key}={value!r}" for key, value in _arguments(model, 0.0, recipe.augment.size).items())
    lines = [
        f"import safetensors.torch, timm, torch, torchvision  # timm {timm.__version__}",
        f"network = timm.create_model({model.name!r}{given})",
    ]
    if _batch_norms(timm_twin(recipe)):
        lines.append("norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]")
        lines.append(f"for m in norms: m.eps = {model.batch_norm.eps}")
    return [*lines, *feeding_lines(recipe)]


def _created(model: TimmSettings, drop_path: float, size: int) -> nn.Module:
    arguments = _arguments(model, drop_path, size)
    try:
        return timm.create_model(model.name, pretrained=False, **arguments)
    except Exception as error:  # whatever a model's own code makes of arguments that do not suit it
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"model: timm cannot make {model.name} with {given} ({_first_line(error)}): change model.arguments"
        ) from error


def _arguments(model: TimmSettings, drop_path: float, size: int) -> dict[str, Any]:
    """Return what create_model is given. A model that is made for one size of pictures is made for the recipe's."""
    _check_name(model)
    arguments: dict[str, Any] = {"num_classes": 0}
    if timm.models.get_pretrained_cfg(model.name).fixed_input_size:
        arguments["img_size"] = size
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    return arguments | model.arguments


def _check_name(model: TimmSettings) -> None:
    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, timm.list_models(), n=1)
        hint = f"did you mean timm/{near[0]}?" if near else "timm.list_models() names all that there are"
        raise PermanentError(
            f"model.backbone is {model.backbone!r}, which timm {timm.__version__} does not have; {hint}"
        )


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    """Return all modules that normalise by the batch, whatever their type: they keep a running variance."""
    return [module for module in network.modules() if "running_var" in dict(module.named_buffers(recurse=False))]


def _normalise_over_ranks(network: nn.Module, model: TimmSettings) -> None:
    """Make each batch norm this package's; the modules stay, and so all that refers to them."""
    ours = {nn.BatchNorm1d: BatchNorm, nn.BatchNorm2d: BatchNorm, BatchNormAct2d: BatchNormAct}
    for module in _batch_norms(network):
        if type(module) not in ours or not module.affine:
            raise PermanentError(
                f"model.backbone is {model.backbone!r}, whose {type(module).__name__} cannot be computed over all "
                "ranks: choose another model, or another norm_layer in model.arguments"
            )
        module.__class__ = ours[type(module)]
        module.momentum, module.eps = model.batch_norm.momentum, model.batch_norm.eps


def _features_of(network: nn.Module, model: TimmSettings, key: str, size: int) -> int:
    """Return the length of a picture's features. key: which of the recipe's sizes it is."""
    try:
        with evaluation_mode(network):
            features = network(torch.zeros(1, 3, size, size))
    except Exception as error:  # whatever a model's own code makes of a size that does not suit it
        raise UserError(
            f"{key} is {size}, which does not suit {model.backbone} ({_first_line(error)}): change it, or see "
            "model.arguments (img_size, dynamic_img_size)"
        ) from error
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        found = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise PermanentError(f"{model.backbone} gives {found} for a picture, wanted [1, features]: see its arguments")
    return features.shape[1]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
