"""A request to stop that finds its process waiting for other ranks: one of them may never come.

While the main thread waits inside a collective, or for the others' start, no signal handler of Python's runs; a thread
hears the signals instead. A process that has waited for long then leaves, and nothing can be half saved by that: files
appear by a rename alone, only the main thread and the checkpoint's writer begin any, the writer is awaited, and the
main thread, which is inside the wait, is not let out of it any more. What is lost is what was done since the newest
checkpoint, for a step that not all ranks have finished cannot be saved.
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
MORE_OF_OTHERS_S = 5.0  # so that rank 0, which has the ledger and the lock, leaves first
POLL_S = 0.5

_exit = threading.Lock()  # of the wait; kept by the process that leaves
_since: float | None = None


@contextmanager
def waiting_for_ranks() -> Iterator[None]:
    """Inside, this process waits for what other ranks do and has nothing of its own under way."""
    global _since
    _since = time.monotonic()
    try:
        yield
    finally:
        with _exit:
            _since = None


class Listener:
    """Hears the signals that ask to stop, and calls `leave(seconds)` once the process waits in vain for so long.

    Made and closed by the main thread. leave: ends the process.
    """

    def __init__(self, stop: StopRequest, leave: Callable[[float], None], *, is_main: bool):
        self._stop, self._leave = stop, leave
        self._patience = PATIENCE_S + (0 if is_main else MORE_OF_OTHERS_S)
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._ear.settimeout(POLL_S)
        self._closed = threading.Event()
        self._former = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def close(self) -> None:
        """Listen no more: what is asked for from now on is under way."""
        if not self._closed.is_set():
            signal.set_wakeup_fd(self._former)
            self._closed.set()

    def _listen(self) -> None:
        asked = None
        with self._ear, self._mouth:
            while not self._closed.is_set():
                self._hear()
                if self._stop.reason is not None:
                    asked = asked or time.monotonic()
                    self._leave_if_in_vain(asked)

    def _hear(self) -> None:
        """Tell of the signals that came since the last call; waits a moment for them."""
        with suppress(TimeoutError):
            for number in self._ear.recv(64):
                if number in STOP_SIGNALS:
                    self._stop.request(signal.Signals(number).name)

    def _leave_if_in_vain(self, asked: float) -> None:
        since = _since
        if since is None or time.monotonic() - max(since, asked) < self._patience:
            return
        with _exit:
            if _since == since and not self._closed.is_set():  # else the others came at the last moment
                self._leave(time.monotonic() - since)
