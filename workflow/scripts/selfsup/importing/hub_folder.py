"""Encoders that this workflow has published: folders of publish.py, model.safetensors with its card, model.json."""

from pathlib import Path

from safetensors.torch import load_file

from selfsup import provenance
from selfsup.cards import read_card
from selfsup.errors import UserError
from selfsup.importing.published import Published


def read_hub_folder(path: Path) -> Published:
    """Read a model.safetensors with its card. Raises UserError where they do not belong together, or one is damaged."""
    try:
        card = read_card(path.with_suffix(".json"))
        found, wanted = provenance.sha256(path), card["encoder_sha256"]
        method, epochs = card["recipe"]["method"], round(card["training"]["epoch"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no folder of publish.py's, model.safetensors beside model.json ({error})") from error
    if found != wanted:
        raise UserError(f"{path}: its SHA-256 is {found[:16]}, {wanted[:16]} in its card: download or publish it again")
    return Published(load_file(path), {"epochs": epochs}, method)
