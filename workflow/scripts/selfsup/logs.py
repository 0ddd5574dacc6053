"""What jobs tell of their work: lines of Python's logging, with the time and, where several processes speak, the rank.

    20:15:03 | epoch   1.00/40  step 22/880 ...     a single process
    20:15:03 rank 3 | ...                           several ranks on one machine
    20:15:03 rank 3 node7 | ...                     ranks on several nodes
    20:15:03 . saved epoch_0010.pt ...              a detail, logged as debug: for the job's log, not for the screen

An error begins with "error: ", as argparse's do: people search logs for it, and `selfsup.reports.last_words` does. Over
ranks it goes on "rank 3 of 64 on node7 at 20:15:03: ". Errors go to stderr and all else to stdout: the rules pipe both
into the job's log, and whoever runs a script by hand can keep them apart.
"""

import logging
import sys

DETAIL = "^[0-9][0-9]:[0-9][0-9]:[0-9][0-9][^|]* [.] "  # how a detail's lines begin, for `grep`

logger = logging.getLogger("selfsup")


def start_logging(rank: int = 0, world_size: int = 1, node: str | None = None) -> None:
    """Send the package's messages to stdout and stderr; call it again once the rank is known.

    node: this machine's name, where the ranks are on several.
    """
    root, lines = logging.getLogger(), _Lines(rank, world_size, node)
    for handler in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(handler)
    for stream, takes in ((sys.stdout, _is_no_error), (sys.stderr, _is_error)):
        handler = _Handler(stream)
        handler.setFormatter(lines)
        handler.addFilter(takes)
        root.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    if world_size > 1:
        sys.excepthook = _log_crash


class _Lines(logging.Formatter):
    def __init__(self, rank: int, world_size: int, node: str | None):
        super().__init__()
        several = world_size > 1
        self._who = (f" rank {rank}" + (f" {node}" if node else "")) if several else ""
        self._of_error = (f"rank {rank} of {world_size}" + (f" on {node}" if node else "")) if several else ""

    def format(self, record: logging.LogRecord) -> str:
        message, clock = super().format(record), self.formatTime(record, "%H:%M:%S")
        if _is_error(record):
            return f"error: {self._of_error} at {clock}: {message}" if self._of_error else f"error: {message}"
        if record.levelno == logging.DEBUG:
            return "\n".join(f"{clock}{self._who} . {line}" for line in message.splitlines())
        return f"{clock}{self._who} | {'warning: ' if record.levelno >= logging.WARNING else ''}{message}"


class _Handler(logging.StreamHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        """Pass over a terminal or a pipe that is gone: that a line cannot be written must not end a job."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _is_no_error(record: logging.LogRecord) -> bool:
    return not _is_error(record)


def _log_crash(kind: type[BaseException], error: BaseException, traceback) -> None:
    """Say which rank it was that crashed, in one piece with the traceback."""
    logger.error("%s: %s", kind.__name__, error, exc_info=(kind, error, traceback))
