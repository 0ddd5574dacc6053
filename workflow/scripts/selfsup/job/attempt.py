"""One attempt at a stage of a run: the conditions for starting it, and the records it leaves however it ends.

A stage (pretraining, an evaluation) has a folder. It holds lock.json while a job works there, ledger.csv, failed.json
after an error that no retry can fix, and STOP if a person wants the run to stop.
"""

import contextlib
import csv
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from selfsup.atomic_files import write_atomically
from selfsup.cards import read_card
from selfsup.errors import PermanentError, StoppedError, UserError
from selfsup.job.ledger import Ledger, note_refused, now
from selfsup.job.local_ranks import LAUNCHER
from selfsup.job.lock import BEAT_S, Lock
from selfsup.job.place import Place
from selfsup.job.stopping import MARGIN_S, StopRequest, stop_file
from selfsup.job.waiting import Listener
from selfsup.job.watchdog import Watchdog
from selfsup.layout import JobFolder

logger = logging.getLogger(__name__)

RANK_0_S = 10.0  # that the others wait for a refusal to be noted: rank 0 may have started later, on a busier node
HANG_S = 600.0  # between two steps at most: long enough to compile, or to write a large checkpoint to a slow disk


class Attempt:
    """The context in which a job works on a stage. Raises UserError on entry if it must not.

    folder: the stage's. stage, goal: in words, for messages and ledger. fingerprint: names what is computed; a
    failed.json with another fingerprint does not count. stop: asked for reasons to stop, instead of signals, files and
    clocks. Every rank makes an attempt; only rank 0 keeps lock, ledger and heartbeat.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stage: str,
        goal: str,
        fingerprint: str,
        place: Place | None = None,
        time_limit_s: float | None = None,
        hang_s: float = HANG_S,
        stop: StopRequest | None = None,
    ):
        self.folder, self._stage, self._goal = folder, stage, goal
        self._fingerprint, self.place, self._hang_s = fingerprint, place or Place(), hang_s
        self._time_limit_s, self._given_stop = time_limit_s, stop
        self._row = {"stage": stage, "goal": goal, "host": socket.gethostname(), "started": now()}
        self._started = time.monotonic()
        self._row["job_id"] = os.environ.get("SLURM_JOB_ID", "")
        self._ending = "ended"
        self._columns: dict[str, Any] = {}  # of the ledger's row
        self._batch, self._began = 0, time.monotonic()
        self._listener: Listener | None = None  # if there are other ranks to wait for
        self._watchdog: Watchdog | None = None

    def __enter__(self) -> "Attempt":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop = self._given_stop or StopRequest(self.folder if self.place.is_main else None, self._time_limit_s)
        self._lock = Lock(self.folder, f"{self._stage} to {self._goal}")
        try:
            self._refuse_if_stopped_or_failed()
            if self.place.is_main:
                self._lock.acquire(lambda: self.heartbeat_before_work("waiting for the lock of another job"))
        except UserError as error:
            if self.place.is_main:
                note_refused(self.folder, self._row, f"refused: {_first_line(error)}")
            else:
                self._let_rank_0_write()
            raise
        if self.place.is_main:
            for leftover in self.folder.glob("*.tmp"):  # of a process that was killed while writing
                leftover.unlink(missing_ok=True)
            self._ledger = Ledger(self.folder, self._started)
            self._ledger.open(self._row)
            self._leaving = threading.Event()
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()
        self._watchdog = Watchdog(self._hang_s)
        if self.place.size > 1 and not self._given_stop:
            self._listener = Listener(self.stop, self._leave, is_main=self.place.is_main)
        return self

    def _let_rank_0_write(self) -> None:
        """Give rank 0 time to note the refusal, less if asked to stop: the first rank that leaves ends all others."""
        end = time.monotonic() + RANK_0_S
        while time.monotonic() < end and not self.stop.reason:
            time.sleep(0.05)

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        self.stop_listening()
        self._watchdog.close()
        self.stop.close()
        if isinstance(error, PermanentError):
            with contextlib.suppress(OSError):  # the user has to see the error itself
                self._write_failed(str(error))
        if self.place.is_main:
            self._close_books(error)

    def _close_books(self, error: BaseException | None) -> None:
        self._leaving.set()
        self._heart.join()
        if self._lock.is_mine():
            with contextlib.suppress(OSError):  # the disk may be full, and the error says so
                self._ledger.update(_ending(error) or self._ending, **self._known_columns())
            self._lock.release()

    def set_columns(self, **columns: Any) -> None:
        """Fill columns of the ledger that were not known at the start."""
        self._columns.update(columns)

    def begin_steps(self, step: int, batch: int, reached: int = 0) -> None:
        """Record that the steps begin, with `step` of them done before.

        batch: images per step, over all ranks. reached: how many steps the files show that earlier attempts have done.
        """
        self._batch, self._began = batch, time.monotonic()
        self._columns.update(start_step=step, end_step=step, saved_step=step, checkpoints=0, stall_s=0.0)
        if self.place.is_main:
            self._ledger.complete_killed(reached, step)
            self._ledger.update(**self._known_columns())
        self._watchdog.beat(f"continuing at step {step}")

    def step_done(self, step: int) -> None:
        """Record that `step` steps are done."""
        self._columns["end_step"] = step
        self._watchdog.beat(f"step {step}")

    def heartbeat(self, what: str) -> None:
        """Show the watchdog that work other than steps goes on. what: the part just done."""
        self._watchdog.beat(what)

    def heartbeat_before_work(self, what: str) -> None:
        """Like `heartbeat`, while there is nothing to save yet: raises StoppedError if the job is asked to stop."""
        if self.stop.reason:
            raise StoppedError(f"stopped by {self.stop.reason} before the first step ({what})", self.stop.exit_status)
        if self._watchdog:
            self._watchdog.beat(what)

    def stop_listening(self) -> None:
        """From now on do not leave because of waiting too long: the job is ending, and rank 0 may write for long."""
        if self._listener:
            self._listener.close()

    def step_saved(self, step: int) -> None:
        """Record that the work up to `step` is safe on disk, if its steps are counted at all."""
        if "start_step" in self._columns:
            self._columns["saved_step"] = step

    def add_stall(self, seconds: float) -> None:
        """Record a checkpoint for which the training had to wait so long."""
        self._columns["stall_s"] += seconds
        self._columns["checkpoints"] += 1

    def set_ending(self, how: str) -> None:
        """Set what the ledger says of the attempt's end, in a few words; an exception takes precedence."""
        self._ending = how

    def check_lock(self) -> None:
        """Raise UserError if another job has taken the run over, as it may after this one was suspended for long."""
        if self.place.is_main and not self._lock.is_mine():
            raise UserError(
                f"{self.folder} was taken over by another job while this one was suspended: nothing was written"
            )

    def _refuse_if_stopped_or_failed(self) -> None:
        file = stop_file(self.folder)
        if file:
            raise UserError(f"{file} is there, so the run stays stopped: delete it and start again to continue")
        path = JobFolder(self.folder).failed
        try:
            failed = read_card(path)
        except (OSError, ValueError):
            return
        if failed.get("fingerprint") == self._fingerprint:
            raise UserError(
                f"{self._stage} failed for good on {failed.get('when')}: {failed.get('message')}. When that is fixed, "
                f"delete {path} and start again"
            )

    def _write_failed(self, message: str) -> None:
        failed = {"fingerprint": self._fingerprint, "stage": self._stage, "goal": self._goal, "message": message}
        failed |= {"when": now(), "host": self._row["host"], "job_id": self._row["job_id"]}
        write_atomically(JobFolder(self.folder).failed, json.dumps(failed, indent=1) + "\n")

    def _leave(self, waited: float) -> None:
        """End the process, which waits for a rank that does not arrive; why that is safe: `selfsup.job.waiting`."""
        try:
            for thread in threading.enumerate():
                if not thread.daemon and thread not in (threading.main_thread(), threading.current_thread()):
                    thread.join(MARGIN_S)  # the checkpoint's writer
            self._ending = f"stopped by {self.stop.reason}, waiting for another rank"
            logger.info("%s for %.0f s%s", self._ending, waited, self._unsaved())
            if self.place.is_main:
                self._close_books(None)
        finally:
            os._exit(self.stop.exit_status)

    def _unsaved(self) -> str:
        """Say which steps are lost, on rank 0 alone, which saves."""
        done, saved = (self._columns.get(key, 0) for key in ("end_step", "saved_step"))
        return f": steps {saved} to {done} have to be done again" if self.place.is_main and done > saved else ""

    def _known_columns(self) -> dict[str, Any]:
        columns = dict(self._columns)
        if "start_step" in columns:
            seconds = max(time.monotonic() - self._began, 1e-9)
            images = (columns["end_step"] - columns["start_step"]) * self._batch
            columns.update(images_per_s=round(images / seconds, 1), stall_s=round(columns["stall_s"], 3))
        return columns

    def _beat(self) -> None:
        launcher = os.environ.get(LAUNCHER)
        while not self._leaving.wait(BEAT_S):
            if launcher and int(launcher) != os.getppid():
                self.stop.request("the end of its launcher")
            with contextlib.suppress(OSError):  # the disk is full or away for a moment; the next beat tries again
                if not self._lock.beat():
                    self.stop.request("another job, which has taken the run over")
                    return
            with contextlib.suppress(OSError, ValueError, KeyError, csv.Error):  # or a ledger edited by hand
                self._ledger.update(**self._known_columns())


def _ending(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, StoppedError):
        return _first_line(error)
    kind = "failed" if isinstance(error, UserError) else f"crashed: {type(error).__name__}"
    return f"{kind}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else ""
