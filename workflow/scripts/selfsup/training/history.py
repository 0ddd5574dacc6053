"""The rows of a run as a CSV file, which a resume cuts back to its checkpoint."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfsup.errors import UserError
from selfsup.training.sinks import Sink


class History:
    """A CSV file with a row per logged step. A resume removes the rows after the checkpoint's step.

    The columns are those of all rows, in the order of their first appearance; missing values are blank.
    """

    def __init__(self, path: Path, *, start: int, also: Sequence[Sink] = ()):
        """Keep the rows of steps before `start`. also: they get every appended row too."""
        self._path, self._also = path, also
        self._columns, rows = _read(path)
        self._rewrite([row for row in rows if int(row["step"]) < start])

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row, handed to the operating system when the call returns."""
        new = [name for name in row if name not in self._columns]
        if new:
            _, rows = _read(self._path)
            self._columns += new
            self._rewrite(rows)
        with open(self._path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        for sink in self._also:
            sink.append(row)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._path)


def steps_logged(path: Path) -> int:
    """Return how many steps a history.csv shows as done, including those whose work was lost."""
    return max((int(row["step"]) + 1 for row in _read(path)[1]), default=0)


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the complete rows; a killed process may leave half a row at the end.

    Raises UserError for a file that holds something else.
    """
    try:
        text = path.read_text()
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = [row for row in reader if None not in row.values()]
        for row in rows:
            int(row["step"])
    except FileNotFoundError:
        return [], []
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: no table with a column of steps ({type(error).__name__}): restore it, or delete it: later rows "
            "begin a new one"
        ) from error
    return list(reader.fieldnames or []), rows
