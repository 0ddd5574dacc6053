"""Reading YAML: what has two meanings, a key written twice or `1:30`, is refused with file, line and what to write."""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from selfsup.errors import UserError

# libyaml's parser where PyYAML was built with it, as its wheels are: ten times as fast.
_FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Ambiguous(yaml.MarkedYAMLError):
    """Valid YAML, but not to be understood in one way only."""


class _Loader(_FastLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first_line: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor, whose keys may be written anew
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in first_line:
                raise _Ambiguous(problem=f"{key!r} stands twice, in lines {first_line[key]} and {line}: rename one")
            first_line[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode) and not node.style:  # plain: no quotes
            advice = _advice(node.tag.rpartition(":")[2], node.value)
            if advice:
                raise _Ambiguous(problem=f"{node.value} {advice}", problem_mark=node.start_mark)
        return super().construct_object(node, deep)


def _advice(kind: str, text: str) -> str | None:
    """Say what to write for plain text that YAML 1.1, Snakemake's, and YAML 1.2 read differently; None for the rest.

    kind: what YAML 1.1 takes it for.
    """
    quoted = f"or '{text}' in quotes for a name or a text"
    if kind == "bool" and text.lower() not in ("true", "false"):
        meant = "true" if text.lower() in ("yes", "on") else "false"
        return f"is {meant} to some readers of YAML and a text to others: write {meant}, {quoted}"
    if kind == "timestamp":
        return f"is a date to some readers of YAML and a text to others: write '{text}' in quotes"
    if kind in ("int", "float") and ":" in text:
        return f'is counted in sixties by some readers of YAML: write hours as a number, or as "{text}" in quotes'
    if kind in ("int", "float") and "_" in text:
        return f"is a number to some readers of YAML and a text to others: write {text.replace('_', '')}, {quoted}"
    if kind in ("int", "str") and _has_a_base(text):
        return f"has another value in YAML 1.1 than in 1.2: write a number without the leading 0, {quoted}"
    return None


def _has_a_base(text: str) -> bool:
    """Whether the text is 017, 0o17 or 0b1: octal or binary to one version of YAML only. 0x1F is the same to both."""
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and (digits.isdigit() or (digits[1] in "bo" and digits[2:].isdigit()))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, which is UTF-8 whatever the locale.

    Raises UserError, naming file, line and column, when the file is missing, is not YAML, or has two meanings.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not in UTF-8: save the file as UTF-8 in your editor") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, thing: str) -> Any:
    """Return what a text means as YAML. Raises UserError, which names `thing`, as `read_yaml` does."""
    try:
        return copy.deepcopy(_loaded(text))
    except _Ambiguous as error:
        raise UserError(f"{thing}{_place(error)}: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{thing}: nested too deeply for a file of settings: write it flatter") from error
    except TypeError as error:
        raise UserError(f"{thing}: not valid YAML: a mapping or a list stands where a key belongs ({error})") from error
    except ValueError as error:  # such as !!int ten
        raise UserError(f"{thing}: not valid YAML ({error})") from error
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise UserError(f"{thing}{_place(error)}: not valid YAML ({problem})") from error


@lru_cache(maxsize=256)  # recipes build on each other, and a plan reads them all for each experiment
def _loaded(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
