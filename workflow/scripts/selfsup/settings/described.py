"""What each key of settings means: the docstring below its field."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from selfsup.settings.typed import Chosen, Kind, Settings, hints, kind_of, optional


class Leaf(NamedTuple):
    """A value of settings. path: "augment.views.*.flip", "*" for any element of a list or mapping."""

    path: str
    kind: Kind
    meaning: str
    optional: bool


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


def leaves(cls: type[Settings], where: str = "") -> Iterator[Leaf]:
    """Yield every value of settings. What may be null is a value too, beside what it holds."""
    for name, hint in hints(cls).items():
        yield from _leaves(hint, f"{where}{name}", meanings(cls).get(name, ""), name in optional(cls))


def _leaves(hint: Any, path: str, meaning: str, left_out: bool) -> Iterator[Leaf]:
    kind, chosen = kind_of(hint), kind_of(hint).note(Chosen)
    of_many = kind.base in (list, dict) and kind.inner and kind_of(kind.inner[-1])
    if not (kind.is_settings or (of_many and of_many.is_settings)) or kind.nullable:
        yield Leaf(path, kind, meaning, left_out)
    if of_many and of_many.is_settings:
        yield from leaves(of_many.base, f"{path}.*.")
    elif kind.is_settings:
        classes = dict.fromkeys(chosen.registry.values()) if chosen else [kind.base]
        found = {leaf.path: leaf for one in classes for leaf in leaves(one, f"{path}.")}
        yield from found.values()
