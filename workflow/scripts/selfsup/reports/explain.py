"""A recipe as a table with the source of each value, what its key means, and the differences of two. Imports no torch.

Sources stand once, as comments in workflow/recipes: a value's is the comment of its own line, else that of the line of
the nearest key around it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from selfsup.config import Block, jobs_of
from selfsup.recipe import Recipe, flattened, load_recipe, recipe_files, recipe_names
from selfsup.settings.described import all_keys
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings, hints, read

# What changes together (group, why). Leaving a preset in one of them and not in the others is worth a warning.
PARTNERS = (
    (
        ("epochs", "optimizer.peak_lr", "optimizer.weight_decay", "byol.tau_base"),
        "the official presets for 40, 100, 300 and 1000 epochs change them together (explain.py imagenet_official_100)",
    ),
    (
        ("global_batch", "optimizer.peak_lr"),
        "the official code makes the rate proportional to the batch (base rate x batch / 256)",
    ),
    (
        ("augment.size", "linear.test.resize", "linear.test.crop"),
        "the test picture has the size of a view (paper, section 6.5: 36 and 32, 256 and 224)",
    ),
    (
        ("augment.size", "augment.views.0.blur.kernel", "augment.views.1.blur.kernel"),
        "the blur's kernel is 10 % of the image (paper, section 6.4)",
    ),
)


@dataclass(frozen=True)
class Value:
    """One value of a recipe.

    key: its path, "augment.views.0.flip". source: where it is from. file: which sets it. meaning: what the key means.
    """

    key: str
    value: Any
    source: str
    file: str
    meaning: str = ""


def explained(name: str, overrides: Mapping | None = None, *, overrides_from: str = "overrides") -> list[Value]:
    """Return all values of a recipe, in the order of its files, with their sources.

    Raises RecipeError as `load_recipe` does.
    """
    values, meanings = flattened(load_recipe(name, overrides)), key_meanings()
    sources: dict[str, tuple[str, str]] = {}
    for path in recipe_files(name):
        sources.update((key, (source, path.stem)) for key, source in file_sources(path).items())
    sources.update((key, ("", overrides_from)) for key in flattened(overrides or {}))
    return [
        Value(key, value, *sources.get(key, ("", "the key's default")), _meaning(key, meanings))
        for key, value in values.items()
    ]


def explained_block(given: Mapping, name: str) -> list[Value]:
    """Return an experiment's own keys, those of its recipe aside, with what stands in config.yaml and the defaults.

    given: the experiment's block as it was read. Raises UserError as `selfsup.config` does.
    """
    block = read(Block, given, f"experiments.{name}")
    values = flattened({**_complete(block), "compute": _complete(jobs_of(block.compute))})
    meanings, stated = {key.path: key.meaning for key in all_keys(Block)}, flattened(given)
    return [
        Value(key, value, "", "config.yaml" if key in stated else "the key's default", _meaning(key, meanings))
        for key, value in values.items()
        if key.partition(".")[0] not in ("overrides", "grid")  # which the recipe has by now
    ]


def _complete(value: Any) -> Any:
    """Return settings with all their keys, those too that were left out."""
    if isinstance(value, Settings):
        return {key: _complete(getattr(value, key)) for key in hints(type(value))}
    return list(value) if isinstance(value, tuple) else value


def _meaning(key: str, meanings: Mapping[str, str]) -> str:
    """Return what a key means, or what the mapping of any keys does that it stands in."""
    place = re.sub(r"\.\d+(?=\.)", ".*", key)
    while place not in meanings:
        place = place.rpartition(".")[0]
    return meanings[place]


def key_meanings() -> dict[str, str]:
    """Return {path of a key: what it means} of all recipes, "*" for any element of a list."""
    keys = [*all_keys(Recipe), *(key for name, block in METHODS.items() for key in all_keys(block, f"{name}."))]
    return {key.path: key.meaning for key in keys}


def file_sources(path: Path) -> dict[str, str]:
    """Return {path of a key: source} for the values that a recipe's file sets itself."""
    text = path.read_text()
    comments = _comments(text)
    return dict(_sources(yaml.compose(text), comments, "", ""))


def differing(one: list[Value], other: list[Value]) -> list[tuple[str, Value | None, Value | None]]:
    """Return (key, value here, value there) where two explained recipes differ; None where one has no such key."""
    here, there = ({value.key: value for value in values} for values in (one, other))
    keys = list(dict.fromkeys([*here, *there]))
    pairs = ((key, here.get(key), there.get(key)) for key in keys)
    return [(key, a, b) for key, a, b in pairs if a is None or b is None or a.value != b.value]


def warnings(preset: Mapping, recipe: Mapping) -> Iterator[str]:
    """Yield a line for each group of partners whose first has moved from the preset while some of the others stay.

    Nothing is said of values that stand together in another recipe.
    """
    old, new = flattened(preset), flattened(recipe)
    whole = [(group, reason) for group, reason in PARTNERS if new.keys() >= {*group}]  # others are of another method
    for group, reason in whole:
        moved = [key for key in group if key in new and old.get(key) != new[key]]
        stayed = [key for key in group if key in new and key not in moved]
        if group[0] in moved and stayed and not _stand_together(group, new):
            changes = ", ".join(f"{key} is {_text(new[key])} instead of {_text(old[key])}" for key in moved)
            rest = ", ".join(f"{key}: {_text(new[key])}" for key in stayed)
            yield f"{changes}, and its partners stay ({rest}); {reason}"


def _stand_together(group: tuple[str, ...], values: Mapping) -> bool:
    """Say whether another recipe has a group's values, too."""
    return any(all(other.get(key) == values.get(key) for key in group) for other in _all_recipes())


@cache
def _all_recipes() -> list[Mapping]:
    return [flattened(load_recipe(name)) for name in recipe_names()]


def table(values: list[Value], *, meanings: bool = False) -> str:
    """Return the values for people, a line each; with `meanings` below it another, of what the key means."""
    text = _columns([("key", "value", "source"), *((one.key, _text(one.value), _origin(one)) for one in values)])
    if not meanings:
        return text
    head, *lines = text.splitlines()
    pairs = zip(lines, values, strict=True)
    return "\n".join([head, *(f"{line}\n    {one.meaning}" for line, one in pairs)]) + "\n"


def difference_table(one: str, other: str, lines: list[tuple[str, Value | None, Value | None]]) -> str:
    """Return the differences of the recipes named `one` and `other` for people, with the sources of the second."""
    rows = [
        (key, *("-" if value is None else _text(value.value) for value in (here, there)), _origin(there or here))
        for key, here, there in lines
    ]
    return _columns([("key", one, other, "source"), *rows])


def _comments(text: str) -> dict[int, str]:
    """Return {line: comment} for lines that hold more than a comment. Found behind the line's last token."""
    ends: dict[int, int] = {}
    for token in yaml.scan(text):
        if token.start_mark.index < token.end_mark.index:
            ends[token.end_mark.line] = max(ends.get(token.end_mark.line, 0), token.end_mark.column)
    behind = {number: text.splitlines()[number][end:].strip() for number, end in ends.items()}
    return {number: rest.lstrip("# ") for number, rest in behind.items() if rest.startswith("#")}


def _sources(node: yaml.Node, comments: Mapping[int, str], where: str, around: str) -> Iterator[tuple[str, str]]:
    for key, line, child in _children(node):
        path = f"{where}.{key}" if where else key
        source = comments.get(line, around)
        if path == "base":
            continue
        inner = list(_sources(child, comments, path, source))
        yield from inner or [(path, source)]


def _children(node: yaml.Node) -> Iterator[tuple[str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            yield key.value, key.start_mark.line, child
    elif isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.MappingNode) for item in node.value):
        for place, child in enumerate(node.value):
            yield str(place), -1, child  # no line is an item's own: what is around it tells


def _origin(value: Value) -> str:
    return f"{value.source}  [{value.file}]" if value.source else f"[{value.file}]"


def _text(value: Any) -> str:
    """A value as YAML writes it in a recipe."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"
