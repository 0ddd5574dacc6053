"""Stopping a process that waits for another rank, which may never arrive.

While the main thread waits inside a collective, or for the other ranks to start, Python runs no signal handler; a
thread receives the signals instead. If the wait goes on for too long, the process exits. This cannot leave a half
written file: files only appear by a rename; only the main thread and the checkpoint's writer write them; the process
waits for the writer before it exits, and the main thread cannot leave its wait any more. Lost is the work since the
newest checkpoint, because a step that some rank has not finished cannot be saved.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from selfsup.job.stopping import StopRequest
from selfsup.signals import STOP_SIGNALS

PATIENCE_S = 20.0  # ranks differ by less within a step, and Slurm kills 30 s after SIGTERM (KillWait)
MORE_OF_OTHERS_S = 5.0  # so that rank 0, which holds the lock and writes the ledger, exits first
POLL_S = 0.5

_exit = threading.Lock()  # held to end a wait; a process that exits never releases it
_since: float | None = None


@contextmanager
def waiting_for_ranks() -> Iterator[None]:
    """Inside, this process only waits for other ranks: it is writing nothing and may be ended."""
    global _since
    _since = time.monotonic()
    try:
        yield
    finally:
        with _exit:
            _since = None


class Listener:
    """Receives the signals that ask to stop, and calls `leave(seconds)` if the process has then waited too long.

    To be made and closed by the main thread. leave: ends the process; it is given how long the process has waited.
    """

    def __init__(self, stop: StopRequest, leave: Callable[[float], None], *, is_main: bool):
        self._stop, self._leave = stop, leave
        self._patience = PATIENCE_S + (0 if is_main else MORE_OF_OTHERS_S)
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._reading.settimeout(POLL_S)
        self._closed = threading.Event()
        self._former = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def close(self) -> None:
        """Stop listening: the job is ending anyway."""
        if not self._closed.is_set():
            signal.set_wakeup_fd(self._former)
            self._closed.set()

    def _listen(self) -> None:
        asked = None
        with self._reading, self._writing:
            while not self._closed.is_set():
                self._receive()
                if self._stop.reason is not None:
                    asked = asked or time.monotonic()
                    self._leave_if_stuck(asked)

    def _receive(self) -> None:
        """Request a stop for the signals since the last call, after waiting a moment for them."""
        with suppress(TimeoutError):
            for number in self._reading.recv(64):
                if number in STOP_SIGNALS:
                    self._stop.request(signal.Signals(number).name)

    def _leave_if_stuck(self, asked: float) -> None:
        since = _since
        if since is None or time.monotonic() - max(since, asked) < self._patience:
            return
        with _exit:
            if _since == since and not self._closed.is_set():  # else the others arrived at the last moment
                self._leave(time.monotonic() - since)
