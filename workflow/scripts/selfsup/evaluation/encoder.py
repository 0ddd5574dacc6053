"""The encoder as a file: safetensors with torchvision's or timm's names, and a card that says where it is from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from selfsup import models, provenance
from selfsup.atomic_files import put_in_place, write_atomically
from selfsup.cards import read_card
from selfsup.errors import UserError
from selfsup.evaluation import record
from selfsup.models import build_backbone, software, torchvision_recipe, torchvision_twin
from selfsup.models.resnet_settings import ResNetSettings
from selfsup.models.timm_settings import TimmSettings
from selfsup.recipe import Recipe
from selfsup.settings.typed import plain


def encoder_card(network: str, recipe: Mapping, seed: int | None) -> dict[str, Any]:
    """Return what the card of every encoder tells. network: which part of a method it is, in words."""
    return {
        "network": network,
        "recipe": plain(recipe),
        "seed": seed,
        "protocol": Recipe.of(recipe).linear.protocol(recipe),
        **_lines_of_the_twin(recipe),
        "code_revision": provenance.code_revision(),
        "versions": provenance.versions() | software(recipe),
    }


def _lines_of_the_twin(recipe: Mapping) -> dict[str, list[str]]:
    """Return {library: lines of Python} that make the plain network that fits the weights; {} where there is none."""
    recipe = Recipe.of(recipe)
    if isinstance(recipe.model, TimmSettings):
        return {"timm": models.timm_recipe(recipe)}
    return {"torchvision": torchvision_recipe(recipe)} if isinstance(recipe.model, ResNetSettings) else {}


def _twin(recipe: Mapping) -> tuple[str, nn.Module | None]:
    """Return the library that has the backbone, and its plain network if it has one of these settings."""
    recipe = Recipe.of(recipe)
    if isinstance(recipe.model, TimmSettings):
        return "timm", models.timm_twin(recipe)
    return "torchvision", torchvision_twin(recipe.model) if isinstance(recipe.model, ResNetSettings) else None


def save_encoder(path: Path, encoder: nn.Module, card: Mapping[str, Any]) -> str:
    """Write the weights to `path` and `card`, with their SHA-256, beside it as JSON. Returns the SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, temporary)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error}): free space or mend permissions, then start again"
        ) from error
    temporary.chmod(0o666 & ~_umask())  # safetensors lets nobody else read what it writes
    checksum = provenance.sha256(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    put_in_place(temporary, path)  # on disk before the card that tells of it
    write_atomically(path.with_suffix(".json"), json.dumps({**card, "encoder_sha256": checksum}, indent=1) + "\n")
    record.collect(path)
    return checksum


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_encoder(path: Path, recipe: Mapping) -> tuple[nn.Module, dict[str, Any]]:
    """Return the encoder in eval mode and its card.

    Raises UserError when the file is missing or damaged, or does not fit the recipe's backbone in every name and shape.
    """
    try:
        card = read_card(path.with_suffix(".json"))
        if provenance.sha256(path) != card["encoder_sha256"]:
            raise UserError(
                f"{path}: its checksum is not the one in {path.with_suffix('.json').name}: export the encoder again"
            )
        weights = load_file(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: no readable encoder with its card ({error}): export the encoder again") from error
    encoder = build_backbone(recipe)
    try:
        encoder.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit the recipe's {_described(recipe['model'])} ({str(error).splitlines()[1].strip()})"
        ) from error
    return encoder.eval().requires_grad_(False), card


def _described(model: Mapping) -> str:
    return f"{model['backbone']} of width {model['width']}" if "width" in model else model["backbone"]


def check_same_features(path: Path, encoder: nn.Module, recipe: Mapping) -> None:
    """Load the file back, here and into plain torchvision or timm, and compare features on a fixed batch, to the bit.

    Their network is left out where they have none of the encoder's width. Raises UserError when features differ.
    """
    size = recipe["augment"]["size"]
    pictures = torch.linspace(-2, 2, 2 * 3 * size * size).view(2, 3, size, size)
    networks = {"this package's": load_encoder(path, recipe)[0]}
    library, twin = _twin(recipe)
    if twin is not None:
        twin.load_state_dict(load_file(path), strict=True)
        networks[f"{library}'s"] = twin.eval()
    with torch.no_grad():
        wanted = encoder.eval()(pictures)
        wrong = [name for name, network in networks.items() if not torch.equal(network(pictures), wanted)]
    if wrong:
        raise UserError(
            f"{path}: in {' and '.join(wrong)} network the file's features differ from the encoder's: the disk or this "
            "code is at fault; do not use it"
        )
