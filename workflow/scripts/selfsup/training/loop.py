"""The loop over a segment's steps, with the rows, lines, figures and checkpoints on the way."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from selfsup.engine.saving import Decision, Saver
from selfsup.job.attempt import Attempt
from selfsup.layout import rolling_name
from selfsup.training.clock import Progress
from selfsup.training.health import Health
from selfsup.training.history import History
from selfsup.training.pretraining import Pretraining
from selfsup.training.sinks import open_trackers

logger = logging.getLogger(__name__)


def train_until(training: Pretraining, end: int, boundary: Path, attempt: Attempt) -> bool:
    """Train to step `end` and save the checkpoint `boundary` there.

    Returns False if asked to stop before `end`; all work is then in a rolling checkpoint.
    """
    ranks, compute = training.ranks, training.run.compute
    if ranks.any(attempt.stop.reason is not None):
        return _stopped(training, attempt)
    pinned = compute.device.type == "cuda"
    with (
        contextlib.closing(_Records(training, end, attempt)) as records,
        contextlib.closing(Saver(ranks, attempt, training.run.checkpoint_minutes)) as saver,
    ):
        batches = training.batches.read(training.step, end, workers=compute.workers, pin_memory=pinned)
        for batch in records.progress.counted(batches):
            loss = training.train_step(batch)
            attempt.step_done(training.step)
            figures = records.after_step(loss, saver)
            if training.step == end:
                training.save(boundary, loss, saver, wait=True, health=figures)
            elif _save_if_due(training, records, loss, saver) is Decision.STOP:
                return _stopped(training, attempt)
    return True


def reads_late(device: torch.device) -> bool:
    """Say whether a row of history.csv is written when the next is due, because reading it waits for the device."""
    return device.type == "cuda"


def _save_if_due(training: Pretraining, records: "_Records", loss: torch.Tensor, saver: Saver) -> Decision:
    """Write a rolling checkpoint if one is due or the job has to stop, and return what all ranks decided."""
    decision = saver.decide()
    if decision is not Decision.GO_ON:
        records.write_noted(saver)  # a row that a checkpoint lies behind is never made again
        path = training.run.partial / rolling_name(training.step)
        training.save(path, loss, saver, wait=decision is Decision.STOP)
    return decision


def _stopped(training: Pretraining, attempt: Attempt) -> bool:
    if training.ranks.is_main:
        reason = attempt.stop.reason or "another rank's request"
        logger.info("stopped by %s after step %d: saved, to be continued", reason, training.step)
        attempt.set_ending(f"stopped by {reason}")
    return False


class _Records:
    """What a segment records of its steps: history.csv, knn.csv, the trackers' rows, and progress lines."""

    def __init__(self, training: Pretraining, end: int, attempt: Attempt):
        run, start, spe = training.run, training.step, training.steps_per_epoch
        is_main, self._interval = training.ranks.is_main, training.row_interval
        self._training, self._end, self._late = training, end, reads_late(run.compute.device)
        self._noted: tuple[int, Callable[[Saver], dict[str, float]], dict[str, float]] | None = None
        self.progress = Progress(
            start=start,
            segment_end=end,
            run_end=training.total_steps,
            steps_per_epoch=spe,
            batch=run.recipe["global_batch"],
        )
        self._trackers = open_trackers(run.trackers, run.folder, start) if is_main else []
        rows = {"start": start, "also": self._trackers, "steps_per_epoch": spe}
        self._history = History(run.paths.history, **rows) if is_main else None
        settings = {"start": start, "steps_per_epoch": spe, "row_interval": self._interval, "trackers": self._trackers}
        self._health = Health(training.method, run, attempt, **settings)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def after_step(self, loss: torch.Tensor, saver: Saver) -> dict[str, float]:
        """Record the newest step as far as records are due, and return its health figures. Collective."""
        done = self._training.step
        last = done == self._end
        figures = self._health.figures(done, last=last)
        if last or done % self._interval == 0:
            self.write_noted(saver)
            self._noted = done, self._training.note_row(loss), self.progress.since_last_row(done) | figures
        if last or self._health.is_milestone(done) or not self._late:
            self.write_noted(saver)  # before the milestone's: trackers take rows in the order of steps
        if last or self._health.is_milestone(done):
            figures |= self._health.milestone(done)
        return figures

    def write_noted(self, saver: Saver) -> None:
        """Write the row that was noted last, if it is not written yet, and its progress line. Collective."""
        if self._noted is None:
            return
        done, read, more = self._noted
        self._noted, row = None, read(saver) | more
        if self._history is None:
            return
        if done % self._interval == 0:
            self._history.append(row)
        if self.progress.due(done):
            logger.info("%s", self.progress.line(done, row))
