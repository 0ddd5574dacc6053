"""Caltech-101 (Fei-Fei et al. 2004): 30 pictures of each class to train on, all others to test on.

The publisher has no split, and papers draw those 30 at random, which they do not tell. Here they are fixed: those whose
names, "accordion/image_0001.jpg", have the lowest SHA-256. The background is a class, as in the papers' counts.
"""

import hashlib

from selfsup.data.listing import Listing
from selfsup.data.published_files import PublishedFiles, PublishedSource, by_class
from selfsup.data.source import Counts

TRAIN_OF_A_CLASS = 30
FOLDER = "101_ObjectCategories"


class Source(PublishedSource):
    counts = Counts(3_060, 6_084, 102)
    measure = "mean per class"
    needs = (f"{FOLDER}/accordion/image_0001.jpg",)
    where = (
        "wanted 101_ObjectCategories.tar.gz, or the folder that it is unpacked in; it lies in caltech-101.zip of "
        "data.caltech.edu/records/mzrjq-6wc02, which must be unpacked first"
    )

    def read(self, files: PublishedFiles) -> Listing:
        names = [name for name in files.names(FOLDER) if name.endswith(".jpg")]
        classes, listed = by_class(names, FOLDER)
        chosen = {name for one in classes for name in _lowest(name for name in names if name.startswith(f"{one}/"))}
        splits = {
            "train": [name for name in names if name in chosen],
            "test": [name for name in names if name not in chosen],
        }
        return Listing(classes, {split: files.pictures(map(listed, of)) for split, of in splits.items()})


def _lowest(names) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:TRAIN_OF_A_CLASS]
