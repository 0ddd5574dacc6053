"""The files of a data set as its publisher packs them: in a folder, an archive, or archives in a folder.

Pictures are read where they lie, and nothing is extracted; lists of splits and classes are read from there too. Names
are those that unpacking each archive in its own folder would give.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from selfsup.data.archives import is_zip
from selfsup.data.listing import Listing, Member, Picture, read_folders
from selfsup.data.source import Source, told, unfinished_in
from selfsup.data.spelling import utf8
from selfsup.data.splits import prefix_of
from selfsup.errors import UserError

ARCHIVE = re.compile(r"\.(tar|tgz|zip|tar\.(gz|bz2|xz))$")
Label = int | tuple[int, ...]


class Listed(NamedTuple):
    """A picture that a publisher's list has: its name below the data set's folder, and its label."""

    name: str
    label: Label


class PublishedSource(Source):
    """A source that a publisher's own lists tell of. A subclass has `read`, and `needs`: what must be there.

    needs: ends of files' names, and of folders' with a slash; the first says where the data set's folder is. where: to
    get them.
    """

    needs: ClassVar[tuple[str, ...]]

    def listing(self, pool: Executor, folder: Path, seen: Callable[[int], None]) -> Listing:
        files = PublishedFiles(self.path, self.needs, self.where, folder, seen)
        with told(self.path, "its publisher's lists"):
            return self.read(files)

    def read(self, files: "PublishedFiles") -> Listing:
        """Return the listing. What the lists do not have as they should is told where this is called."""
        raise NotImplementedError


class PublishedFiles:
    """Members by name."""

    def __init__(self, path: Path, needs: tuple[str, ...], where: str, folder: Path, seen: Callable[[int], None]):
        """where: to get the files, for a message. folder: of the store, for what must be unpacked to be read."""
        self.path, self._where, self._folder, self._needs = path, where, folder, needs
        self._members = self._found(seen)
        for need in needs:
            self._check(need)

    def text(self, name: str) -> str:
        """Return a list's text. name: the end of its name."""
        return self.content(name).decode()

    def content(self, name: str) -> bytes:
        """Return a file's bytes. name: the end of its name."""
        member = self._one(name)
        if member.length < 0:
            return Path(member.file).read_bytes()
        with open(member.file, "rb") as file:
            if member.zipped:
                from selfsup.data.zip_listing import read_zipped

                return read_zipped(file.fileno(), member, lambda head: None, 0).tobytes()
            file.seek(member.offset)
            return file.read(member.length)

    def matlab(self, name: str) -> dict:
        """Return the variables of a MATLAB file. Raises UserError without scipy."""
        try:
            from scipy.io import loadmat
        except ImportError:
            raise UserError(
                f"{self.path}: {name} is read with scipy, which is not installed: pip install scipy"
            ) from None
        return loadmat(io.BytesIO(self.content(name)), squeeze_me=True)

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names in a folder below the data set's, from that folder on, in sorted order."""
        prefix = f"{self._root}{folder}/"
        yield from sorted(name.removeprefix(prefix) for name in self._members if name.startswith(prefix))

    def pictures(self, listed: Iterable[Listed]) -> list[Picture]:
        """Return listed pictures; one that is not there is a damaged one."""
        return [self._picture(*one) for one in listed]

    def _picture(self, name: str, label: Label) -> Picture:
        member = self._members.get(self._root + name)
        missing = Member(name, str(self.path), 0, 0, "the publisher's list has it, but it is not there")
        return Picture(member._replace(name=name) if member else missing, label)

    @cached_property
    def _root(self) -> str:
        """What names in the data set's folder begin with."""
        first = self._needs[0]
        return self._one(first).name.removesuffix(first)

    def _found(self, seen: Callable[[int], None]) -> dict[str, Member]:
        if self.path.is_file():
            return _by_name(self._in_archive(self.path, "", seen))
        members, _, mistakes = read_folders(self.path, [""], seen)
        if mistakes:
            raise UserError(f"{self.path}: {mistakes[0]}")
        found = _by_name(members)
        if not all(_holding(need, found) for need in self._needs):
            for member in members:
                if ARCHIVE.search(member.name) and not member.problem:
                    where = prefix_of(member.name.rpartition("/")[0])
                    # What is unpacked already counts, and of several archives the first.
                    found = _by_name(self._in_archive(Path(member.file), where, seen)) | found
        return found

    def _in_archive(self, archive: Path, where: str, seen: Callable[[int], None]) -> Iterator[Member]:
        from selfsup.data.tar_listing import plain_tar, read_tar
        from selfsup.data.zip_listing import read_zip

        entries = read_zip(archive) if is_zip(archive) else read_tar(plain_tar(archive, unfinished_in(self._folder)))
        for entry in entries:
            if isinstance(entry, Member):
                seen(1)
                yield entry._replace(name=where + entry.name)

    def _check(self, need: str) -> None:
        if not _holding(need, self._members):
            raise UserError(f"{self.path}: holds no {need}; {self._where}")

    def _one(self, name: str) -> Member:
        found = _holding(name, self._members)
        if len(found) != 1:
            places = f"{len(found)} times: {', '.join(found[:3])}: set the dataset's path to the folder of one"
            problem = f"holds {name} {places}" if found else f"does not hold {name}; {self._where}"
            raise UserError(f"{self.path}: {problem}")
        return self._members[found[0]]


def _by_name(members: Iterable[Member]) -> dict[str, Member]:
    return {utf8(member.name): member for member in members}


def _holding(need: str, names: Iterable[str]) -> list[str]:
    """Return the names that end so, or for a folder's, those of its files."""
    if need.endswith("/"):
        return [name for name in names if f"/{need}" in f"/{name}"]
    return [name for name in names if f"/{name}".endswith(f"/{need}")]


def by_class(names: Iterable[str], folder: str = "") -> tuple[list[str], Callable[[str], Listed]]:
    """Return the classes, sorted, that the first folders in names are, and what makes a name a listed picture.

    folder: that the names are in.
    """
    classes = sorted({name.split("/")[0] for name in names})
    labels = {name: label for label, name in enumerate(classes)}
    return classes, lambda name: Listed(prefix_of(folder) + name, labels[name.split("/")[0]])
