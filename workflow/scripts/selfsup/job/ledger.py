"""ledger.csv: a row for every attempt at a stage, killed ones included.

The row is written at the start and updated while the job lives; a killed job cannot close its row, so the next one
does. Columns not known at the start (devices, numerics) are filled later.
"""

import csv
import io
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from selfsup.atomic_files import read_replaceable, write_atomically
from selfsup.csv_cells import Numbers, rows_of, text_of
from selfsup.layout import JobFolder

RUNNING, KILLED = "running", "killed"
COLUMNS = (
    "attempt",
    "stage",
    "goal",
    "how_it_ended",
    "started",  # ISO 8601, UTC
    "ended",  # of a running or killed attempt: its last sign of life
    "host",
    "job_id",
    "devices",
    "device",
    "device_hours",  # devices times hours, including waiting and starting
    "gpu_hours",  # the same if the devices are GPUs, else 0
    "start_step",
    "end_step",
    "saved_step",
    "steps_done",
    "steps_lost",  # done after the last save: the next attempt repeats them
    "steps_redone",  # steps that an earlier attempt had done and lost
    "images_per_s",  # from the first step of the attempt to its end, including saving
    "checkpoints",
    "stall_s",  # how long the training waited for its checkpoints
    "ranks",
    "threads",
    "precision",
    "torch",
    "code_revision",
)

NEEDED = dict.fromkeys(("start_step", "end_step"), int)  # by a job that goes on
NUMBERS = {
    **NEEDED,
    **dict.fromkeys(("saved_step", "steps_done", "steps_lost", "steps_redone", "devices", "checkpoints"), int),
    **dict.fromkeys(("device_hours", "gpu_hours", "images_per_s", "stall_s"), float),
}


class Ledger:
    """The ledger of a folder, for the job that holds the folder's lock."""

    def __init__(self, folder: Path, began: float | None = None):
        """began: when the attempt started, by time.monotonic(); default now."""
        self._path, self._number = JobFolder(folder).ledger, 0
        self._began = time.monotonic() if began is None else began
        self._busy = threading.Lock()  # the heartbeat writes too
        self._row: dict[str, Any] = {}

    def open(self, row: Mapping[str, Any]) -> None:
        """Begin this attempt's row, and close the rows of attempts that were killed."""
        rows = read_ledger(self._path)
        for one in rows:
            if one["how_it_ended"] == RUNNING:
                one["how_it_ended"] = KILLED
        self._number = len(rows) + 1
        self._row = _with_derived({"attempt": self._number, "how_it_ended": RUNNING, "started": now(), **row}, rows)
        self._write([*rows, self._row])

    def update(self, how: str = RUNNING, **known: Any) -> None:
        """Bring this attempt's row up to date."""
        with self._busy:
            self._update(how, known)

    def _update(self, how: str, known: Mapping[str, Any]) -> None:
        rows = read_ledger(self._path)
        earlier = [one for one in rows if int(one["attempt"]) < self._number]
        others = [one for one in rows if int(one["attempt"]) > self._number]  # refused meanwhile
        self._row = _with_derived({**self._row, **known, "how_it_ended": how, "ended": self._ended()}, earlier)
        self._write([*earlier, self._row, *others])

    def _ended(self) -> str:
        """Return the start and what has passed since: a clock that is set meanwhile changes no length."""
        passed = timedelta(seconds=time.monotonic() - self._began)
        return (datetime.fromisoformat(self._row["started"]) + passed).isoformat(timespec="seconds")

    def complete_killed(self, reached: int, continued_at: int) -> None:
        """Complete the row of the last attempt that did a step, if it was killed: it did at least `reached` steps.

        Its own row ends at its last heartbeat. continued_at: the step of the checkpoint that it left.
        """
        with self._busy:
            self._complete_killed(reached, continued_at)

    def _complete_killed(self, reached: int, continued_at: int) -> None:
        rows = read_ledger(self._path)
        earlier = [one for one in rows if int(one["attempt"]) < self._number and one["start_step"]]
        before = earlier[-1] if earlier else None
        if before is None or before["how_it_ended"] != KILLED:
            return
        place, start = rows.index(before), int(before["start_step"])
        end = max(start, reached, continued_at, int(before["end_step"] or 0))
        rows[place] = _with_derived(
            {**before, "start_step": start, "end_step": end, "saved_step": continued_at}, rows[:place]
        )
        self._write(rows)

    def _write(self, rows: list[Mapping[str, Any]]) -> None:
        write_atomically(self._path, _text(rows))


def note_refused(folder: Path, row: Mapping[str, Any], reason: str) -> None:
    """Add the row of an attempt that was refused before it began; another job may own the folder."""
    path = JobFolder(folder).ledger
    rows = read_ledger(path, numbers={})
    ended = max(now(), row["started"])  # the clock may have been set back
    full = _with_derived({"attempt": len(rows) + 1, **row, "ended": ended, "how_it_ended": reason}, [])
    text = _text([full]).split("\n", 1)[1] if rows else _text([full])
    with open(path, "a", newline="") as file:
        file.write(text)


def read_ledger(path: Path, numbers: Numbers = NEEDED) -> list[dict[str, Any]]:
    """Return the rows of a ledger, oldest first, with values as text; no rows if there is no ledger.

    numbers: the columns that are asked for numbers: a job goes on whatever else the cells have. Raises UserError.
    """
    try:
        text = text_of(path, read_replaceable)
    except FileNotFoundError:
        return []
    rows = (dict.fromkeys(COLUMNS, "") | row for row in rows_of(path, text, numbers))
    return [row for row in rows if row["attempt"].isdigit()]


def begun(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of attempts that used a device or did steps; a refused attempt has neither."""
    return [row for row in rows if row["devices"] or row["start_step"]]


def ledger_totals(path: Path) -> dict[str, float | int]:
    """Return totals over the attempts of a ledger: their number, how many were killed, hours, steps."""
    rows = begun(read_ledger(path, NUMBERS))
    killed = sum(row["how_it_ended"] == KILLED for row in rows)
    hours = {key: round(sum(float(row[key] or 0) for row in rows), 6) for key in ("gpu_hours", "device_hours")}
    steps = {key: sum(int(row[key] or 0) for row in rows) for key in ("steps_done", "steps_lost", "steps_redone")}
    return {"attempts": len(rows), "killed": killed, **hours, **steps}


def now() -> str:
    """Return the current time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _with_derived(row: dict[str, Any], earlier: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row with the columns that are computed from others."""
    row = {**row, "ended": row.get("ended") or row["started"]}
    hours = (datetime.fromisoformat(row["ended"]) - datetime.fromisoformat(row["started"])).total_seconds() / 3600
    devices = int(row.get("devices") or 0)
    row["device_hours"] = round(devices * hours, 6)
    row["gpu_hours"] = 0 if row.get("device", "cpu") == "cpu" else row["device_hours"]
    start, end = row.get("start_step"), row.get("end_step")
    if start is not None and end is not None:
        reached = max((int(one["end_step"]) for one in earlier if one.get("end_step")), default=0)
        row["steps_done"] = end - start
        row["steps_lost"] = end - max(row.get("saved_step", start), start)
        row["steps_redone"] = max(0, min(end, reached) - start)
    return row


def _text(rows: list[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
