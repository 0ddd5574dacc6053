"""The errors that a user can do something about, and how a script ends on them."""

import errno
import sys
from collections.abc import Callable

from selfsup.signals import ignore_stop_signals

# A full disk, a quota, a limit on file sizes, missing permissions, a folder that is not there.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)

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
    """The job was asked to stop while it had nothing to save yet. exit_status: what tells retries whether to go on."""

    def __init__(self, message: str, exit_status: int):
        super().__init__(message)
        self.exit_status = exit_status


def reason_of(error: BaseException) -> str:
    """Return an error's first line, or what the system said before it: torch hides a full disk behind its own words."""
    told: BaseException | None = error
    while told is not None and not (isinstance(told, OSError) and told.strerror):
        told = told.__context__
    return FULL.get(told.errno, "") + told.strerror if told else str(error).splitlines()[0]


def run_script(main: Callable[[], int | None]) -> None:
    """Call a script's `main` and leave the process with its exit status.

    A UserError becomes one line without a traceback, and so does what a disk or its permissions refuse.
    """
    try:
        status = main()
    except StoppedError as stop:
        print(stop, flush=True)
        status = stop.exit_status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        problem = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"error: {problem}: check path, permissions and free space, then start again", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        status = 130
    ignore_stop_signals()  # the status is decided; Slurm's next signal is not to
    sys.exit(status or 0)
