"""What a source holds: the pictures of each split, found before any is read, and all that is wrong with its shape.

A tree of class folders is train/<class>/.../<picture> and <test>/<class>/.../<picture>, in a folder or in a tar; the
same tree gives the same list, so the same store, either way. Names that begin with a dot are left out.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from selfsup.errors import UserError

SHOWN = 20  # lines of a list in a message; the rest is in a file, or of the same kind


class Zipped(NamedTuple):
    """How a zip holds a member. method: zipfile's number of its compression; size, crc: of its unpacked bytes."""

    method: int
    size: int
    crc: int


class Member(NamedTuple):
    """A file of a tree: its name within the tree, and where its bytes are. length -1: all of `file`.

    name: what is no UTF-8 in it stands as surrogates, as Python's "surrogateescape" leaves it. problem: why it cannot
    be read, as far as the list tells; "" if nothing is known. zipped: of a zip's members, whose header is at `offset`.
    """

    name: str
    file: str
    offset: int = 0
    length: int = -1
    problem: str = ""
    zipped: Zipped | None = None


class Picture(NamedTuple):
    """A member with the label of its class."""

    member: Member
    label: int

    def __str__(self) -> str:
        """The picture as a user can find it."""
        file = as_text(_utf8(self.member.file))
        return f"{file}: {as_text(self.member.name)}" if self.member.length >= 0 else file


@dataclass(frozen=True)
class Listing:
    """A source's classes in label order, and the pictures of "train" and "test"."""

    classes: list[str]
    splits: dict[str, list[Picture]]

    def counts(self) -> dict[str, int]:
        """Return the numbers of "train" and "test" images and of "classes"."""
        return {split: len(pictures) for split, pictures in self.splits.items()} | {"classes": len(self.classes)}


@dataclass(frozen=True)
class Tree:
    """The members of a class tree by split, and the class folders that were seen, empty ones too.

    where: the folder or archive, for messages. test: the test split's folder, "test" or "val". mistakes: what is wrong
    with the tree as a whole, which no skipping of files would mend.
    """

    where: Path
    test: str
    members: list[Member]
    folders: set[str]
    mistakes: list[str]

    def listing(self) -> Listing:
        """Return the pictures, classes being train's folders in sorted order. Raises UserError with all mistakes."""
        folders = {split: self._class_folders(split) for split in ("train", self.test)}
        classes = sorted(folders["train"])
        labels = {_same(name): label for label, name in enumerate(classes)}
        by_class: dict[str, list[Member]] = defaultdict(list)
        for member in self.members:
            by_class[_class_path(member.name)].append(member)
        mistakes = [*self.mistakes, *self._mistakes(folders, by_class)]
        if mistakes:
            raise UserError(_told(f"{self.where}: no class tree that can be packed", mistakes))
        splits = {"train": "train", "test": self.test}
        return Listing(
            [as_text(name) for name in classes],
            {split: list(self._pictures(folder, labels, by_class)) for split, folder in splits.items()},
        )

    def _class_folders(self, split: str) -> set[str]:
        return {name.split("/")[1] for name in self.folders if name.startswith(split + "/") and name.count("/") == 1}

    def _mistakes(self, folders: Mapping[str, set[str]], by_class: Mapping[str, list[Member]]) -> Iterator[str]:
        told = {mistake.split(":")[0] for mistake in self.mistakes}
        for split in ("train", self.test):
            if split not in self.folders:
                yield f"has no folder {split}/, wanted train/<class>/*.jpg and {self.test}/<class>/*.jpg"
            elif not folders[split] and split not in told:
                yield f"{split}/ has no class folders, wanted {split}/<class>/*.jpg"
            for name in sorted(folders[split]):
                if _class_path(f"{split}/{name}/") not in by_class and f"{split}/{name}" not in told:
                    yield f"{split}/{name}: an empty class folder; remove it, or put its images there"
            for name, count in Counter(map(_same, folders[split])).items():
                if count > 1:
                    yield f"{split}/{name}: {count} folders with names that look alike (NFC and NFD): make them one"
        if "train" in self.folders:
            known = set(map(_same, folders["train"]))
            for name in sorted(name for name in folders[self.test] if _same(name) not in known):
                yield f"{self.test}/{name}: no such class in train/; wanted the same classes in both"

    def _pictures(
        self, folder: str, labels: Mapping[str, int], by_class: Mapping[str, list[Member]]
    ) -> Iterator[Picture]:
        for name, label in labels.items():
            for member in sorted(by_class.get(f"{folder}/{name}", [])):
                yield Picture(member, label)
        for member in sorted(by_class.get(folder, [])):
            yield Picture(member._replace(problem="lies in no class folder"), 0)


def check_counts(found: Mapping[str, int], expected: Mapping[str, int], where: Path) -> None:
    """Raise UserError when the numbers of images and classes are not those of `expected`."""
    wrong = [f"{name} {found[name]:,}, wanted {count:,}" for name, count in expected.items() if found[name] != count]
    if wrong:
        raise UserError(
            f"{where}: found {'; '.join(wrong)}: the source is not whole. For a part of it on purpose, set the "
            "dataset's key expect in config.yaml to your numbers, or to null for no check"
        )


def check_classes(listing: Listing, expected: Mapping[str, int], where: Path) -> None:
    """Raise UserError when there is one class, which `expected` does not say, telling of the folders in it."""
    if len(listing.classes) != 1 or expected.get("classes") == 1:
        return
    inner = [picture.member.name.split("/")[2:-1] for picture in listing.splits["train"]]
    below = sorted({as_text(folders[0]) for folders in inner if folders})
    shown = ", ".join(below[:5]) + (f" and {len(below) - 5:,} more" if len(below) > 5 else "")
    found = f"the folders {shown}: move them one up, in both splits" if below else f"{len(inner):,} images, no folder"
    raise UserError(
        f"{where}: train/ has one class, {listing.classes[0]}, and in it {found}; wanted train/<class>/*.jpg. For one "
        "class on purpose (every top-1 is then 100 %), set the dataset's key expect in config.yaml to {classes: 1}"
    )


def as_text(name: str) -> str:
    """Return a member's name as text that can be printed and written: \\xe9 for a byte that is no UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _utf8(name: str) -> str:
    """Return a name that the system gave as it is in UTF-8, which files' names are, whatever the locale says."""
    return os.fsencode(name).decode(errors="surrogateescape")


@lru_cache(maxsize=10_000)  # asked for each member
def _same(name: str) -> str:
    """Return what folders of one class have in common: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", as_text(name))


def _class_path(name: str) -> str:
    """Return <split>/<class> of a member, alike for all spellings of the class; <split> if it lies in no class."""
    split, *folders, _ = name.split("/")
    return f"{split}/{_same(folders[0])}" if folders else split


def read_tree(root: Path, test: str, seen: Callable[[int], None] = lambda count: None) -> Tree:
    """List the class tree in the folder `root`. seen: told of how many more files are found."""
    members: list[Member] = []
    folders: set[str] = set()
    mistakes: list[str] = []

    def walk(name: str, path: Path, above: tuple[tuple[int, int], ...]) -> None:
        try:
            status = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            mistakes.append(f"{name}: the folder cannot be read ({error.strerror})")
            folders.add(name)
            return
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            mistakes.append(f"{name}: a symlink to a folder that it lies in")
            return
        folders.add(name)
        files = 0
        for entry in entries:
            if entry.name.startswith("."):
                continue
            inner = f"{name}/{_utf8(entry.name)}"
            if entry.is_dir():
                walk(inner, path / entry.name, (*above, identity))
            else:
                members.append(Member(inner, entry.path, problem=_problem(entry)))
                files += 1
        seen(files)

    for split in ("train", test):
        if (root / split).is_dir():
            walk(split, root / split, ())
    return Tree(root, test, members, folders, mistakes)


def _problem(entry: os.DirEntry) -> str:
    if entry.is_symlink() and not os.path.exists(entry.path):
        return f"a symlink that leads nowhere ({os.readlink(entry.path)})"
    if not entry.is_file():
        return "neither a file nor a folder"
    return ""


def _told(head: str, lines: list[str]) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    shown = [as_text(line) for line in lines[:SHOWN]] + more
    return f"{head}: {shown[0]}" if len(lines) == 1 else "\n  ".join([f"{head}:", *shown])
