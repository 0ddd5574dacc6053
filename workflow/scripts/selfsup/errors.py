"""The errors that a user can do something about, and how a script ends on them."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake or a condition that the user can mend.

    The message names the thing, the value found, the value wanted and the next step, in one or two lines.
    """


def run_script(main: Callable[[], int | None]) -> None:
    """Call a script's `main` and leave the process with its exit status; a UserError becomes one line, no traceback."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status or 0)
