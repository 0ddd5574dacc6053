"""Experiments with a `grid`, written out: one experiment for each combination of its values. Imports no torch."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.settings.yaml_reader import read_yaml

MOST = 250  # experiments of a configuration: each is a folder, a line of a table and a curve of a figure
RECIPE = "recipe"  # the one key of a grid that is the experiment's own
EXAMPLE = "for example {optimizer.peak_lr: [0.1, 0.2]}"


def read_config_file(path: Path) -> Any:
    """Return the content of a config.yaml without grids. Raises UserError."""
    return as_a_person_wrote(read_yaml(path))


def as_a_person_wrote(raw: Any) -> Any:
    """Return a configuration that a person has written, without grids. Raises UserError for too many experiments.

    What was run in the course of time may be more, and is still shown: that is read by `without_grids` alone.
    """
    written = without_grids(raw)
    experiments = written.get("experiments") if isinstance(written, Mapping) else None
    count = len(experiments) if isinstance(experiments, Mapping) else 0
    if count > MOST:
        raise UserError(
            f"config.yaml: experiments are {count}, those of grids written out, wanted at most {MOST}: take out those "
            "that are finished, whose results stay, or run the others in another folder"
        )
    return written


def without_grids(raw: Any) -> Any:
    """Return a configuration whose experiments with a `grid` are written out, and so the tables that list them.

    raw: as config.yaml was read; what is no mapping where one is wanted is left for whoever checks it. Each combination
    is an experiment <name>-<key>_<value>-..., named by the keys' last parts, in the grid's order. One of that name that
    stands there itself is taken instead, as it is where a configuration that was run lies over config.yaml. Raises
    UserError.
    """
    experiments = raw.get("experiments") if isinstance(raw, Mapping) else None
    if not isinstance(experiments, Mapping) or not any(map(_has_grid, experiments.values())):
        return raw
    written = {name: block for name, block in experiments.items() if not _has_grid(block)}
    members: dict[Any, list[str]] = {}
    makers: dict[str, Any] = {}
    for name in experiments.keys() - written.keys():
        made = dict(_combinations(f"config.yaml: experiments.{name}.grid", name, experiments[name]))
        members[name] = list(made)
        for one, whole in made.items():
            if makers.setdefault(one, name) != name:
                raise UserError(f"config.yaml: experiments.{name} and {makers[one]} both make {one}: rename one")
            written.setdefault(one, whole)
    order = [one for name in experiments for one in members.get(name, [name])]
    return {**raw, "experiments": {one: written[one] for one in order}, **_tables(raw, members)}


def _has_grid(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("grid") is not None


def _tables(raw: Mapping, members: Mapping[Any, list[str]]) -> dict[str, Any]:
    """Return the tables, in which an experiment with a grid stands for all that were made of it."""
    tables = raw.get("tables")
    if not isinstance(tables, Mapping):
        return {}
    listed = {table: names for table, names in tables.items() if isinstance(names, list)}
    whole = {
        table: [one for name in names for one in (members.get(name, [name]) if isinstance(name, str) else [name])]
        for table, names in listed.items()
    }
    return {"tables": {**tables, **whole}}


def _combinations(where: str, name: str, block: Mapping) -> Iterator[tuple[str, dict[str, Any]]]:
    grid = block["grid"]
    if not isinstance(grid, Mapping) or not grid or not all(isinstance(key, str) for key in grid):
        raise UserError(f"{where} is {grid!r}, wanted recipe keys with their values, {EXAMPLE}")
    choices = [list(_labelled(f"{where}.{key}", values)) for key, values in grid.items()]
    if prod(map(len, choices)) > MOST:
        raise UserError(f"{where} has {prod(map(len, choices))} combinations, wanted at most {MOST}: split it")
    short = _short_names(grid)
    rest = {key: value for key, value in block.items() if key != "grid"}
    for chosen in product(*choices):
        parts = [f"{key}_{label}" if key != RECIPE else label for key, (label, _) in zip(short, chosen, strict=True)]
        whole = dict(rest)
        for key, (_, value) in zip(grid, chosen, strict=True):
            if key == RECIPE:
                whole[RECIPE] = value
            else:
                whole["overrides"] = _with(whole.get("overrides") or {}, key.split("."), value, where)
        yield "-".join([str(name), *parts]), whole


def _labelled(where: str, values: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of a key with the words that names have for them."""
    pairs = list(values.items()) if isinstance(values, Mapping) else None
    if isinstance(values, list) and not any(isinstance(one, list | Mapping) for one in values):
        pairs = [(_word(one), one) for one in values]
    if not pairs:
        wanted = "a list of numbers or words, or for other values a mapping of a name to each"
        raise UserError(f"{where} is {values!r}, wanted {wanted}")
    words = [_word(label) for label, _ in pairs]
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice:
        raise UserError(f"{where} has two values named {twice}: give each its name, {{first: ..., second: ...}}")
    yield from zip(words, (value for _, value in pairs), strict=True)


def _word(value: Any) -> str:
    """Return a value as a part of a name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9_.]+", "_", Path(text).stem if text.endswith(".yaml") else text) or "_"


def _short_names(grid: Mapping) -> list[str]:
    """Return the keys' last parts; those that are another's too, whole."""
    last = [str(key).rpartition(".")[2] for key in grid]
    return [one if last.count(one) == 1 else str(key) for one, key in zip(last, grid, strict=True)]


def _with(overrides: Any, path: list[str], value: Any, where: str) -> dict[str, Any]:
    """Return overrides with one value set, at a path of keys."""
    if not isinstance(overrides, Mapping):
        raise UserError(f"{where}.{'.'.join(path)} cannot be set: found {overrides!r} there, wanted recipe keys")
    first, *others = path
    key = int(first) if first.isdigit() else first
    inner = _with(overrides.get(key, overrides.get(first)) or {}, others, value, where) if others else value
    return {**overrides, key: inner}
