"""What a failed job said last, for the end of the screen. Imports no torch."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ERROR = re.compile(
    r"(\S+\.py: )?error: "
)  # a script's own, or its parser's; not srun's, which repeats that there was one


def last_words(logs: Iterable[Path], since: float) -> Iterator[str]:
    """Yield for each log its path and the last error in it, or its last line where it has none.

    since: seconds since 1970; older logs are another attempt's.
    """
    for path in logs:
        try:
            lines = path.read_text(errors="replace").strip().splitlines() if path.stat().st_mtime >= since else []
        except OSError:
            continue  # the job was stopped before it wrote one
        errors = [line for line in lines if ERROR.match(line)]
        if lines:
            yield f"{path}:\n{[*lines, *errors][-1]}"
