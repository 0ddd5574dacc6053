"""What a source holds: the pictures of each split, found before any is read, and all that is wrong with its shape.

A tree of class folders is <split>/<class>/.../<picture>, or <class>/.../<picture> where there is no split, in a folder
or in an archive; the same tree gives the same list, so the same store, either way. Names that begin with a dot are left
out.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from selfsup.data.spelling import as_text, same, utf8
from selfsup.data.splits import (
    TRAIN,
    WITHOUT_CLASSES,
    WITHOUT_SPLIT,
    Layout,
    Wanted,
    falls_to_test,
    find_layout,
    prefix_of,
)
from selfsup.errors import UserError

SHOWN = 20  # lines of a list in a message; the rest is in a file, or of the same kind


class Zipped(NamedTuple):
    """How a zip holds a member. method: zipfile's number of its compression; size, crc: of its unpacked bytes."""

    method: int
    size: int
    crc: int


class Row(NamedTuple):
    """Where a Parquet file holds a picture. column: of pictures; group: of rows; place: within the group."""

    column: str
    group: int
    place: int


class Member(NamedTuple):
    """A file of a tree: its name within the tree, and where its bytes are. length -1: all of `file`.

    name: what is no UTF-8 in it stands as surrogates, as Python's "surrogateescape" leaves it. problem: why it cannot
    be read, as far as the list tells; "" if nothing is known. zipped: of a zip's members, whose header is at `offset`.
    row: of a Parquet file's, which has no offset.
    """

    name: str
    file: str
    offset: int = 0
    length: int = -1
    problem: str = ""
    zipped: Zipped | None = None
    row: Row | None = None


class Picture(NamedTuple):
    """A member with the label of its class; 0 where there are no classes.

    Of a multi-label source, for each class 1 (of it), 0 (not) or -1 (counts as neither).
    """

    member: Member
    label: int | tuple[int, ...]

    def __str__(self) -> str:
        """The picture as a user can find it."""
        file = as_text(utf8(self.member.file))
        return f"{file}: {as_text(self.member.name)}" if self.member.length >= 0 else file


@dataclass(frozen=True)
class Listing:
    """A source's classes in label order, and the pictures of "train" and "test".

    Without labels there are no classes, and "train" alone. prefix: what the names of training pictures begin with.
    validation: how many of the last training pictures are a validation set, by whoever has published the source.
    """

    classes: list[str]
    splits: dict[str, list[Picture]]
    prefix: str = f"{TRAIN}/"
    validation: int = 0

    @property
    def multi_label(self) -> bool:
        """Whether a picture may be of several classes."""
        return any(isinstance(picture.label, tuple) for picture in self.splits["train"][:1])

    def counts(self) -> dict[str, int]:
        """Return the numbers of "train", "validation" and "test" images and of "classes"; "train" has those of
        "validation"."""
        counts = {split: len(pictures) for split, pictures in self.splits.items()}
        return {"validation": self.validation, "test": 0} | counts | {"classes": len(self.classes)}


@dataclass(frozen=True)
class Tree:
    """The members of a tree, and the folders that were seen, empty ones too.

    where: the folder or archive, for messages. layout: where in it pictures lie. mistakes: what is wrong with the tree
    as a whole, which no skipping of files would mend.
    """

    where: Path
    wanted: Wanted
    layout: Layout
    members: list[Member]
    folders: set[str]
    mistakes: list[str]

    def listing(self) -> Listing:
        """Return the pictures, classes being the training pictures' folders in sorted order.

        Raises UserError with all mistakes.
        """
        if not self.layout.labels:
            return self._without_labels()
        train, *tests = (self._branch(folder) for folder in self.layout.folders)
        self._refuse([*self.mistakes, *self._mistakes(train, *tests)])
        classes = sorted(train.folders)
        labels = {same(name): label for label, name in enumerate(classes)}
        splits = {
            "train": list(train.pictures(labels)),
            "test": [one for test in tests for one in test.pictures(labels)],
        }
        names, share = [as_text(name) for name in classes], self.layout.test_share
        if share is not None:
            begin = len(train.prefix)
            splits = divided(splits["train"], share, names, self.where, lambda picture: picture.member.name[begin:])
        return Listing(names, splits, train.prefix)

    def _without_labels(self) -> Listing:
        prefix = prefix_of(self.layout.train)
        members = sorted(member for member in self.members if member.name.startswith(prefix))
        self._refuse([*self.mistakes, *([] if members else [f"{prefix or 'the source'} holds no picture"])])
        return Listing([], {"train": [Picture(member, 0) for member in members]}, prefix)

    def _refuse(self, mistakes: list[str]) -> None:
        if mistakes:
            what = "class tree" if self.layout.labels else "pictures"
            raise UserError(_told(f"{self.where}: no {what} that can be packed", mistakes))

    def _branch(self, folder: str) -> "_Branch":
        branch = _Branch(prefix_of(folder), set(), defaultdict(list))
        for name in self.folders:
            inner = name.removeprefix(branch.prefix)
            if name.startswith(branch.prefix) and inner and "/" not in inner:
                branch.folders.add(inner)
        for member in self.members:
            if member.name.startswith(branch.prefix):
                above, found, _ = member.name.removeprefix(branch.prefix).partition("/")
                branch.by_class[same(above) if found else ""].append(member)
        return branch

    def _mistakes(self, train: "_Branch", test: "_Branch | None" = None) -> Iterator[str]:
        told = {mistake.split(":")[0] for mistake in self.mistakes}
        missing = [one for one in self.layout.folders if one and one not in self.folders]
        if missing:
            yield self._missing(missing[0])
        for branch in (train, *([test] if test else [])):
            where = branch.prefix or "the source"
            if not branch.folders and where.rstrip("/") not in {*told, *missing}:
                yield f"{where} has no class folders, wanted {branch.prefix}<class>/*.jpg{self._hint(WITHOUT_CLASSES)}"
            yield from branch.mistakes(told)
        if test and TRAIN not in missing:
            known = set(map(same, train.folders))
            for name in sorted(name for name in test.folders if same(name) not in known):
                yield f"{test.prefix}{name}: no such class in train/; wanted the same classes in both"

    def _missing(self, folder: str) -> str:
        test = self.layout.test or self.wanted.tests[0]
        shape = f"has no folder {folder}/, wanted train/<class>/*.jpg and {test}/<class>/*.jpg"
        return shape + self._hint(f"{WITHOUT_SPLIT}, {WITHOUT_CLASSES}" if folder == TRAIN else WITHOUT_SPLIT)

    def _hint(self, text: str) -> str:
        return f"; {text}" if self.wanted.free else ""


class _Branch(NamedTuple):
    """A split's part of a tree. folders: of its classes, as they are spelt; by_class: members, by `same` of the folder
    that they lie in, "" for none."""

    prefix: str
    folders: set[str]
    by_class: dict[str, list[Member]]

    def mistakes(self, told: set[str]) -> Iterator[str]:
        """Yield what is wrong with the class folders, without those that were told of before."""
        for name in sorted(self.folders):
            if same(name) not in self.by_class and f"{self.prefix}{name}" not in told:
                yield f"{self.prefix}{name}: an empty class folder; remove it, or put its images there"
        for name, count in Counter(map(same, self.folders)).items():
            if count > 1:
                yield f"{self.prefix}{name}: {count} folders with names that look alike (NFC and NFD): make them one"

    def pictures(self, labels: Mapping[str, int]) -> Iterator[Picture]:
        for name, label in labels.items():
            for member in sorted(self.by_class.get(name, [])):
                yield Picture(member, label)
        for member in sorted(self.by_class.get("", [])):
            yield Picture(member._replace(problem="is in no class folder"), 0)


def divided(
    pictures: Iterable[Picture], share: float, classes: list[str], where: Path, name_of: Callable[[Picture], str]
) -> dict[str, list[Picture]]:
    """Return the pictures as "train" and "test", by their names: see `falls_to_test`.

    Raises UserError where no picture falls to the test set, or all of a class.
    """
    splits: dict[str, list[Picture]] = {"train": [], "test": []}
    for picture in pictures:
        tested = not picture.member.problem and falls_to_test(name_of(picture), share)
        splits["test" if tested else "train"].append(picture)
    if not splits["test"]:
        raise UserError(
            f"{where}: test_share {share:g} makes none of the {len(splits['train']):,} pictures a test picture: "
            "set a larger share"
        )
    labels = {
        split: Counter(one.label for one in of_split if not one.member.problem) for split, of_split in splits.items()
    }
    for label in sorted(labels["test"].keys() - labels["train"].keys()):
        raise UserError(
            f"{where}: test_share {share:g} puts all pictures of the class {classes[label]} ({labels['test'][label]}) "
            "into the test set: add pictures to the class, remove it, or set another share"
        )
    return splits


def check_counts(found: Mapping[str, int], expected: Mapping[str, int], where: Path) -> None:
    """Raise UserError when the numbers of images and classes are not those of `expected`."""
    wrong = [f"{name} {found[name]:,}, wanted {count:,}" for name, count in expected.items() if found[name] != count]
    if wrong:
        raise UserError(
            f"{where}: found {'; '.join(wrong)}: the source is incomplete. If that is on purpose, set the "
            "dataset's key expect in config.yaml to your numbers, or to null for no check"
        )


def check_classes(listing: Listing, expected: Mapping[str, int], where: Path) -> None:
    """Raise UserError when there is one class, which `expected` does not say, telling of the folders in it."""
    if len(listing.classes) != 1 or expected.get("classes") == 1:
        return
    raise UserError(
        f"{where}: {_one_class(listing)}. If one class is on purpose (every top-1 is then 100 %), set the dataset's "
        "key expect in config.yaml to {classes: 1}"
    )


def _one_class(listing: Listing) -> str:
    (name,), pictures, prefix = listing.classes, listing.splits["train"], listing.prefix
    if any(picture.member.row for picture in pictures):
        return f"all pictures are of one class, {name}"
    inner = [picture.member.name.removeprefix(prefix).split("/")[1:-1] for picture in pictures]
    below = sorted({as_text(folders[0]) for folders in inner if folders})
    shown = ", ".join(below[:5]) + (f" and {len(below) - 5:,} more" if len(below) > 5 else "")
    both = ", in both splits" if prefix else ""
    found = f"the folders {shown}: move them one level up{both}" if below else f"{len(inner):,} images, no folder"
    return f"{prefix or 'it'} has one class, {name}, and in it {found}; wanted {prefix}<class>/*.jpg"


def read_tree(root: Path, wanted: Wanted, seen: Callable[[int], None] = lambda count: None) -> Tree:
    """List the tree in the folder `root`. seen: told of how many more files are found."""
    layout = find_layout(root, wanted, _upper_folders(root))
    return Tree(root, wanted, layout, *read_folders(root, layout.folders, seen))


def read_folders(
    root: Path, inner: Iterable[str], seen: Callable[[int], None] = lambda count: None
) -> tuple[list[Member], set[str], list[str]]:
    """Return all files in some folders of `root`, "" for itself, the names of all their folders, and mistakes."""
    members: list[Member] = []
    folders: set[str] = set()
    mistakes: list[str] = []

    def walk(name: str, path: Path, above: tuple[tuple[int, int], ...]) -> None:
        try:
            status = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            mistakes.append(f"{name or path}: the folder cannot be read ({error.strerror})")
            folders.add(name)
            return
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            mistakes.append(f"{name}: a symlink to a folder that contains it")
            return
        folders.add(name)
        files = 0
        for entry in entries:
            if entry.name.startswith("."):
                continue
            inner = f"{prefix_of(name)}{utf8(entry.name)}"
            if entry.is_dir():
                walk(inner, path / entry.name, (*above, identity))
            else:
                members.append(Member(inner, entry.path, problem=_problem(entry)))
                files += 1
        seen(files)

    for folder in inner:
        if (root / folder).is_dir():
            walk(folder, root / folder, ())
    return members, folders, mistakes


def _upper_folders(root: Path) -> Iterator[str]:
    """Yield the names of a tree's upper folders, and of those in train/; none of those that cannot be read."""
    for folder in ("", TRAIN):
        try:
            entries = [entry for entry in os.scandir(root / folder) if entry.is_dir()]
        except OSError:
            continue
        yield from (prefix_of(folder) + utf8(entry.name) for entry in entries if not entry.name.startswith("."))


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
