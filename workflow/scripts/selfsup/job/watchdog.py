"""Ends a job that makes no progress, with the stacks of all its threads: a hung collective would use up its hours."""

import faulthandler
import os
import sys
import threading
import time

EXIT_HUNG = 70  # EX_SOFTWARE: retried, from the newest checkpoint
LAST_RESORT = 6  # times the patience: it counts the time of a suspension too
STDERR = 2  # the file descriptor: faulthandler wants a real one
LINGER_S = 15.0  # srun ends the other ranks with the first; they stand still too and tell their stacks meanwhile


class Watchdog:
    """Watches that `beat` is called every `patience_s` seconds or sooner; else prints all stacks, ends the process."""

    def __init__(self, patience_s: float, name: str):
        self._patience, self._name = patience_s, name
        self._last, self._what = time.monotonic(), "the start"
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, what: str) -> None:
        """Tell of progress. what: where the process is now, for the message."""
        self._last, self._what = time.monotonic(), what

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        interval = min(self._patience / 4, 10.0)
        while True:
            # A thread that cannot run, because another never gives up Python's lock, re-arms nothing: then this fires.
            faulthandler.dump_traceback_later(LAST_RESORT * self._patience, exit=True, file=STDERR)
            began = time.monotonic()
            if self._closed.wait(interval):
                faulthandler.cancel_dump_traceback_later()
                return
            now = time.monotonic()
            if now - began > interval + self._patience / 2:  # the whole process was suspended: that is no fault of its
                self._last = now
            elif now - self._last > self._patience:
                self._end(now - self._last)

    def _end(self, silent: float) -> None:
        print(
            f"error: {self._name}: no progress for {silent:.0f} s after {self._what}; its stacks follow, then the job "
            "ends and a retry continues from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True, file=STDERR)
        time.sleep(LINGER_S)
        os._exit(EXIT_HUNG)
