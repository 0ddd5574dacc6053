"""The signals that ask a job to stop: one list, for all who take, pass on or ignore them."""

import signal
from collections.abc import Callable

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,  # a terminal that was closed
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,  # a limit on processor time, shortly before SIGKILL
)


def take_stop_signals(handler: Callable) -> None:
    """Have `handler(number, frame)` called for each signal; SIGHUP stays ignored where nohup has begun the process."""
    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """Let none of them end this process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
