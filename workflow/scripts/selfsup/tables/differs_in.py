"""In which keys the experiments of a table differ that are of one recipe: what a sweep has swept."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from selfsup.config import Experiment
from selfsup.recipe import flattened

MOST = 6  # keys that a cell has room for


def differs_in(experiments: Iterable[Experiment]) -> dict[str, str | None]:
    """Return {name: "optimizer.peak_lr 0.5, byol.tau_base 0.9"}; None for the only one of its recipe."""
    of_recipe: dict[str, dict[str, dict[str, Any]]] = {}
    for one in experiments:
        of_recipe.setdefault(one.recipe_name, {})[one.name] = flattened(one.recipe)
    return {name: text for values in of_recipe.values() for name, text in _of_one_recipe(values).items()}


def _of_one_recipe(values: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    keys = dict.fromkeys(key for known in values.values() for key in known)
    first, *others = values.values()
    swept = [key for key in keys if any(one.get(key) != first.get(key) for one in others)]
    return {name: _text(known, swept) for name, known in values.items()}


def _text(known: Mapping[str, Any], swept: list[str]) -> str | None:
    told = [f"{key} {_value(known[key])}" for key in swept if key in known]
    further = f" and {len(told) - MOST} more" if len(told) > MOST else ""
    return ", ".join(told[:MOST]) + further or None


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
