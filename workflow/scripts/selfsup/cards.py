"""Cards: the JSON beside a file that says what it is. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from selfsup.atomic_files import read_replaceable
from selfsup.errors import UserError


class CardError(UserError, ValueError):
    """A card that holds something else than a card."""


def read_card(path: Path) -> dict[str, Any]:
    """Return what a card holds. Raises CardError where it is no JSON or no mapping, OSError where it cannot be read."""
    try:
        card = json.loads(read_replaceable(path.read_text))
    except ValueError as error:
        raise CardError(f"{path}: no JSON ({error}): delete it and have it written again") from error
    if not isinstance(card, dict):
        raise CardError(
            f"{path}: found {json.dumps(card)[:40]}, wanted a mapping in braces: delete it and have it written again"
        )
    return card


def card_if_any(path: Path) -> dict[str, Any]:
    """Return what a card holds; nothing where there is none, or none that can be read."""
    try:
        return read_card(path)
    except (OSError, ValueError):
        return {}
