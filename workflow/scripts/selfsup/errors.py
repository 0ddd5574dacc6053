"""The errors that a user can do something about, and how a script ends on them."""

import errno
import sys
from collections.abc import Callable

# A full disk, a quota, a limit on file sizes, missing permissions, a folder that is not there.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message names the thing, the value found, the value wanted and the next step, in one or two lines.
    """


def run_script(main: Callable[[], int | None]) -> None:
    """Call a script's `main` and leave the process with its exit status.

    A UserError becomes one line without a traceback, and so does what a disk or its permissions refuse.
    """
    try:
        status = main()
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
    sys.exit(status or 0)
