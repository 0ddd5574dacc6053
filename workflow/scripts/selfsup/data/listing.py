"""What a source holds: the pictures of each split, found before any is read, and all that is wrong with its shape.

A tree of class folders is train/<class>/.../<picture> and <test>/<class>/.../<picture>, in a folder or in a tar; the
same tree gives the same list, so the same store, either way. Names that begin with a dot are left out.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from selfsup.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
SHOWN = 20  # lines of a list in a message; the rest is in a file, or of the same kind


class Member(NamedTuple):
    """A file of a tree: its name within the tree, and where its bytes are. length -1: all of `file`.

    problem: why it cannot be read, as far as the list tells; "" if nothing is known.
    """

    name: str
    file: str
    offset: int = 0
    length: int = -1
    problem: str = ""


class Picture(NamedTuple):
    """A member with the label of its class."""

    member: Member
    label: int

    def __str__(self) -> str:
        """The picture as a user can find it."""
        member = self.member
        place = f"{member.file}: {member.name}" if member.length >= 0 else member.file
        return place.encode(errors="backslashreplace").decode()  # a name may be no text at all


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
        folders = {split: {name for _, name in self._class_folders(split)} for split in ("train", self.test)}
        classes = sorted(folders["train"])
        labels = {name: label for label, name in enumerate(classes)}
        by_class: dict[str, list[Member]] = defaultdict(list)
        for member in self.members:
            by_class["/".join(member.name.split("/")[:2])].append(member)
        mistakes = [*self.mistakes, *self._mistakes(folders, by_class)]
        if mistakes:
            raise UserError(_told(f"{self.where}: no class tree that can be packed", mistakes))
        splits = {"train": "train", "test": self.test}
        return Listing(
            classes,
            {split: list(self._pictures(folder, labels, by_class)) for split, folder in splits.items()},
        )

    def _class_folders(self, split: str) -> Iterator[tuple[str, str]]:
        for folder in self.folders:
            if folder.startswith(split + "/") and folder.count("/") == 1:
                yield split, folder.split("/")[1]

    def _mistakes(self, folders: Mapping[str, set[str]], by_class: Mapping[str, list[Member]]) -> Iterator[str]:
        told = {mistake.split(":")[0] for mistake in self.mistakes}
        for split in ("train", self.test):
            if split not in self.folders:
                yield f"has no folder {split}/, wanted train/<class>/*.jpg and {self.test}/<class>/*.jpg"
            elif not folders[split] and split not in told:
                yield f"{split}/ has no class folders, wanted {split}/<class>/*.jpg"
            for name in sorted(folders[split]):
                if f"{split}/{name}" not in by_class and f"{split}/{name}" not in told:
                    yield f"{split}/{name}: an empty class folder; remove it, or put its images there"
        if "train" in self.folders:
            for name in sorted(folders[self.test] - folders["train"]):
                yield f"{self.test}/{name}: no such class in train/; wanted the same classes in both"

    def _pictures(
        self, folder: str, labels: Mapping[str, int], by_class: Mapping[str, list[Member]]
    ) -> Iterator[Picture]:
        for name, label in labels.items():
            for member in sorted(by_class.get(f"{folder}/{name}", [])):
                yield Picture(member, label)
        for loose in sorted(by_class):  # files that lie in the split's folder itself
            if loose.startswith(folder + "/") and loose not in self.folders:
                for member in by_class[loose]:
                    yield Picture(member._replace(problem="lies in no class folder"), 0)


def check_counts(found: Mapping[str, int], expected: Mapping[str, int], where: Path) -> None:
    """Raise UserError when the numbers of images and classes are not those of `expected`."""
    wrong = [f"{name} {found[name]:,}, wanted {count:,}" for name, count in expected.items() if found[name] != count]
    if wrong:
        raise UserError(
            f"{where}: found {'; '.join(wrong)}: the source is not whole. For a part of it on purpose, set the "
            "dataset's key expect in config.yaml to your numbers, or to null for no check"
        )


def problem_of_name(name: str) -> str:
    """Return why a file of this name is taken for no image, or ""."""
    if name.lower().endswith(IMAGE_SUFFIXES):
        return ""
    return f"no image by its name (wanted {', '.join(IMAGE_SUFFIXES)})"


def read_tree(root: Path, test: str, seen: Callable[[int], None] = lambda count: None) -> Tree:
    """List the class tree in the folder `root`. seen: told of how many more files are found."""
    members: list[Member] = []
    folders: set[str] = set()
    mistakes: list[str] = []

    def walk(name: str, above: tuple[tuple[int, int], ...]) -> None:
        path = root / name
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
            if entry.is_dir():
                walk(f"{name}/{entry.name}", (*above, identity))
            else:
                members.append(Member(f"{name}/{entry.name}", entry.path, problem=_problem(entry)))
                files += 1
        seen(files)

    for split in ("train", test):
        if (root / split).is_dir():
            walk(split, ())
    return Tree(root, test, members, folders, mistakes)


def _problem(entry: os.DirEntry) -> str:
    if entry.is_symlink() and not os.path.exists(entry.path):
        return f"a symlink that leads nowhere ({os.readlink(entry.path)})"
    if not entry.is_file():
        return "neither a file nor a folder"
    return problem_of_name(entry.name)


def _told(head: str, lines: list[str]) -> str:
    shown = lines[:SHOWN] + ([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
    return f"{head}: {shown[0]}" if len(lines) == 1 else "\n  ".join([f"{head}:", *shown])
