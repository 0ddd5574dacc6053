"""Zips as sources: each member's place is listed from the zip's directory, and its bytes are read from there.

Nothing is extracted, so a member whose path would leave the folder cannot write anywhere; a zip that has one is refused
all the same.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from selfsup.data.archives import UNPACK_ERRORS, ArchiveFolder, name_within, tree_of
from selfsup.data.listing import Member, Tree, Zipped
from selfsup.data.splits import Wanted
from selfsup.errors import UserError

ENCRYPTED, NAME_IN_UTF8 = 1, 0x800  # bits of a member's flags
DOS = 0  # the system that wrote the zip
READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
HEADER = struct.Struct("<4s22x2H")  # before a member's bytes: signature, lengths of its name and of what is added
SIGNATURE = b"PK\x03\x04"
RAW_DEFLATE = -zlib.MAX_WBITS
PEEK_BYTES = 1024  # of packed bytes, from which the first few can surely be unpacked


def read_zip_tree(archive: Path, wanted: Wanted, seen: Callable[[int], None] = lambda count: None) -> Tree:
    """List the tree in a zip, which may lie in one folder of the zip.

    Raises UserError when it cannot be read as a zip, is encrypted, uses another compression than deflate, or has a path
    that leaves its folder.
    """
    return tree_of(archive, wanted, read_zip(archive), seen)


def read_zipped(file: int, member: Member, check_head: Callable[[bytes], None], head_bytes: int) -> np.ndarray:
    """Return a member's unpacked bytes, uint8, from an open file; it is left when `check_head` refuses its first ones.

    Raises ValueError when they are not what the zip's directory says.
    """
    method, size, crc = member.zipped
    signature, *lengths = HEADER.unpack(os.pread(file, HEADER.size, member.offset).ljust(HEADER.size, b"\0"))
    begin = member.offset + HEADER.size + sum(lengths)
    try:
        if signature == SIGNATURE:
            peek = os.pread(file, min(member.length, PEEK_BYTES), begin)
            check_head(bytes(_unpacked(peek, method, head_bytes)))
            content = _unpacked(os.pread(file, member.length, begin), method, size)
            if len(content) == size and zlib.crc32(content) == crc:
                return np.frombuffer(content, np.uint8)
    except zlib.error:
        pass
    raise ValueError("its bytes in the zip are damaged")


def _unpacked(packed: bytes, method: int, most: int) -> bytearray:
    """Return up to `most` unpacked bytes, never more: a few packed ones can hold gigabytes."""
    if method == zipfile.ZIP_STORED:
        return bytearray(packed[:most])
    return bytearray(zlib.decompressobj(RAW_DEFLATE).decompress(packed, most) if most else b"")


def read_zip(archive: Path) -> Iterator[Member | ArchiveFolder]:
    """Yield the members of a zip. Raises UserError as `read_zip_tree` does."""
    names: set[str] = set()
    for info in _directory(archive):
        written = _name(info)
        name = name_within(archive, written)
        if name is None:
            continue
        if written.endswith("/"):
            yield ArchiveFolder(name)
            continue
        _check_readable(archive, info)
        zipped = Zipped(info.compress_type, info.file_size, info.CRC)
        problem = "is in the archive twice" if name in names else _problem(info)
        names.add(name)
        yield Member(name, str(archive), info.header_offset, info.compress_size, problem, zipped)


def _directory(archive: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, *UNPACK_ERRORS, NotImplementedError, ValueError, struct.error) as error:
        raise UserError(f"{archive}: cannot be read as a zip ({error}): fetch the archive again") from error
    with open(archive, "rb") as file:
        begins = file.read(len(SIGNATURE)) == SIGNATURE
    if begins and min((info.header_offset for info in infos), default=1) > 0:
        raise UserError(
            f"{archive}: begins with files that its directory does not list, like two zips joined: unpack both "
            "into one folder and set the dataset's path to it"
        )
    return infos


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name. Many programs write it in UTF-8 and do not say so, some of Windows with backslashes."""
    name = info.filename
    if not info.flag_bits & NAME_IN_UTF8:
        with suppress(UnicodeError):  # else it is in MS-DOS's letters, as zipfile took it to be
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if info.create_system == DOS else name


def _check_readable(archive: Path, info: zipfile.ZipInfo) -> None:
    method = info.compress_type
    if info.flag_bits & ENCRYPTED:
        problem = "encrypted"
    elif method not in READ_METHODS:
        problem = f"compressed with {zipfile.compressor_names.get(method, f'method {method}')}, wanted deflate"
    else:
        return
    raise UserError(
        f"{archive}: {info.filename}: {problem}: unpack the zip (for example `7z x {archive.name}`) and set the "
        "dataset's path to the folder that comes out"
    )


def _problem(info: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a symlink, which is not followed in a zip; put the file there"
    return ""
