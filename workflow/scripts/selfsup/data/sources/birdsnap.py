"""Birdsnap (Berg et al. 2014), which everybody fetches picture by picture: many are gone, so counts differ."""

from selfsup.data.listing import Listing
from selfsup.data.published_files import PublishedFiles, PublishedSource, by_class
from selfsup.data.source import Counts


class Source(PublishedSource):
    counts = Counts(47_386, 2_443, 500)  # Grill et al. 2020, table 10
    needs = ("test_images.txt", "images/")
    where = (
        "wanted a folder with images/<species>/*.jpg and test_images.txt, from birdsnap.tgz of "
        "thomasberg.org/datasets/birdsnap/1.1 and its get_birdsnap.py; for pictures that are gone set the key expect"
    )

    def read(self, files: PublishedFiles) -> Listing:
        _, *tests = files.text("test_images.txt").split()  # the first line names the column: path
        tested, found = set(tests), [name for name in files.names("images") if name.endswith(".jpg")]
        trained = [name for name in found if name not in tested]
        classes, listed = by_class(trained, "images")
        # A picture of the test list that could not be fetched is no mistake: expect says how many there are.
        splits = {"train": trained, "test": [name for name in found if name in tested]}
        return Listing(classes, {split: files.pictures(map(listed, of)) for split, of in splits.items()})
