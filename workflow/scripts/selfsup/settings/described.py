"""What each key of settings means: the docstring below its field."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from selfsup.settings.registries import Chosen
from selfsup.settings.typed import Kind, Settings, hints, kind_of, optional


class Key(NamedTuple):
    """A key of settings. path: "augment.views.*.flip", "*" for any element of a list or mapping.

    holds_keys: it has no value of its own, which null would be.
    """

    path: str
    kind: Kind
    meaning: str
    optional: bool
    holds_keys: bool


@cache
def meanings(cls: type[Settings]) -> dict[str, str]:
    """Return {field: its docstring}, those of base classes included."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if issubclass(one, Settings) and one is not Settings:
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body
            for line, below in pairwise(body):
                if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[line.target.id] = " ".join(below.value.value.split())
    return found


def leaves(cls: type[Settings], where: str = "") -> Iterator[Key]:
    """Yield every key that has a value. What may be null has one, beside what it holds."""
    return (key for key in all_keys(cls, where) if not key.holds_keys)


def all_keys(cls: type[Settings], where: str = "") -> Iterator[Key]:
    """Yield every key of settings, before those that it holds."""
    for name, hint in hints(cls).items():
        kind = kind_of(hint)
        inner = list(_inner_classes(kind))
        meaning = meanings(cls).get(name, "")
        yield Key(f"{where}{name}", kind, meaning, name in optional(cls), bool(inner) and not kind.nullable)
        below = f"{where}{name}." if kind.is_settings else f"{where}{name}.*."
        yield from {key.path: key for one in inner for key in all_keys(one, below)}.values()


def _inner_classes(kind: Kind) -> Iterator[type[Settings]]:
    """Yield the classes of the settings that a key holds, one by one or in a list or mapping."""
    chosen = kind.note(Chosen)
    if chosen:
        yield from dict.fromkeys(chosen.registry.values())
    elif kind.is_settings:
        yield kind.base
    elif kind.base in (list, dict) and kind.inner:
        yield from _inner_classes(kind_of(kind.inner[-1]))
