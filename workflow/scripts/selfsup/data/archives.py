"""What archives as sources have in common: which kinds are read, whose paths are trusted, what tree they hold."""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from selfsup.data.listing import Member, Tree
from selfsup.data.splits import TRAIN, Wanted, find_layout
from selfsup.errors import UserError

OPENERS = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}  # by an archive's first bytes
ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")  # a member; an empty zip; a part of one
PARQUET = b"PAR1"
NOT_READ = {
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -d"),
    b"\x04\x22\x4d\x18": ("LZ4", "lz4 -d"),
    b"LZIP": ("lzip", "lzip -d"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    b"Rar!\x1a\x07": ("RAR", "unrar x"),
}
UNPACK_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, OSError)


class ArchiveFolder(NamedTuple):
    """A folder's name in an archive."""

    name: str


def opener_of(archive: Path) -> Callable | None:
    """Return what opens a compressed tar, or None for what lies there plain."""
    return next((opener for magic, opener in OPENERS.items() if _head(archive).startswith(magic)), None)


def is_zip(archive: Path) -> bool:
    """Return whether a file is a zip, by its content."""
    return _head(archive).startswith(ZIP_HEADS)


def check_kind_of_archive(archive: Path) -> None:
    """Raise UserError saying what to do with an archive of a kind that is not read."""
    head = _head(archive)
    for magic, (kind, command) in NOT_READ.items():
        if head.startswith(magic):
            raise UserError(
                f"{archive}: packed by {kind}, which cannot be read: unpack it (for example `{command} "
                f"{archive.name}`) and set the dataset's path to the tar or folder that comes out"
            )
    if head.startswith(PARQUET):
        raise UserError(
            f"{archive}: a Parquet file: set the dataset's source to parquet, and its path to the files' folder"
        )
    if not head.startswith((*OPENERS, *ZIP_HEADS)) and not _begins_a_tar(head):
        raise UserError(
            f"{archive}: neither a tar nor a zip: fetch the archive again, or set the "
            "dataset's path to the folder of its unpacked files"
        )


def name_within(archive: Path, name: str) -> str | None:
    """Return a member's name in its shortest form; None where it begins with a dot or is macOS's own.

    Raises UserError when it leaves the archive's folder.
    """
    short = os.path.normpath(name)
    parts = short.split("/")
    if os.path.isabs(short) or parts[0] == "..":
        raise UserError(
            f"{archive}: {name}: a path that leaves the archive's folder: do not trust the archive; none of it was used"
        )
    hidden = parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)  # the folder "." itself too
    return None if hidden else short


def tree_of(
    archive: Path, wanted: Wanted, entries: Iterable[Member | ArchiveFolder], seen: Callable[[int], None]
) -> Tree:
    """Return the tree in an archive, which may lie in one folder of it."""
    members: list[Member] = []
    folders: set[str] = set()
    for entry in entries:
        if isinstance(entry, ArchiveFolder):
            folders.add(entry.name)
        else:
            members.append(entry)
            seen(1)
        folders.update(_parents(entry.name))
    top = _top_folder(folders)
    below = {folder.removeprefix(top) for folder in folders if folder.startswith(top)}
    layout = find_layout(archive, wanted, below)
    if not layout.train and any(not member.name.startswith(top) for member in members):
        # All of the archive is wanted, and files lie beside that folder.
        return Tree(archive, wanted, find_layout(archive, wanted, folders), members, folders, [])
    inside = (member._replace(name=member.name.removeprefix(top)) for member in members)
    return Tree(
        archive, wanted, layout, [member for member in inside if member.name.startswith(layout.prefixes)], below, []
    )


def _parents(name: str) -> Iterator[str]:
    while name := os.path.dirname(name):
        yield name


def _top_folder(folders: set[str]) -> str:
    """Return the one folder that the whole tree lies in, with a slash, or ""."""
    tops = {folder.split("/")[0] for folder in folders}
    if len(tops) == 1 and TRAIN not in tops:
        return f"{tops.pop()}/"
    return ""


def _head(archive: Path) -> bytes:
    with open(archive, "rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def _begins_a_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return not head.strip(b"\0") and len(head) == tarfile.BLOCKSIZE  # an empty tar
    return True
