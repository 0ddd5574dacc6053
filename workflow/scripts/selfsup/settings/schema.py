"""Checking what was read against a schema, with messages that a person understands at once."""

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from selfsup.errors import UserError
from selfsup.settings.yaml_reader import parse_yaml

try:
    import jsonschema
except ImportError:  # a machine with PyTorch and little else, as for benchmarks/gpu.sh
    jsonschema = None

SCHEMAS = Path(__file__).parents[3] / "schemas"

# YAML 1.1 reads 1e-6 as text, because it wants a dot in the mantissa and a sign in the exponent.
EXPONENT_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
DURATION = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d))?")  # hours:minutes or hours:minutes:seconds
# What a person would call the kinds of values that a schema names.
KINDS = {
    "array": "a list",
    "object": "keys with values",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


@cache
def read_schema(name: str) -> dict:
    """Return workflow/schemas/<name>.schema.yaml."""
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())


def check_schema(value: Any, schema_name: str, thing: str) -> Any:
    """Return `value`, each number of the type its schema names, so that 2 and 2.0 are one learning rate.

    Where the schema wants a number, one in exponent notation, such as "1e-6", may be a text, and a number of hours
    may be "1:30" or "1:30:00". Raises UserError with the first violation of workflow/schemas/<schema_name>.schema.yaml,
    if there is any.
    """
    schema, errors = read_schema(schema_name), []
    value = with_numbers(value, schema_name)
    for place, number in _not_finite(value):
        raise UserError(f"{thing}: {place} is {number}, wanted a number that is finite")
    if jsonschema is None:
        print(f"warning: {thing} is taken unchecked: jsonschema is not installed", file=sys.stderr)
    else:
        violations = jsonschema.Draft202012Validator(schema).iter_errors(value)
        errors = sorted(violations, key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(f"{thing}: {_describe(errors[0])}{more}")
    return _with_types(value, schema, schema)


def with_defaults(value: Any, schema_name: str) -> Any:
    """Return `value` with the keys that it lacks and for which the schema has a default."""
    root = read_schema(schema_name)

    def completed(value: Any, schema: dict) -> Any:
        if isinstance(value, dict):
            missing = {key: one["default"] for key, one in schema.get("properties", {}).items() if "default" in one}
            value = {**value, **{key: default for key, default in missing.items() if key not in value}}
        return _each(value, schema, root, completed)

    return completed(value, root)


def without_defaults(value: Any, schema_name: str) -> Any:
    """Return `value` without the keys that have the schema's default: the reverse of `with_defaults`."""
    root = read_schema(schema_name)

    def reduced(value: Any, schema: dict) -> Any:
        if isinstance(value, dict):
            known = schema.get("properties", {})
            value = {
                key: item
                for key, item in value.items()
                if "default" not in known.get(key, {}) or item != known[key]["default"]
            }
        return _each(value, schema, root, reduced)

    return reduced(value, root)


def read_plain_texts(value: Any, schema_name: str) -> Any:
    """Return `value` with each text read as YAML where the schema takes no text: --config gives no numbers."""
    root = read_schema(schema_name)

    def read(value: Any, schema: dict) -> Any:
        kinds = _kinds(schema)
        if not isinstance(value, str):
            return _each(value, schema, root, read)
        if "enum" in schema or ("string" in kinds and not ("null" in kinds and value in ("null", "~", ""))):
            return value
        try:
            return parse_yaml(value, "a text")
        except UserError:
            return value  # which the schema will refuse

    return read(value, root)


def with_numbers(value: Any, schema_name: str) -> Any:
    """Return `value` with a float for each text that is a number or a duration where the schema wants one."""
    root = read_schema(schema_name)
    return _with_numbers(value, root, root)


def _with_numbers(value: Any, schema: dict, root: dict) -> Any:
    kinds = _kinds(schema)
    if not isinstance(value, str) or "string" in kinds or not {"number", "integer"} & set(kinds):
        return _each(value, schema, root, lambda item, inner: _with_numbers(item, inner, root))
    duration = DURATION.fullmatch(value) if schema.get("unit") == "hours" else None
    if duration:
        hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        return hours + minutes / 60 + seconds / 3600
    return float(value) if EXPONENT_NUMBER.fullmatch(value) else value


def _kinds(schema: dict) -> list[str]:
    """Return the names of the types that a schema takes; none where it names none."""
    kinds = schema.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]


def _not_finite(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place of each number in `value` that is infinite, no number, or too large for a float."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield where, str(value)
    elif isinstance(value, int) and abs(value) > sys.float_info.max:
        yield where, "a number of more than 308 digits"


def _with_types(value: Any, schema: dict, root: dict) -> Any:
    """Make 100.0 an int where the schema wants an integer, and 2 a float where it wants a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        kinds = _kinds(schema)
        wanted = next((kind for name, kind in (("number", float), ("integer", int)) if name in kinds), type(value))
        return wanted(value)
    return _each(value, schema, root, lambda item, inner: _with_types(item, inner, root))


def _each(value: Any, schema: dict, root: dict, change: Callable[[Any, dict], Any]) -> Any:
    """Return `value` with `change` done to each thing in it, a mapping's or a list's, beside that thing's schema."""
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties")
        other = other if isinstance(other, dict) else {}
        return {key: change(item, resolved(known.get(key, other), root)) for key, item in value.items()}
    if isinstance(value, list):
        return [change(item, resolved(schema.get("items", {}), root)) for item in value]
    return value


def resolved(schema: dict, root: dict) -> dict:
    """Return a schema, or the one in `root` that it refers to."""
    return root["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def suggest(word: str, known: list[str]) -> str:
    """Return "; did you mean X?" for the known word nearest to `word`, or the list of all known words."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"


def _describe(error: "jsonschema.ValidationError") -> str:
    where = ".".join(map(str, error.absolute_path)) or "the top level"
    rule, wanted, found = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = next(key for key in found if key not in known)
        return f"unknown key {unknown!r} in {where}{suggest(str(unknown), known)}"
    if rule == "required":
        missing = [key for key in wanted if key not in found]
        return f"{where} lacks the key {missing[0]!r}"
    if rule == "pattern":
        if error.schema.get("unit") == "reservation":
            return f"{where}: {found!r} is no reservation: letters, digits, '_', '.', ',', ':' and '-'"
        return f"{where}: {found!r} is no name: letters, digits, '_', '-' and '.', beginning with a letter or digit"
    bounds = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "exclusiveMaximum": "less than",
    }
    if rule in bounds:
        return f"{where} is {found}, wanted {bounds[rule]} {wanted}"
    if rule == "enum":
        return f"{where} is {found!r}, wanted one of {', '.join(map(str, wanted))}"
    if rule == "type":
        return f"{where} is {found!r}{_wanted(wanted, found, error.schema)}"
    if rule in ("minItems", "minProperties"):
        return f"{where} is empty, wanted one at least"
    return f"{where}: {error.message}"


def _wanted(kinds: str | list[str], found: Any, schema: dict) -> str:
    """Say what belongs where something of another type was found, with an example where that helps."""
    kinds = kinds if isinstance(kinds, list) else [kinds]
    words = "wanted " + " or ".join(KINDS.get(kind, kind) for kind in kinds)
    if schema.get("unit") == "hours":
        return f', {words} of hours, for example 1.5, or "1:30:00" in quotes'
    if isinstance(found, str) and {"number", "integer"} & set(kinds):
        return f" (text; numbers are written without quotes), {words}"
    if isinstance(found, int | float) and "string" in kinds:
        return f", {words}: write '{found}' in quotes"
    if kinds == ["array"] and not isinstance(found, dict | None):
        return f", {words}, for example [{found}]"
    return f", {words}"
