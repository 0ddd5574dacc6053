"""Writing text files so that a reader, or a kill, never meets half of one."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of `path`: a reader sees the old text or the new, never a part.

    durable: on disk when this returns, at the price of a flush; without it only a crash of the machine loses the text.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, path)
