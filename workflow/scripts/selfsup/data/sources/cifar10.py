"""CIFAR-10 (Krizhevsky 2009)."""

from pathlib import Path

from selfsup.data.cifar import CIFARSource
from selfsup.data.source import Counts


class Source(CIFARSource):
    dataset = "CIFAR10"
    counts = Counts(50_000, 10_000, 10)  # section 3

    @classmethod
    def download(cls, folder: Path) -> Path:
        """Fetch the archive, and return it: it lies in the folder of all downloads, as it always has."""
        from selfsup.data.downloading import fetch

        ((url, md5),) = cls.urls()
        return fetch(url, folder, md5)
