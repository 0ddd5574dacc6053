"""Reasons to end a job early without losing work: signals, the time limit, the file STOP, a launcher that is gone.

After each step the loop asks for a reason; if any rank has one, all ranks save and leave with status 75.
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
LOOK_EVERY_S = 2.0  # for the file: a look after every step would burden a network file system
MARGIN_S = 120.0  # between saving and the time limit, as in the profile's --signal=USR1@120


class StopRequest:
    """Remembers the first reason to stop; later ones change nothing, because the job is stopping already.

    `exit_status` tells whether a retry should continue: 75 if so, 1 if there is a file STOP.

    Slurm sends SIGUSR1 before the time limit (--signal) and SIGTERM at the limit, more than once; it also sends
    SIGCONT, which is not a reason to stop. folder: a file STOP in it or beside it ends the run for good; None: look for
    no such file. time_limit_s: counted from now; Slurm's own SLURM_JOB_END_TIME holds as well.
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
        """The reason to stop in a few words, or None."""
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
        """Ask the job to stop, unless it has been asked already."""
        self._reason = self._reason or reason

    def close(self) -> None:
        """Ignore further signals while the process ends: Slurm's second SIGTERM would kill it."""
        ignore_stop_signals()

    def _remember(self, number: int, frame) -> None:
        self.request(signal.Signals(number).name)
        if number == signal.SIGHUP:
            _let_go_of_a_closed_terminal()


def _let_go_of_a_closed_terminal() -> None:
    """Redirect output from a closed terminal to /dev/null: a line that cannot be written must not end the saving."""
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            termios.tcgetattr(stream.fileno())
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (AttributeError, ValueError):
            pass  # the process has no such stream


def stop_file(folder: Path) -> Path | None:
    """Return the file STOP of a stage's folder or of the run to which the stage belongs, if there is one."""
    run = folder.parent.parent if folder.parent.name == "random_init" else folder.parent
    return next((path for path in (folder / STOP_FILE, run / STOP_FILE) if path.exists()), None)


def _end_of_time(time_limit_s: float | None, environment: Mapping[str, str]) -> float:
    """Return when to stop, on the monotonic clock: MARGIN_S before the limit, or a tenth of a short limit."""
    limits = [time_limit_s] if time_limit_s is not None else []
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        limits.append(int(environment["SLURM_JOB_END_TIME"]) - time.time())
    return time.monotonic() + min(limit - min(MARGIN_S, 0.1 * limit) for limit in limits) if limits else float("inf")
