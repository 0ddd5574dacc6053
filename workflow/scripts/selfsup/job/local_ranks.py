"""Several ranks on this machine without a launcher from outside: the script starts itself once for each.

torchrun does it too, but gives its processes 30 s to save after a signal, turns their exit status into its own, and
ends every failure in a traceback of its own.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time

from selfsup.job.stopping import EXIT_RESUBMIT
from selfsup.signals import take_stop_signals

LAUNCHER = "SELFSUP_LAUNCHER"  # its process id, for ranks to notice that it is gone
GRACE_S = 20.0  # for the others to leave by themselves once a rank has failed or stopped: all do it together
POLL_S = 0.05


def run_local_ranks(count: int) -> int:
    """Start this script `count` times with the same arguments, a rank each, and return the exit status of them all.

    0 when all end well; 75 when they were asked to stop; else the status of the one that failed first.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHER: os.getpid()}
    ranks = []

    def forward(number: int, frame) -> None:
        for process in ranks:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    take_stop_signals(forward)
    for rank in range(count):
        own = {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks.append(subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **own}))
    return _wait_for(ranks)


def _wait_for(ranks: list[subprocess.Popen]) -> int:
    failed, patience = 0, None
    while True:
        ended = [status for status in (process.poll() for process in ranks) if status is not None]
        if patience is None or time.monotonic() < patience:  # those that are killed below have not failed
            failed = failed or next((status for status in ended if status not in (0, EXIT_RESUBMIT)), 0)
        if len(ended) == len(ranks):
            return _exit_status(failed) or max(ended)
        if failed or EXIT_RESUBMIT in ended:
            patience = patience or time.monotonic() + GRACE_S
            if time.monotonic() > patience:
                for process in ranks:
                    process.kill()
        time.sleep(POLL_S)


def _exit_status(status: int) -> int:
    return 128 - status if status < 0 else status  # as a shell tells of a process that a signal has ended
