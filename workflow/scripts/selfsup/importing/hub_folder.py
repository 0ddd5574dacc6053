"""Encoders that this workflow has published: folders of publish.py, model.safetensors with its card, model.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsup import provenance
from selfsup.cards import read_card
from selfsup.errors import UserError
from selfsup.importing.published import Published, read_tensors


def read_hub_folder(path: Path) -> Published:
    """Read a model.safetensors with its card. Raises UserError where they do not belong together, or one is damaged."""
    try:
        card = read_card(path.with_suffix(".json"))
        found, wanted = provenance.sha256(path), _told(card, "encoder_sha256", kind=str)
        method, epochs = _told(card, "recipe", "method", kind=str), round(_told(card, "training", "epoch", kind=float))
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: not from a folder of publish.py's, where model.json is beside model.safetensors ({error})"
        ) from error
    if found != wanted:
        raise UserError(
            f"{path}: its SHA-256 is {found[:16]}, but its card says {wanted[:16]}: download or publish it again"
        )
    return Published(read_tensors(path, "model.safetensors of publish.py's"), {"epochs": epochs}, method)


def _told(card: Mapping, *keys: str, kind: type) -> Any:
    """Return what a card has under a key, or under a key's key. Raises ValueError where it is of another kind."""
    value: Any = card
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"its {'.'.join(keys)} is {json.dumps(value)[:40]}")
    return value
