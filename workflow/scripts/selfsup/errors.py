"""The errors that a user can do something about, and how a script ends on them."""

import errno
import sys
from collections.abc import Callable

from selfsup.logs import logger, start_logging
from selfsup.signals import ignore_stop_signals

# A full disk, a quota, a limit on file sizes, missing permissions, a folder that is not there; a file server that is
# away.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
DISK_ERRORS += (errno.ESTALE, errno.EIO, errno.ETIMEDOUT)

FULL = {errno.ENOSPC: "the disk is full: ", errno.EDQUOT: "the quota is used up: "}


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message names the thing, the value found, the value wanted and the next step, in one or two lines.
    """


class PermanentError(UserError):
    """A mistake that no retry mends: another recipe, a loss that is not finite, damaged data.

    The job leaves failed.json, and retries end at once on it.
    """


class StoppedError(UserError):
    """The job was asked to stop while it had nothing to save yet. exit_status: tells whether a retry should go on."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def reason_of(error: BaseException) -> str:
    """Return the system's reason for an error, or else its first line: torch hides a full disk behind its own words."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__context__
    return FULL.get(cause.errno, "") + cause.strerror if cause else str(error).splitlines()[0]


def run_script(main: Callable[[], int | None]) -> None:
    """Call a script's `main` and leave the process with its exit status.

    A UserError becomes one line without a traceback, and so does an operation that a disk or its permissions refuse.
    """
    start_logging()
    try:
        status = main()
    except StoppedError as stop:
        logger.info("%s", stop)
        status = stop.exit_status
    except UserError as error:
        logger.error("%s", error)
        status = 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        problem = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        logger.error("%s: check path, permissions and free space, then start again", problem)
        status = 1
    except KeyboardInterrupt:
        logger.warning("stopped by Ctrl-C")
        status = 130
    ignore_stop_signals()  # the status is decided; Slurm's next signal is not to
    sys.exit(status or 0)
