"""Reasons to end a job early without losing work: signals, the time limit, the file STOP, a launcher that is gone.

The loop asks for the reason after each step, all ranks agree, save, and leave with status 75.
"""

import errno
import os
import signal
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

from selfsup.signals import ignore_stop_signals, take_stop_signals

EXIT_RESUBMIT = 75  # EX_TEMPFAIL: the profile's retries submit the job again
EXIT_FOR_GOOD = 1
STOP_FILE = "STOP"
LOOK_EVERY_S = 2.0  # for the file: a network file system would feel a question per step
MARGIN_S = 120.0  # saved this long before a time limit, as the profile's --signal=USR1@120


class StopRequest:
    """Remembers the first reason to stop; later ones change nothing, for the stop is under way.

    `exit_status` tells whether a retry should go on: 75, or 1 where the file STOP is there.

    Slurm sends SIGUSR1 ahead of the time limit (--signal) and SIGTERM at it, more than once; SIGCONT comes too and is
    no reason. folder: where a file STOP, or one beside the folder, ends the run for good; None looks for none.
    time_limit_s: from now; Slurm's own SLURM_JOB_END_TIME counts as well.
    """

    def __init__(
        self, folder: Path | None = None, time_limit_s: float | None = None, environment: Mapping[str, str] = os.environ
    ):
        self._reason: str | None = None
        self.exit_status = EXIT_RESUBMIT
        self._folder = folder
        self._end = _end_of_time(time_limit_s, environment)
        self._next_look = 0.0
        take_stop_signals(self._remember)

    @property
    def reason(self) -> str | None:
        """Why to stop, in a few words, or None."""
        now = time.monotonic()
        if self._reason is None and now >= self._end:
            self._reason = "the approaching time limit"
        if self._reason is None and now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            file = stop_file(self._folder) if self._folder else None
            if file:
                self._reason, self.exit_status = f"the file {file}, for good", EXIT_FOR_GOOD
        return self._reason

    def request(self, reason: str) -> None:
        """Ask to stop, unless that has been asked already."""
        self._reason = self._reason or reason

    def close(self) -> None:
        """Let no further signal end the process while it is leaving; Slurm's second SIGTERM would."""
        ignore_stop_signals()

    def _remember(self, number: int, frame) -> None:
        self.request(signal.Signals(number).name)
        if number == signal.SIGHUP:
            _let_go_of_a_closed_terminal()


def _let_go_of_a_closed_terminal() -> None:
    """Print into nothing from now on, where output went to a terminal that is gone: a line must not end the saving."""
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            termios.tcgetattr(stream.fileno())
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (AttributeError, ValueError):
            pass  # the process has no such stream


def stop_file(folder: Path) -> Path | None:
    """Return the file STOP of a stage's folder or of the run that it belongs to, where there is one."""
    run = folder.parent.parent if folder.parent.name == "random_init" else folder.parent
    return next((path for path in (folder / STOP_FILE, run / STOP_FILE) if path.exists()), None)


def _end_of_time(time_limit_s: float | None, environment: Mapping[str, str]) -> float:
    """Return the moment, by the monotonic clock, to stop at: a margin before the limit, a tenth of a short one."""
    limits = [time_limit_s] if time_limit_s is not None else []
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        limits.append(int(environment["SLURM_JOB_END_TIME"]) - time.time())
    return time.monotonic() + min(limit - min(MARGIN_S, 0.1 * limit) for limit in limits) if limits else float("inf")
