"""Tars as sources: each member's place in the file is listed, and its bytes are read from there. Nothing is extracted.

So a member whose path would leave the folder cannot write anywhere; an archive that has one is refused all the same.
"""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from selfsup.data.listing import Member, Tree, problem_of_name
from selfsup.data.store import named
from selfsup.errors import UserError

BLOCK = tarfile.BLOCKSIZE
OPENERS = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}  # by an archive's first bytes
UNPACK_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, OSError)
COPY_BYTES = 1 << 24
LINKS_FOLLOWED = 40  # from link to link, as Linux does


class TarFolder(NamedTuple):
    """A folder's name in a tar."""

    name: str


def plain_tar(archive: Path, folder: Path) -> Path:
    """Return `archive`, or where it is compressed a plain tar of it, unpacked once into `folder`.

    A compressed file can only be read from its beginning, and packing wants to continue anywhere.
    """
    opener = _opener(archive)
    if opener is None:
        return archive
    status = archive.stat()
    plain = folder / f"{archive.name.split('.')[0]}_{status.st_size}_{status.st_mtime_ns}.tar"
    if not plain.exists():
        temporary = plain.with_suffix(".tmp")
        with opener(archive) as packed, named(temporary), open(temporary, "wb") as out:
            _copy(packed, out, archive)
        os.replace(temporary, plain)
    return plain


def read_tar(archive: Path, start: int = 0, end: int | None = None) -> Iterator[Member | TarFolder]:
    """Yield the members of a plain tar, which begins at byte `start` of the file and ends by `end`.

    Raises UserError when it is no tar, is cut short, or has a path that leaves its folder.
    """
    names: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with open(archive, "rb") as file:
        file.seek(start)
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            while (info := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep them all: 1.5 GB for ImageNet
                if end is not None and info.offset >= end:
                    break
                yield from _member(archive, info, names, links)
        except tarfile.TarError as error:
            raise UserError(f"{archive}: cannot be read as a tar ({error}): fetch the archive again") from error
        last = min(end or os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_size)
        if tar.offset + BLOCK > last:
            raise UserError(f"{archive}: cut short, for the tar has no end mark: fetch the archive again")
    for name, target in links.items():  # what they lead to may come after them
        yield _linked(archive, name, target, names, links)


def read_tar_tree(archive: Path, test: str, seen: Callable[[int], None] = lambda count: None) -> Tree:
    """List the class tree in a plain tar, which may lie in one folder of the tar."""
    members: list[Member] = []
    folders: set[str] = set()
    for entry in read_tar(archive):
        if isinstance(entry, TarFolder):
            folders.add(entry.name)
        else:
            members.append(entry)
            seen(1)
        folders.update(_parents(entry.name))
    top = _top_folder(folders)
    inside = [member._replace(name=member.name.removeprefix(top)) for member in members]
    splits = tuple(f"{split}/" for split in ("train", test))
    return Tree(
        archive,
        test,
        [member for member in inside if member.name.startswith(splits)],
        {folder.removeprefix(top) for folder in folders},
        [],
    )


def first_name(archive: Path) -> str:
    """Return the name of an archive's first member, compressed or not. Raises UserError when it has none."""
    try:
        with tarfile.open(archive) as tar:
            info = tar.next()
    except (tarfile.TarError, *UNPACK_ERRORS) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}): fetch the archive again") from error
    if info is None:
        raise UserError(f"{archive}: an empty archive: fetch it again")
    return os.path.normpath(info.name)


def _member(
    archive: Path, info: tarfile.TarInfo, names: dict[str, tuple[int, int]], links: dict[str, str]
) -> Iterator[Member | TarFolder]:
    name = os.path.normpath(info.name)
    if os.path.isabs(name) or name.split("/")[0] == "..":
        raise UserError(
            f"{archive}: {info.name}: a path that leaves the archive's folder: nothing of it was used; do not trust it"
        )
    if any(part.startswith(".") for part in name.split("/")):  # the folder "." itself too
        return
    if info.isdir():
        yield TarFolder(name)
    elif name in names or name in links:
        yield Member(name, str(archive), info.offset_data, info.size, "stands twice in the archive")
    elif info.islnk() or info.issym():
        links[name] = info.linkname if info.islnk() else os.path.join(os.path.dirname(name), info.linkname)
    else:
        plain = info.isreg() and not info.sparse
        names[name] = info.offset_data, info.size
        yield Member(
            name, str(archive), *names[name], problem_of_name(name) if plain else "neither a file nor a folder"
        )


def _linked(archive: Path, name: str, target: str, names: dict[str, tuple[int, int]], links: dict[str, str]) -> Member:
    """Return a link's member, which has its target's bytes."""
    place = os.path.normpath(target)
    for _ in range(LINKS_FOLLOWED):
        place = os.path.normpath(links.get(place, place))
    problem = problem_of_name(name) if place in names else f"a link that leads to no file of the archive ({target})"
    return Member(name, str(archive), *names.get(place, (0, 0)), problem)


def _parents(name: str) -> Iterator[str]:
    while name := os.path.dirname(name):
        yield name


def _top_folder(folders: set[str]) -> str:
    """Return the one folder that the whole tree lies in, with a slash, or ""."""
    tops = {folder.split("/")[0] for folder in folders}
    if len(tops) == 1 and "train" not in tops:
        return f"{tops.pop()}/"
    return ""


def _opener(archive: Path) -> Callable | None:
    with open(archive, "rb") as file:
        head = file.read(6)
    return next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)


def _copy(packed, out, archive: Path) -> None:
    while True:
        try:
            block = packed.read(COPY_BYTES)
        except UNPACK_ERRORS as error:
            raise UserError(f"{archive}: cannot be unpacked ({error}): fetch the archive again") from error
        if not block:
            return
        out.write(block)
