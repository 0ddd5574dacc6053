"""Parquet files with a column of pictures, as the Hugging Face datasets are stored."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from selfsup.data import source
from selfsup.data.listing import Listing
from selfsup.data.splits import TESTS, Wanted


class Source(source.Source):
    keys = ("labels", "test_share", "image_column", "label_column")

    def check_path(self, name: str) -> None:
        if self.path is None or not self.path.is_file():
            super().check_path(name)

    def listing(self, pool: Executor, folder: Path, seen: Callable[[int], None]) -> Listing:
        from selfsup.data.parquet_listing import Columns, list_parquet

        packing = self.packing
        columns = Columns(packing.image_column, packing.label_column)
        return list_parquet(self.path, Wanted(TESTS, packing.labels, packing.test_share), columns, seen)
