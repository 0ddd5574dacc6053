"""Typed settings: a dataclass is the schema, and what was read from a file becomes an instance of it, or one message.

A field is an annotated line with a docstring below it, which `selfsup.settings.described` reads. The annotation says
what is read: bool, int, float, str, Literal, list, dict, another Settings class, `| None`; Annotated adds notes:
bounds, a length, a pattern (`selfsup.settings.notes`), or which class is wanted (`Chosen`, `Elsewhere`).

A key with a default may be left out. `since(value)`: what settings meant before the key existed; filled in, and left
out of what names a run. A plain default is the attribute's value while the key is not in the mapping.
"""

import copy
import dataclasses
import difflib
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from selfsup.errors import UserError
from selfsup.settings.registries import Chosen, named

# YAML 1.1 reads 1e-6 as text, because it wants a dot in the mantissa and a sign in the exponent.
EXPONENT_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
# What a person would call the kinds of values.
KINDS = {
    list: "a list",
    dict: "keys with values",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
MISSING = dataclasses.MISSING


class Settings(Mapping):
    """The base of all settings: frozen dataclasses, and mappings of the keys that stand in the file or came `since`.

    Equal to a plain mapping of the same content. `Class(**values)` checks as reading does.
    """

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False)(cls)

    def __init__(self, **values: Any):
        self.__dict__.update(read(type(self), values, type(self).__name__).__dict__)

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.items())})"

    @classmethod
    def of(cls, value: Mapping) -> Self:
        """Return settings as they are, and a plain mapping read. Raises UserError as `read` does."""
        return value if isinstance(value, cls) else read(cls, value, cls.__name__)

    @classmethod
    def keys_of(cls, mapping: Mapping) -> Mapping[str, Any]:
        """Return the keys that such a mapping may have, with their types."""
        return hints(cls)

    def changed(self, **values: Any) -> Self:
        """Return the same settings with other values, which are not checked."""
        return _made(type(self), {**self, **values})

    def problems(self) -> Iterator[str]:
        """Yield what in these settings does not fit together, a line each, which begins with the key."""
        yield from ()

    def problems_in(self, whole: Any) -> Iterator[str]:
        """Yield what does not fit the settings that these are a part of, keys named from those."""
        yield from ()


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """The settings class "package.module:Class", imported by name: it lies in a layer above."""

    place: str


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type taken apart. base: the plain type; inner: its arguments; notes: of all Annotated around it."""

    base: Any
    inner: tuple
    notes: tuple
    nullable: bool

    @property
    def is_settings(self) -> bool:
        return isinstance(self.base, type) and issubclass(self.base, Settings)

    def note(self, kind: type) -> Any:
        return next((note for note in self.notes if isinstance(note, kind)), None)


@cache
def kind_of(hint: Any) -> Kind:
    """Take a type apart."""
    notes, nullable = (), False
    while get_origin(hint) in (Annotated, Union, types.UnionType):
        if get_origin(hint) is Annotated:
            notes, hint = notes + hint.__metadata__, hint.__origin__
        else:
            nullable, (hint,) = True, [one for one in get_args(hint) if one is not type(None)]
    elsewhere = next((note for note in notes if isinstance(note, Elsewhere)), None)
    return Kind(named(elsewhere.place) if elsewhere else get_origin(hint) or hint, get_args(hint), notes, nullable)


def since(value: Any) -> Any:
    """The default of a key that came after the first runs: what settings without it have always meant."""
    if isinstance(value, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(value), metadata={"since": True})
    return dataclasses.field(default=value, metadata={"since": True})


@cache
def hints(cls: type[Settings]) -> dict[str, Any]:
    """Return the types of a class's fields, notes included."""
    found = get_type_hints(cls, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


@cache
def optional(cls: type[Settings]) -> frozenset[str]:
    """Return the names of the fields that may be left out."""
    return frozenset(one.name for one in dataclasses.fields(cls) if _default(one) is not MISSING)


@cache
def _later(cls: type[Settings]) -> dict[str, dataclasses.Field]:
    """Return the fields that have come since."""
    return {one.name: one for one in dataclasses.fields(cls) if one.metadata.get("since")}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _made(cls: type[Settings], values: dict[str, Any]) -> Settings:
    found = object.__new__(cls)
    found.__dict__.update(values)
    return found


def plain(value: Any) -> Any:
    """Return settings, and all within them, as plain mappings, lists and scalars, as JSON and checkpoints want them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def read(hint: Any, value: Any, thing: str) -> Any:
    """Return `value` as the type says, such as a Settings class; numbers of the type that is wanted, 2 for 2.0.

    Where a number is wanted, one in exponent notation, such as "1e-6", may be a text. Raises UserError with the first
    mistake, which names `thing`, the key, the value and what is wanted.
    """
    problems: list[str] = []
    found = _read(hint, value, "", problems)
    problems = problems or list(_contradictions(found, ""))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{thing}: {problems[0]}{more}")
    return found


def _read(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return `value` as a type; add what is wrong with it to `problems`. where: its place, for messages."""
    kind = kind_of(hint)
    if (value is None and kind.nullable) or any(value == getattr(note, "word", MISSING) for note in kind.notes):
        return value
    value, before = as_number(kind, value), len(problems)
    problem = _misfit(kind, value)
    if problem:
        problems.append(f"{where or 'the top level'}{problem}")
        return value
    if kind.is_settings:
        found = _read_settings(kind, value, where, problems)
    elif kind.base is dict and kind.inner:
        found = _read_dict(kind, value, where, problems)
    elif kind.base is list:
        found = [_read(kind.inner[0], item, _place(where, number), problems) for number, item in enumerate(value)]
    else:
        found = kind.base(value) if kind.base in (int, float) else value
    if len(problems) == before:
        noted = (note.problem(value) for note in kind.notes if hasattr(note, "problem"))
        problems.extend(f"{where or 'the top level'}{text}" for text in noted if text)
    return found


def _read_dict(kind: Kind, value: Mapping, where: str, problems: list[str]) -> dict:
    keys, items = kind.inner
    for key in value:
        _read(keys, key, where, problems)
    return {key: _read(items, item, _place(where, key), problems) for key, item in value.items()}


def _read_settings(kind: Kind, value: Mapping, where: str, problems: list[str]) -> Any:
    chosen, place, before = kind.note(Chosen), where or "the top level", len(problems)
    cls = chosen.registry.get(value.get(chosen.key), Settings) if chosen else kind.base
    if cls is Settings:
        problems.append(_no_choice(chosen, value, where))
        return value
    known, left_out = cls.keys_of(value), optional(cls)
    for key in value:
        if key not in known:
            problems.append(f"unknown key {key!r} in {place}{suggest(str(key), list(known))}")
    problems += [f"{place} lacks the key {key!r}" for key in hints(cls) if key not in value and key not in left_out]
    inner = {key: _read(known[key], item, _place(where, key), problems) for key, item in value.items() if key in known}
    if len(problems) > before:
        return value
    return _made(cls, inner | {key: _default(one) for key, one in _later(cls).items() if key not in value})


def _no_choice(chosen: Chosen, value: Mapping, where: str) -> str:
    if chosen.key not in value:
        return f"{where or 'the top level'} lacks the key {chosen.key!r}"
    return f"{_place(where, chosen.key)} is {value[chosen.key]!r}, wanted one of {', '.join(chosen.registry)}"


def _place(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def as_number(kind: Kind, value: Any) -> Any:
    """Return a float for a text where a number is wanted: one in exponent notation, or what a note takes it for."""
    if not isinstance(value, str) or kind.base not in (int, float):
        return value
    for note in kind.notes:
        value = note.number(value) if hasattr(note, "number") else value
    return float(value) if isinstance(value, str) and EXPONENT_NUMBER.fullmatch(value) else value


def _misfit(kind: Kind, value: Any) -> str | None:
    """Return what is wrong with a value's own type, or None. What it holds is not looked at."""
    if kind.base is Literal:
        fits = any(value == one and isinstance(value, type(one)) for one in kind.inner)
        return None if fits else f" is {value!r}, wanted one of {', '.join(map(str, kind.inner))}"
    if isinstance(value, float) and not math.isfinite(value):
        return f" is {value}, wanted a number that is finite"
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return " is a number of more than 308 digits, wanted a number that is finite"
    return None if _is_a(kind, value) else f" is {value!r}{_wanted(kind, value)}"


def _is_a(kind: Kind, value: Any) -> bool:
    if kind.is_settings or kind.base is dict:
        return isinstance(value, Mapping)
    if isinstance(value, bool) or kind.base is bool:
        return isinstance(value, bool) and kind.base is bool
    if kind.base is int:
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, (int, float) if kind.base is float else kind.base)


def _wanted(kind: Kind, found: Any) -> str:
    """Say what belongs where something of another type was found, with an example where that helps."""
    base = dict if kind.is_settings else kind.base
    words = f"wanted {KINDS[base]}{' or null' if kind.nullable else ''}"
    for note in kind.notes:
        if hasattr(note, "example"):
            return f", {words} {note.example}"
    if isinstance(found, str) and base in (int, float):
        return f" (text; numbers are written without quotes), {words}"
    if isinstance(found, int | float) and base is str:
        return f", {words}: write '{found}' in quotes"
    if base is list and not isinstance(found, Mapping | None):
        return f", {words}, for example [{found}]"
    return f", {words}"


def _contradictions(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, Settings):
        yield from (f"{where}{line}" for line in value.problems())
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, Mapping) else ()
    for key, item in items:
        yield from _contradictions(item, f"{where}{key}.")


def with_each(hint: Any, value: Any, change: Callable[[Kind | None, Any], Any]) -> Any:
    """Return a mapping that may lack keys, or have unknown ones, with `change` done to each scalar, beside its type.

    The type of what is not known is None.
    """
    kind = None if hint is None else kind_of(hint)
    if isinstance(value, Mapping):
        known = _possible_keys(kind, value)
        return {key: with_each(known.get(key, known.get(None)), item, change) for key, item in value.items()}
    if isinstance(value, list):
        inner = kind.inner[0] if kind and kind.base is list else None
        return [with_each(inner, item, change) for item in value]
    return change(kind, value)


def without_later(hint: Any, value: Any) -> Any:
    """Return a mapping as plain ones, without the keys that came later and have their default."""
    kind = None if hint is None else kind_of(hint)
    if isinstance(value, Mapping):
        known = _possible_keys(kind, value)
        later = {key: one for cls in _classes(kind, value) for key, one in _later(cls).items()}
        return {
            key: without_later(known.get(key, known.get(None)), item)
            for key, item in value.items()
            if key not in later or item != _default(later[key])
        }
    if isinstance(value, list):
        inner = kind.inner[0] if kind and kind.base is list else None
        return [without_later(inner, item) for item in value]
    return value


def _possible_keys(kind: Kind | None, value: Mapping) -> Mapping[Any, Any]:
    """Return the types of a mapping's keys; that of any key under None."""
    if kind and kind.base is dict and kind.inner:
        return {None: kind.inner[1]}
    return {key: hint for cls in _classes(kind, value) for key, hint in cls.keys_of(value).items()}


def _classes(kind: Kind | None, value: Mapping) -> list[type[Settings]]:
    """Return the settings class of a mapping; all that there may be for a part of settings, which does not choose."""
    chosen = kind and kind.note(Chosen)
    if chosen:
        cls = chosen.registry.get(value.get(chosen.key))
        return [cls] if cls else list(dict.fromkeys(chosen.registry.values()))
    return [kind.base] if kind and kind.is_settings else []


def with_numbers(hint: Any, value: Any) -> Any:
    """Return `value`, which need not be complete, with a float for each text that is a number where one is wanted."""
    return with_each(hint, value, lambda kind, item: as_number(kind, item) if kind else item)


def suggest(word: str, known: list[str]) -> str:
    """Return "; did you mean X?" for the known word nearest to `word`, or the list of all known words."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"
