"""Ending a job early without losing work: signals ask, the loop saves and leaves with status 75."""

import signal

EXIT_RESUBMIT = 75  # EX_TEMPFAIL: the profile's retries submit the job again


class StopRequest:
    """Remembers that SIGTERM, SIGUSR1 or SIGINT has arrived. Further ones change nothing: the stop is under way.

    Slurm sends SIGUSR1 ahead of the time limit (--signal), SIGTERM at it, more than once.
    """

    def __init__(self):
        self.reason: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame) -> None:
        self.reason = self.reason or signal.Signals(number).name
