"""Tars as sources: each member's place in the file is listed, and its bytes are read from there. Nothing is extracted.

So a member whose path would leave the folder cannot write anywhere; an archive that has one is refused all the same.
"""

import os
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from selfsup.atomic_files import rename_over
from selfsup.data.archives import UNPACK_ERRORS, ArchiveFolder, name_within, opener_of, tree_of
from selfsup.data.listing import Member, Tree
from selfsup.data.splits import Wanted
from selfsup.data.store import named
from selfsup.errors import UserError

BLOCK = tarfile.BLOCKSIZE
COPY_BYTES = 1 << 24
LINKS_FOLLOWED = 40  # from link to link, as Linux does


def plain_tar(archive: Path, folder: Path) -> Path:
    """Return `archive`, or where it is compressed a plain tar of it, unpacked once into `folder`.

    A compressed file can only be read from its beginning, and packing wants to continue anywhere.
    """
    opener = opener_of(archive)
    if opener is None:
        return archive
    status = archive.stat()
    plain = folder / f"{archive.name.split('.')[0]}_{status.st_size}_{status.st_mtime_ns}.tar"
    if not plain.exists():
        temporary = plain.with_suffix(".tmp")
        with open(archive, "rb") as file, opener(file) as packed, named(temporary), open(temporary, "wb") as out:
            _copy(packed, out, archive)
            if file.read(COPY_BYTES).strip(b"\0"):  # bz2 and lzma end there without a word
                raise UserError(f"{archive}: something else follows its compressed part: fetch the archive again")
        rename_over(temporary, plain)
    return plain


def read_tar(archive: Path, start: int = 0, end: int | None = None) -> Iterator[Member | ArchiveFolder]:
    """Yield the members of a plain tar, which begins at byte `start` of the file and ends by `end`.

    Several tars one after the other, as `cat` joins them, are read as one. Raises UserError when it is no tar, is
    damaged or cut short, or has a path that leaves its folder.
    """
    names: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with open(archive, "rb") as file:
        last = min(end or os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_size)
        part: int | None = start
        while part is not None:
            stop = yield from _part(archive, file, part, last, names, links)
            part = _next_part(archive, file, stop, last)
    for name, target in links.items():  # what they lead to may come after them
        yield _linked(archive, name, target, names, links)


def _part(
    archive: Path, file: BinaryIO, start: int, last: int, names: dict[str, tuple[int, int]], links: dict[str, str]
) -> Generator[Member | ArchiveFolder, None, int]:
    """Yield the members of the tar at byte `start`; return where tarfile found no further one."""
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115
        while (info := tar.next()) is not None:
            tar.members.clear()  # tarfile would keep them all: 1.5 GB for ImageNet
            if info.offset >= last:
                break
            yield from _member(archive, info, names, links)
    except tarfile.TarError as error:
        raise UserError(f"{archive}: cannot be read as a tar ({error}): fetch the archive again") from error
    return tar.offset


def _next_part(archive: Path, file: BinaryIO, stop: int, last: int) -> int | None:
    """Return where the next tar begins after the end mark at byte `stop`, or None where only zeros follow.

    tarfile takes a damaged header for the end, too.
    """
    if stop + BLOCK > last:
        raise UserError(f"{archive}: incomplete, the tar has no end mark: fetch the archive again")
    file.seek(stop)
    if any(file.read(BLOCK)):
        raise UserError(
            f"{archive}: at byte {stop:,} there is neither a file nor the end of the tar: fetch the archive again"
        )
    place = stop + BLOCK
    while place < last:
        block = file.read(min(COPY_BYTES, last - place))
        if rest := block.lstrip(b"\0"):
            return place + (len(block) - len(rest)) // BLOCK * BLOCK
        place += len(block)
    return None


def read_tar_tree(archive: Path, wanted: Wanted, seen: Callable[[int], None] = lambda count: None) -> Tree:
    """List the tree in a plain tar, which may lie in one folder of the tar."""
    return tree_of(archive, wanted, read_tar(archive), seen)


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
) -> Iterator[Member | ArchiveFolder]:
    name = name_within(archive, info.name)
    if name is None:
        return
    if info.isdir():
        yield ArchiveFolder(name)
    elif name in names or name in links:
        yield Member(name, str(archive), info.offset_data, info.size, "is in the archive twice")
    elif info.islnk() or info.issym():
        links[name] = info.linkname if info.islnk() else os.path.join(os.path.dirname(name), info.linkname)
    else:
        plain = info.isreg() and not info.sparse
        names[name] = info.offset_data, info.size
        yield Member(name, str(archive), *names[name], "" if plain else "neither a file nor a folder")


def _linked(archive: Path, name: str, target: str, names: dict[str, tuple[int, int]], links: dict[str, str]) -> Member:
    """Return a link's member, which has its target's bytes."""
    place = os.path.normpath(target)
    for _ in range(LINKS_FOLLOWED):
        place = os.path.normpath(links.get(place, place))
    problem = "" if place in names else f"a link that leads to no file of the archive ({target})"
    return Member(name, str(archive), *names.get(place, (0, 0)), problem)


def _copy(packed, out, archive: Path) -> None:
    while True:
        try:
            block = packed.read(COPY_BYTES)
        except UNPACK_ERRORS as error:
            raise UserError(f"{archive}: cannot be unpacked ({error}): fetch the archive again") from error
        if not block:
            return
        out.write(block)
