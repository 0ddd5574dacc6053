"""Reading YAML and checking it against a schema, with messages that a person understands at once."""

import difflib
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from selfsup.errors import UserError

try:
    import jsonschema
except ImportError:  # a machine with PyTorch and little else, as for benchmarks/gpu.sh
    jsonschema = None

SCHEMAS = Path(__file__).parents[2] / "schemas"

# YAML 1.1 reads 1e-6 as text, because it wants a dot in the mantissa and a sign in the exponent.
EXPONENT_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class _UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key written twice; PyYAML itself keeps the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first_line: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor, whose keys may be written anew
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in first_line:
                raise UserError(f"{self.name}: {key!r} stands twice, in lines {first_line[key]} and {line}: rename one")
            first_line[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, numbers written like 1e-6 included.

    Raises UserError when the file is missing, is not YAML, or holds a key twice.
    """
    try:
        loader = _UniqueKeyLoader(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    loader.name = str(path)
    try:
        return read_numbers(loader.get_single_data())
    except TypeError as error:
        raise UserError(
            f"{path}: not valid YAML here: a mapping or a list stands where a key belongs ({error})"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    finally:
        loader.dispose()


def read_numbers(value: Any) -> Any:
    """Return `value` with every text that is a number in exponent notation, such as "1e-6", made a float."""
    if isinstance(value, dict):
        return {key: read_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_numbers(item) for item in value]
    if isinstance(value, str) and EXPONENT_NUMBER.fullmatch(value):
        return float(value)
    return value


@cache
def read_schema(name: str) -> dict:
    """Return workflow/schemas/<name>.schema.yaml."""
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())


def check_schema(value: Any, schema_name: str, thing: str) -> Any:
    """Return `value`, each number of the type its schema names, so that 2 and 2.0 are one learning rate.

    Raises UserError with the first violation of workflow/schemas/<schema_name>.schema.yaml, if there is any.
    """
    schema, errors = read_schema(schema_name), []
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


def _with_types(value: Any, schema: dict, root: dict) -> Any:
    """Make 100.0 an int where the schema wants an integer, and 2 a float where it wants a number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
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
        return f"{found!r} is no name: letters, digits, '_', '-' and '.', beginning with a letter or digit"
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
        kinds = wanted if isinstance(wanted, list) else [wanted]
        text = (
            " (text; numbers are written without quotes)"
            if isinstance(found, str) and {"number", "integer"} & set(kinds)
            else ""
        )
        return f"{where} is {found!r}{text}, wanted {' or '.join(kinds)}"
    return f"{where}: {error.message}"
