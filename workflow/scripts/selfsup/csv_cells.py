"""CSV files that jobs write, and people open and save as well: what cannot be read is told in a line."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from selfsup.errors import UserError

Numbers = Mapping[str, type]  # int or float, by the names of columns


def text_of(path: Path, read: Callable[[Callable[[], str]], str] = lambda read_text: read_text()) -> str:
    """Return a file's text. read: calls what reads it.

    Raises UserError where it is no text; FileNotFoundError where it is not there.
    """
    try:
        return read(lambda: path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no text ({error}): restore it") from error


def rows_of(path: Path, text: str, numbers: Numbers, *, whole: bool = True) -> Iterator[dict[str, str]]:
    """Yield the rows of a file's text. numbers: the columns whose cells are numbers or blank.

    whole: whether the text begins where the file does. Raises UserError that names the cell that is none, and its line
    in a whole text.
    """
    reader = csv.DictReader(io.StringIO(text), restval="")
    try:
        for row in reader:
            where = f"{path}: line {reader.line_num}" if whole else f"{path}"
            for name, kind in numbers.items():
                number(where, name, row.get(name) or "0", kind)
            yield row
    except csv.Error as error:
        raise UserError(f"{path}: no CSV ({error}): restore it") from error


def number(where: str, name: str, value: str, kind: type, way: str = "restore it, or delete the line") -> float:
    """Return a cell's number. For a cell that has none the UserError begins with `where` and ends with `way`."""
    try:
        return kind(value)
    except ValueError as error:
        raise UserError(f"{where}: {name} is {value!r}, wanted a number: {way}") from error
