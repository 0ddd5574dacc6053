"""Several ranks on this machine without torchrun or srun: the script starts itself once for each rank.

torchrun would do, but it gives its processes only 30 s to save after a signal, replaces their exit status by its own,
and adds a traceback of its own to every failure.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from selfsup.job.stopping import EXIT_RESUBMIT
from selfsup.signals import take_stop_signals

LAUNCHER = "SELFSUP_LAUNCHER"  # the launcher's process id: ranks stop when it is gone
GRACE_S = 20.0  # once a rank has failed or stopped, the others have this long to end by themselves
POLL_S = 0.05


def run_local_ranks(count: int) -> int:
    """Start this script `count` times with the same arguments, once for each rank, and return one exit status for all.

    It is 0 if all ranks end well, 75 if they were asked to stop, else the status of the rank that failed first.
    """
    asked: list[int] = []
    take_stop_signals(lambda number, frame: asked.append(number))
    with reserved_port() as port:
        return _wait_for(_started(count, port), asked)


@contextlib.contextmanager
def reserved_port(address: str = "127.0.0.1") -> Iterator[int]:
    """Keep a port of this machine for rank 0, which listens at it seconds later: nobody else is given it meanwhile.

    The socket that keeps it is bound with SO_REUSEADDR and does not listen: so torch's store, which sets that too, may.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind((address, 0))
        port = keeper.getsockname()[1]
        if sys.platform != "linux":  # BSD's kernels would ask it for connections, instead of the one that listens
            keeper.close()
        yield port


def _started(count: int, port: int) -> list[subprocess.Popen]:
    place = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, LAUNCHER: os.getpid()}
    own = ({**place, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count))
    environments = ({key: str(value) for key, value in one.items()} for one in own)
    return [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **one}) for one in environments]


def _wait_for(ranks: list[subprocess.Popen], asked: list[int]) -> int:
    """Wait for the end of all ranks, and pass on to them the signals in `asked`, to which new ones are added.

    Not as they arrive: one that came while a rank was being started would not reach it.
    """
    failed, patience = 0, None
    passed_on: set[int] = set()
    while True:
        while asked:
            passed_on.add(number := asked.pop(0))
            for process in ranks:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
        ended = [status for status in (process.poll() for process in ranks) if status is not None]
        # A signal ends a rank that has not come to take it, and has nothing to save.
        ended = [EXIT_RESUBMIT if -status in passed_on else status for status in ended]
        if patience is None or time.monotonic() < patience:  # ranks killed below have not failed
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
    return 128 - status if status < 0 else status  # as a shell reports a process killed by a signal
