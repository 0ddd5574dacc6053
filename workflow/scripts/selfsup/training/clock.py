"""What is told of a long run: to people a line per interval with speed and time left, to a file rows."""

import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path

FIXED_COLUMNS = ("step", "epoch", "loss", "lr", "images_per_s")
LINES_AT_FIRST_S = 5.0  # between two progress lines in the first minute; afterwards one a minute is enough
LINES_LATER_S = 60.0


class Progress:
    """Speed and remaining time of a segment and of the whole run, from this process's own steps."""

    def __init__(self, *, start: int, segment_end: int, run_end: int, steps_per_epoch: int, batch: int):
        self._start, self._segment_end, self._run_end = start, segment_end, run_end
        self._steps_per_epoch, self._batch = steps_per_epoch, batch
        self._began = self._last_line = self._last_rate = time.monotonic()
        self._rate_step = start

    def images_per_s(self, step: int) -> float:
        """Return the images per second since the last call; `step` steps are done."""
        now = time.monotonic()
        rate = (step - self._rate_step) * self._batch / max(now - self._last_rate, 1e-9)
        self._last_rate, self._rate_step = now, step
        return rate

    def due(self, step: int) -> bool:
        """Return whether it is time for a line; a segment's last step always has one."""
        now = time.monotonic()
        interval = LINES_AT_FIRST_S if now - self._began < LINES_LATER_S else LINES_LATER_S
        return step == self._segment_end or now - self._last_line >= interval

    def line(self, step: int, row: Mapping[str, float]) -> str:
        """Return the progress line after `step` steps. row: what history.csv has for the newest of them."""
        self._last_line = time.monotonic()
        per_step = (self._last_line - self._began) / max(step - self._start, 1)
        figures = "  ".join(
            f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "epoch", "images_per_s")
        )
        epochs = f"{step / self._steps_per_epoch:6.2f}/{self._run_end // self._steps_per_epoch}"
        segment, run = (duration((end - step) * per_step) for end in (self._segment_end, self._run_end))
        return (
            f"epoch {epochs}  step {step}/{self._run_end}  {figures}  {row['images_per_s']:,.0f} images/s  "
            f"left: segment {segment}, run {run}"
        )


class History:
    """history.csv of a run: a row per logged step, cut back to the checkpoint's step on a resume."""

    def __init__(self, path: Path, *, start: int, columns: tuple[str, ...]):
        """columns: the method's own, after the fixed ones."""
        self._path, self._columns = path, FIXED_COLUMNS + columns
        kept = [row for row in _read_rows(path) if int(row["step"]) < start]
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; on disk when the call returns, as far as the operating system goes."""
        with open(self._path, "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)


def steps_logged(path: Path) -> int:
    """Return how many steps a history.csv tells of, those included whose work was lost."""
    return max((int(row["step"]) + 1 for row in _read_rows(path)), default=0)


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if all(row.values())]  # a killed process may leave half a row
