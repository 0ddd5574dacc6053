"""Ends a job that makes no progress, and prints the stacks of all its threads: a hung collective would waste hours."""

import faulthandler
import logging
import os
import threading
import time

logger = logging.getLogger(__name__)

EXIT_HUNG = 70  # EX_SOFTWARE: a retry continues from the newest checkpoint
LAST_RESORT = 6  # times the patience, because it counts the time of a suspension too
STDERR = 2  # a file descriptor, because faulthandler needs a real file
LINGER_S = 15.0  # srun kills the other ranks when the first one ends; they hang too, and print their stacks meanwhile


class Watchdog:
    """Ends the process, and prints all stacks, if `beat` is not called for `patience_s` seconds."""

    def __init__(self, patience_s: float):
        self._patience = patience_s
        self._last, self._what = time.monotonic(), "the start"
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, what: str) -> None:
        """Report progress. what: what has just been done, for the message."""
        self._last, self._what = time.monotonic(), what

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        interval = min(self._patience / 4, 10.0)
        while True:
            # This fires if the thread cannot re-arm it, because another thread never releases Python's global lock.
            faulthandler.dump_traceback_later(LAST_RESORT * self._patience, exit=True, file=STDERR)
            began = time.monotonic()
            if self._closed.wait(interval):
                faulthandler.cancel_dump_traceback_later()
                return
            now = time.monotonic()
            if now - began > interval + self._patience / 2:  # the whole process was suspended, which is not a hang
                self._last = now
            elif now - self._last > self._patience:
                self._end(now - self._last)

    def _end(self, silent: float) -> None:
        logger.error(
            "no progress for %.0f s after %s; the stacks follow, then the job ends, and a retry continues from the "
            "newest checkpoint",
            silent,
            self._what,
        )
        faulthandler.dump_traceback(all_threads=True, file=STDERR)
        time.sleep(LINGER_S)
        os._exit(EXIT_HUNG)
