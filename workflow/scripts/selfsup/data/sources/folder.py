"""Image files in class folders, with a split or without, or without classes."""

from selfsup.data.splits import TESTS, Wanted
from selfsup.data.trees import TreeSource


class Source(TreeSource):
    keys = ("labels", "test_share")

    def wanted(self) -> Wanted:
        return Wanted(TESTS, self.packing.labels, self.packing.test_share)
