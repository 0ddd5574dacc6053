"""The rows of a run as a CSV file, which a resume cuts back to its checkpoint."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsup.atomic_files import put_in_place
from selfsup.errors import UserError
from selfsup.training.sinks import COUNTED, Sink


class History:
    """A CSV file with a row per logged step. A resume removes the rows after the checkpoint's step.

    Who saves a checkpoint flushes the file first: a row before the checkpoint's step is never made again.

    The columns are those of all rows, in the order of their first appearance; missing values are blank. Rows of
    history.csv and of knn.csv count their steps differently; both get the columns of COUNTED, by which they join: what
    was done of the run when the row's figures were taken. Rows of an older version get them too.
    """

    def __init__(
        self,
        path: Path,
        *,
        start: int,
        also: Sequence[Sink] = (),
        steps_per_epoch: int | None = None,
        counts_from: int = 0,
    ):
        """Keep the rows of steps before `start`. also: they get every appended row too, without COUNTED.

        steps_per_epoch: None for rows without COUNTED. counts_from: the `step` of a row after the run's first step.
        """
        self._path, self._also, self._steps_per_epoch, self._counts_from = path, also, steps_per_epoch, counts_from
        columns, rows = _read(path)
        rows = [self._counted(row) for row in rows if int(row["step"]) < start]
        self._columns = list(dict.fromkeys([*columns, *(name for row in rows[:1] for name in row)]))
        self._rewrite(rows)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row, handed to the operating system when the call returns."""
        counted = self._counted(row)
        new = [name for name in counted if name not in self._columns]
        if new:
            _, rows = _read(self._path)
            self._columns += new
            self._rewrite(rows)
        with open(self._path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(counted)
        for sink in self._also:
            sink.append(row)

    def _counted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with how many steps and epochs of the run were done."""
        if self._steps_per_epoch is None:
            return dict(row)
        steps = int(row["step"]) + 1 - self._counts_from
        # Last: who reads the older columns by their places goes on.
        return {**row, **dict(zip(COUNTED, (steps, steps / self._steps_per_epoch), strict=True))}

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())  # or a loss of power leaves an empty file under the name
        put_in_place(temporary, self._path)


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
            if None in row:
                raise ValueError("a row has more values than there are columns")
    except FileNotFoundError:
        return [], []
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: no table with a column of steps ({type(error).__name__}): restore it, or delete it: later rows "
            "begin a new one"
        ) from error
    return list(reader.fieldnames or []), rows
