"""Writing files so that a reader, or a kill, never meets half of one, on network file systems too."""

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STALE_PAUSES_S = (0.0, 0.05, 0.5)  # between the tries to read a file that was replaced


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of `path`: a reader sees the old one or the new, never a part; on disk when this returns.

    Several processes may write at once: the last one's content stays, whole.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # what the user knows
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file whose content is on disk; its new name is on disk too when this returns.

    Without that a loss of power may undo the renaming, but not the deletion of older files that came after it.
    """
    rename_over(temporary, path)
    with contextlib.suppress(OSError):  # some network file systems refuse it, and keep their names themselves
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def flush(path: Path) -> None:
    """Put on disk what has been appended to a file; there may be none."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
        os.fsync(file.fileno())


def rename_over(temporary: Path, path: Path) -> None:
    """Rename a file to `path`, whatever is there.

    A network file system asks again if an answer is lost, and is then told that there is no such file: the renaming has
    been done.
    """
    with open(temporary, "rb") as file:
        mine = os.fstat(file.fileno()).st_ino
    try:
        os.replace(temporary, path)
    except FileNotFoundError:
        if _number_of(path) != mine:
            raise


def _number_of(path: Path) -> int | None:
    """Return the number of the file at `path`, which is opened: stat() may answer from a cache."""

    def opened() -> int:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_ino

    try:
        return read_replaceable(opened)
    except FileNotFoundError:
        return None


def read_replaceable(read: Callable[[], T]) -> T:
    """Return `read()`, which opens a file and reads it, after a further try or two if the file was replaced meanwhile.

    On a network file system a reader who meets the replacing by another host is told that the file is stale.
    """
    for pause in STALE_PAUSES_S:
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(pause)
    return read()


def named_by_content(folder: Path, name: str, content: str) -> Path:
    """Return the path for a content, <name>_<16 digits of its SHA-256>.json: another content has another one."""
    return folder / f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"


def keep(path: Path, content: str) -> None:
    """Write a file named by its content, unless it is there and whole: nobody who reads it is disturbed."""
    if not path.is_file() or path.read_bytes() != content.encode():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
