"""Encoders that others have published, in their own formats, as state dicts of this package's backbones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.importing.authors import read_authors
from selfsup.importing.hub_folder import read_hub_folder
from selfsup.importing.official import read_official
from selfsup.importing.published import Published
from selfsup.importing.state_dicts import read_state_dict
from selfsup.models import Backbone, build_backbone
from selfsup.recipe import Recipe

# What reads a file of each publisher, and the padding with which its networks were trained.
PUBLISHERS: dict[str, tuple[Callable[[Path], Published], str | None]] = {
    "authors": (read_authors, "symmetric"),
    "official": (read_official, "same"),
    "selfsup": (read_hub_folder, None),  # whatever the recipe's is
}

# Whose networks' state dicts are read whatever they were trained by; state_dict: the recipe's own backbone's.
LIBRARIES = ("torchvision", "timm", "state_dict")

__all__ = ["LIBRARIES", "PUBLISHERS", "Published", "imported_backbone"]


def imported_backbone(
    path: Path, publisher: str, recipe: Mapping[str, Any], prefix: str | None = None
) -> tuple[nn.Module, Published]:
    """Return the recipe's backbone with a published file's weights, in eval mode, and what the file tells of itself.

    publisher: of PUBLISHERS or LIBRARIES. prefix: of the backbone's names in a state dict; None: it is found.
    Every weight of the backbone comes from the file, and every weight of the file's backbone is used. Raises UserError
    where they do not fit, where the recipe has another method or head than the file or pads otherwise than the
    publisher, and for a file of another format.
    """
    backbone = build_backbone(recipe)
    if publisher in LIBRARIES:
        published = read_state_dict(path, backbone, Recipe.of(recipe), prefix)
    else:
        published = _of_publisher(path, publisher, recipe, backbone)
    backbone.load_state_dict(published.weights, strict=True)
    return backbone.eval().requires_grad_(False), published


def _of_publisher(path: Path, publisher: str, recipe: Mapping[str, Any], backbone: Backbone) -> Published:
    read, padding = PUBLISHERS[publisher]
    model = recipe["model"]
    if padding is not None and model.get("padding") != padding:  # a model of timm has none
        raise UserError(
            f"model.padding is {model.get('padding')!r} in the recipe, wanted {padding!r} for weights of {publisher}: "
            f"otherwise their features are wrong: take the recipe imagenet_{publisher}"
        )
    published = read(path)
    _check_trained_by(path, published, Recipe.of(recipe))
    described = " of width ".join(str(model[key]) for key in ("backbone", "width") if key in model)
    check_fits(path, published.weights, backbone.state_dict(), described)
    return published


def _check_trained_by(path: Path, published: Published, recipe: Recipe) -> None:
    """Raise UserError where the file tells of another method or projector than the recipe's, by which it is judged."""
    told = {"method": (published.method, recipe.method)}
    if published.head and published.method == recipe.method:
        told["projector's layers"] = (published.head, recipe.own.projector.layers)
    for what, (found, wanted) in told.items():
        if found is not None and found != wanted:
            raise UserError(
                f"{path}: its {what}: {found}, the recipe's: {wanted}; take the recipe that the file was trained by"
            )


def check_fits(path: Path, found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise UserError with the first weight that only one side has, or whose shapes differ."""
    for name in sorted({*found, *wanted}):
        shapes = [tuple(side[name].shape) if name in side else None for side in (found, wanted)]
        if shapes[0] != shapes[1]:
            sides = [f"of shape {shape}" if shape is not None else "missing" for shape in shapes]
            raise UserError(
                f"{path}: {name} is {sides[0]} in the file and {sides[1]} in the recipe's {what}: take the recipe that "
                "the file was trained by"
            )
