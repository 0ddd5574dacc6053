"""Which of a source's folders hold its training pictures and which its test pictures, and how a split is made.

A source has `train/` and a folder of test pictures beside it. Without them config.yaml has the word, because a plan
must know it, and because nested folders may be classes or not: `test_share: 0.2` says that the folders are classes and
has test pictures chosen; `labels: false` says that there are no classes, and that everything is to be trained on.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from selfsup.data.spelling import composed
from selfsup.errors import UserError

TRAIN = "train"
TESTS = ("test", "val", "valid", "validation")  # in this order: with a test set, a validation set is not tested on
WITHOUT_SPLIT = "for class folders without a split set the dataset's key test_share: 0.2"
WITHOUT_CLASSES = "for pictures without classes set the dataset's key labels: false"


class Wanted(NamedTuple):
    """What is known of a source's folders before they are seen.

    tests: names of the folder of test pictures, the first of them that is there. labels: whether pictures have classes.
    test_share: of a source without test pictures, the share of pictures that become some. free: whether a user may say
    labels and test_share of this source.
    """

    tests: tuple[str, ...] = TESTS
    labels: bool = True
    test_share: float | None = None

    @property
    def free(self) -> bool:
        return self.tests == TESTS


class Layout(NamedTuple):
    """Where pictures lie. train, test: folders of the source, "" for all of it, test None for none."""

    train: str
    test: str | None
    labels: bool = True
    test_share: float | None = None

    @property
    def folders(self) -> list[str]:
        return [self.train] if self.test is None else [self.train, self.test]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What names of pictures begin with."""
        return tuple(prefix_of(folder) for folder in self.folders)


def prefix_of(folder: str) -> str:
    """Return what the names in a folder of a source begin with."""
    return f"{folder}/" if folder else ""


def find_layout(where: Path, wanted: Wanted, folders: Iterable[str]) -> Layout:
    """Return where the pictures of a source lie. folders: names of its folders, "train" and "train/ant".

    Raises UserError where the folders do not fit what is wanted; a folder that is missing is not told here.
    """
    folders = set(folders)
    tests = [name for name in wanted.tests if name in folders]
    if not wanted.labels:
        return Layout(TRAIN if TRAIN in folders and tests else "", None, labels=False)
    if wanted.test_share is not None:
        return _to_be_divided(where, wanted.test_share, folders, tests)
    if len(tests) > 1 and tests[0] != TESTS[0]:
        raise UserError(
            f"{where}: has {' and '.join(f'{name}/' for name in tests)}: rename the one to test on to {TESTS[0]}/, or "
            "remove the others"
        )
    return Layout(TRAIN, tests[0] if tests else wanted.tests[0])


def _to_be_divided(where: Path, share: float, folders: set[str], tests: list[str]) -> Layout:
    # A folder of that name may be a class, of trains: then pictures lie in it, and no folders.
    split = any(name.startswith(f"{TRAIN}/") for name in folders)
    if split and tests:
        raise UserError(
            f"{where}: has {TRAIN}/ and {tests[0]}/, so that there are test pictures already: remove the dataset's key "
            "test_share"
        )
    return Layout(TRAIN if split else "", None, test_share=share)


def falls_to_test(name: str, share: float) -> bool:
    """Return whether a picture becomes a test picture, which depends on its own name and on nothing else.

    name: from its class's folder on, "ant/0.png". The first eight bytes of the SHA-256 of the name (NFC, in UTF-8), as
    a whole number, big end first, are below share x 2^64. So a larger share has all test pictures of a smaller one.
    """
    return int.from_bytes(hashlib.sha256(composed(name).encode()).digest()[:8]) < share * 2**64
