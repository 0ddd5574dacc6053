"""CIFAR-100 (Krizhevsky 2009), by its 100 fine classes."""

from selfsup.data.cifar import CIFARSource
from selfsup.data.source import Counts


class Source(CIFARSource):
    dataset = "CIFAR100"
    counts = Counts(50_000, 10_000, 100)  # section 3
