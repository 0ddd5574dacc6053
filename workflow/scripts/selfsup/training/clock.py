"""Reports of a long run: progress lines with speed and time left for people, and rows in a CSV file."""

import time
from collections.abc import Iterable, Iterator, Mapping

NOT_IN_LINES = ("step", "epoch", "images_per_s", "data_wait")  # shown in another form, or only in the file
# Progress lines are as many on a slow machine as on a fast one, and a long job shows that it lives all the same.
SHARES = 2  # of a job: a line at the end of each
SILENCE_S = 120.0  # without a line at most


class Due:
    """When a job's progress lines are due. start, end: its steps."""

    def __init__(self, start: int, end: int):
        self._start, self._end, self._shown = start, end, 0
        self._last = time.monotonic()

    def now(self, step: int) -> bool:
        """Return whether a line is due after `step` steps; the last step always gets one. The caller then writes it."""
        share = (step - self._start) * SHARES // max(self._end - self._start, 1)
        due = step == self._end or share > self._shown or time.monotonic() - self._last >= SILENCE_S
        if due:
            self._shown, self._last = share, time.monotonic()
        return due


class Progress:
    """Speed and remaining time of a segment and of the whole run, estimated from the steps of this process."""

    def __init__(self, *, start: int, segment_end: int, run_end: int, steps_per_epoch: int, batch: int):
        self._start, self._segment_end, self._run_end = start, segment_end, run_end
        self._steps_per_epoch, self._batch = steps_per_epoch, batch
        self._began = self._last_rate = time.monotonic()
        self._due = Due(start, segment_end)
        self._rate_step, self._waited = start, 0.0

    def counted(self, batches: Iterable) -> Iterator:
        """Yield the batches, and measure the time spent waiting for them."""
        began = time.monotonic()
        for batch in batches:
            self._waited += time.monotonic() - began
            yield batch
            began = time.monotonic()

    def since_last_row(self, step: int) -> dict[str, float]:
        """Return images per second and the share of time spent waiting for batches, since the last call.

        step: how many steps are done.
        """
        seconds = max(time.monotonic() - self._last_rate, 1e-9)
        share, self._waited = self._waited / seconds, 0.0
        return {"images_per_s": self.images_per_s(step), "data_wait": round(share, 4)}

    def images_per_s(self, step: int) -> float:
        """Return the images per second since the last call. step: how many steps are done."""
        now = time.monotonic()
        rate = (step - self._rate_step) * self._batch / max(now - self._last_rate, 1e-9)
        self._last_rate, self._rate_step = now, step
        return rate

    def due(self, step: int) -> bool:
        """Return whether a line is due; a segment's last step always gets one. The caller then writes it."""
        return self._due.now(step)

    def line(self, step: int, row: Mapping[str, float]) -> str:
        """Return the progress line after `step` steps. row: the newest step's row of history.csv."""
        per_step = (time.monotonic() - self._began) / max(step - self._start, 1)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in NOT_IN_LINES)
        epochs = f"{step / self._steps_per_epoch:6.2f}/{self._run_end // self._steps_per_epoch}"
        segment, run = (duration((end - step) * per_step) for end in (self._segment_end, self._run_end))
        return (
            f"epoch {epochs}  step {step}/{self._run_end}  {figures}  {row['images_per_s']:,.0f} images/s  "
            f"left: segment {segment}, run {run}"
        )


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
