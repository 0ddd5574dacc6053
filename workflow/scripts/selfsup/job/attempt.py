"""One attempt of a job at a stage of a run: what must hold before it begins, and what it leaves however it ends.

A stage has a folder: `pretrain` or `linear`. In it lie lock.json while a job works, ledger.csv, failed.json after an
error that no retry mends, and STOP where a person wants the run to stop.
"""

import contextlib
import csv
import json
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

FAILED_FILE = "failed.json"
HANG_S = 600.0  # longest silence between two steps: a checkpoint of a large model on a slow disk, a compilation


class Attempt:
    """A context in which a stage is worked at. Raises UserError on entry where it must not be.

    folder: the stage's. stage, goal: in words, for messages and ledger. fingerprint: of what is computed; failed.json
    of another one does not count. stop: asked for reasons to stop, instead of signals, files and clocks. Every rank
    makes one; lock, ledger and heartbeat are rank 0's.
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
        self._row["job_id"] = os.environ.get("SLURM_JOB_ID", "")
        self._how = "ended"
        self._figures: dict[str, Any] = {}
        self._batch, self._began = 0, time.monotonic()
        self._listener: Listener | None = None  # where there are other ranks to wait for
        self._watchdog: Watchdog | None = None

    def __enter__(self) -> "Attempt":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop = self._given_stop or StopRequest(self.folder if self.place.is_main else None, self._time_limit_s)
        self._lock = Lock(self.folder, f"{self._stage} to {self._goal}")
        try:
            self._refuse_if_stopped_or_failed()
            if self.place.is_main:
                self._lock.acquire(lambda: self.waiting("waiting for the lock of another job"))
        except UserError as error:
            if self.place.is_main:
                note_refused(self.folder, self._row, f"refused: {_first_line(error)}")
            raise
        if self.place.is_main:
            for leftover in self.folder.glob("*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            self._ledger = Ledger(self.folder)
            self._ledger.open(self._row)
            self._leaving = threading.Event()
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()
        self._watchdog = Watchdog(self._hang_s, f"rank {self.place.rank} of {self.place.size} on {self._row['host']}")
        if self.place.size > 1 and not self._given_stop:
            self._listener = Listener(self.stop, self._leave, is_main=self.place.is_main)
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        self.settled()
        self._watchdog.close()
        self.stop.close()
        if isinstance(error, PermanentError):
            with contextlib.suppress(OSError):  # the error itself is what the user has to see
                self._write_failed(str(error))
        if self.place.is_main:
            self._close_books(error)

    def _close_books(self, error: BaseException | None) -> None:
        self._leaving.set()
        self._heart.join()
        if self._lock.is_mine():
            with contextlib.suppress(OSError):  # the disk may be full, which is what the error tells
                self._ledger.update(_ending(error) or self._how, **self._known())
            self._lock.release()

    def know(self, **columns: Any) -> None:
        """Fill columns of the ledger that were not known at the start."""
        self._figures.update(columns)

    def begin(self, step: int, batch: int, reached: int = 0) -> None:
        """The first step is about to be done.

        batch: images of all ranks in a step. reached: steps that earlier attempts had done, as far as files tell.
        """
        self._batch, self._began = batch, time.monotonic()
        self._figures.update(start_step=step, end_step=step, saved_step=step, checkpoints=0, stall_s=0.0)
        if self.place.is_main:
            self._ledger.learn(reached, step)
            self._ledger.update(**self._known())
        self._watchdog.beat(f"continuing at step {step}")

    def at(self, step: int) -> None:
        """`step` steps are done."""
        self._figures["end_step"] = step
        self._watchdog.beat(f"step {step}")

    def alive(self, what: str) -> None:
        """Something goes on that is no step."""
        self._watchdog.beat(what)

    def waiting(self, what: str) -> None:
        """As `alive`, while there is nothing to save yet. Raises StoppedError when the job is asked to stop."""
        if self.stop.reason:
            raise StoppedError(f"stopped by {self.stop.reason} before the first step ({what})", self.stop.exit_status)
        if self._watchdog:
            self._watchdog.beat(what)

    def settled(self) -> None:
        """The job is about to end, and rank 0 may write for long: nobody leaves any more because he waits for it."""
        if self._listener:
            self._listener.close()

    def saved(self, step: int) -> None:
        """All that is done up to `step` is safe on disk."""
        self._figures["saved_step"] = step

    def stalled(self, seconds: float) -> None:
        """The training has waited so long for a checkpoint."""
        self._figures["stall_s"] += seconds
        self._figures["checkpoints"] += 1

    def ended(self, how: str) -> None:
        """How the attempt has ended, in a few words for the ledger; an exception tells for itself."""
        self._how = how

    def check_ours(self) -> None:
        """Raise UserError if another job has taken the run over, as it may when this one stood still for long."""
        if self.place.is_main and not self._lock.is_mine():
            raise UserError(
                f"{self.folder} was taken over by another job while this one stood still: nothing was written"
            )

    def _refuse_if_stopped_or_failed(self) -> None:
        file = stop_file(self.folder)
        if file:
            raise UserError(f"{file} is there, so the run stays stopped: delete it and start again to continue")
        path = self.folder / FAILED_FILE
        try:
            failed = read_card(path)
        except (OSError, ValueError):
            return
        if failed.get("fingerprint") == self._fingerprint:
            raise UserError(
                f"{self._stage} failed for good on {failed.get('when')}: {failed.get('message')}. When that is mended, "
                f"delete {path} and start again"
            )

    def _write_failed(self, message: str) -> None:
        failed = {"fingerprint": self._fingerprint, "stage": self._stage, "goal": self._goal, "message": message}
        failed |= {"when": now(), "host": self._row["host"], "job_id": self._row["job_id"]}
        write_atomically(self.folder / FAILED_FILE, json.dumps(failed, indent=1) + "\n")

    def _leave(self, waited: float) -> None:
        """End the process, which waits for other ranks in vain. See `selfsup.job.waiting` for what may be under way."""
        try:
            for thread in threading.enumerate():
                if not thread.daemon and thread not in (threading.main_thread(), threading.current_thread()):
                    thread.join(MARGIN_S)  # the checkpoint's writer
            self._how = f"stopped by {self.stop.reason}, waiting for another rank"
            with contextlib.suppress(OSError):  # of a terminal that is gone
                name = f"rank {self.place.rank} of {self.place.size}"
                print(f"{name}: {self._how} for {waited:.0f} s{self._unsaved()}", flush=True)
            if self.place.is_main:
                self._close_books(None)
        finally:
            os._exit(self.stop.exit_status)

    def _unsaved(self) -> str:
        """Rank 0, which saves, tells what is lost."""
        done, saved = (self._figures.get(key, 0) for key in ("end_step", "saved_step"))
        return f": steps {saved} to {done} are to be done again" if self.place.is_main and done > saved else ""

    def _known(self) -> dict[str, Any]:
        figures = dict(self._figures)
        if "start_step" in figures:
            seconds = max(time.monotonic() - self._began, 1e-9)
            images = (figures["end_step"] - figures["start_step"]) * self._batch
            figures.update(images_per_s=round(images / seconds, 1), stall_s=round(figures["stall_s"], 3))
        return figures

    def _beat(self) -> None:
        launcher = os.environ.get(LAUNCHER)
        while not self._leaving.wait(BEAT_S):
            if launcher and int(launcher) != os.getppid():
                self.stop.request("the end of its launcher")
            with contextlib.suppress(OSError):  # a disk that is full or away for a moment; the next beat tries again
                if not self._lock.beat():
                    self.stop.request("another job, which has taken the run over")
                    return
            with contextlib.suppress(OSError, ValueError, KeyError, csv.Error):  # or a ledger edited by hand
                self._ledger.update(**self._known())


def _ending(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, StoppedError):
        return _first_line(error)
    kind = "failed" if isinstance(error, UserError) else f"crashed: {type(error).__name__}"
    return f"{kind}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else ""
