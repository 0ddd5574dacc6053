"""ImageNet (ILSVRC 2012), from its official archives or a tree. Its test set is the 50,000 validation images."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from selfsup.data.listing import Listing
from selfsup.data.source import Counts
from selfsup.data.splits import Wanted
from selfsup.data.trees import TreeSource


class Source(TreeSource):
    counts = Counts(1_281_167, 50_000, 1_000)  # Russakovsky et al. (2015), table 2
    packed_bytes = 112_000  # the mean of its files
    test_split = "validation"

    def wanted(self) -> Wanted:
        return Wanted(("val",))

    def listing(self, pool: Executor, folder: Path, seen: Callable[[int], None]) -> Listing:
        from selfsup.data.imagenet import is_official, list_official

        if self.path.is_dir() and is_official(self.path):
            return list_official(self.path, pool, seen)
        return super().listing(pool, folder, seen)
