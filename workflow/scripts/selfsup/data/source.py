"""What a source of images is: a file of data/sources with a class `Source`, a subclass of the one here.

Its facts are read whenever config.yaml is, so neither this file nor one of data/sources imports torch at its top.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from selfsup.data.archives import check_kind_of_archive
from selfsup.data.listing import Listing, check_classes, check_counts
from selfsup.errors import UserError

DOWNLOADED = "downloaded.txt"  # in the folder of a source's downloads, once all are there


@dataclass(frozen=True)
class Packing:
    """How a source is packed; the keys of a dataset in config.yaml.

    resize: shorter side in pixels, or None to keep each image's bytes. skip_damaged: go without images that cannot be
    read. expect: numbers of "train" and "test" images and of "classes"; "known" for those of the source, None for any.
    labels: whether the pictures have classes. test_share: of pictures without a test set, the share that becomes one.
    image_column, label_column: of Parquet files, None where they tell it themselves. cpus: cores to use.
    """

    resize: int | None = None
    skip_damaged: bool = False
    expect: Mapping[str, int] | str | None = "known"
    labels: bool = True
    test_share: float | None = None
    image_column: str | None = None
    label_column: str | None = None
    cpus: int = 1


class Counts(NamedTuple):
    """Numbers of a whole source's images and classes. train: with those for validation."""

    train: int
    test: int
    classes: int
    validation: int = 0


class Source:
    """A source of images, of a path and of how they are to be packed. A subclass has `listing`, or `pack`.

    counts: what is known of the whole source, None for nothing. packed_bytes: of an image, about, None for not known.
    measure: by which papers compare: "top-1", "mean per class" or "11-point mAP". keys: of a dataset in config.yaml
    that not every source has. files: whether it holds image files, so that resize, skip_damaged and expect mean
    something. test_split: what its test set is. where: the files are to be had. downloads: whether `download` can fetch
    them.
    """

    counts: ClassVar[Counts | None] = None
    packed_bytes: ClassVar[int | None] = None
    measure: ClassVar[str] = "top-1"
    keys: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[bool] = True
    test_split: ClassVar[str] = "test"
    where: ClassVar[str] = ""
    downloads: ClassVar[bool] = False

    def __init__(self, path: Path | None, packing: Packing):
        self.path, self.packing = path, packing

    def check_path(self, name: str) -> None:
        """Raise UserError where the path cannot be one of this source. name: the source's."""
        if self.path is None or not self.path.exists():
            found = "not given" if self.path is None else f"{self.path}, which does not exist"
            raise UserError(f"source {name}: --path is {found}; wanted the existing folder or archive of its images")
        if self.path.is_file():
            check_kind_of_archive(self.path)

    def pack(self, folder: Path) -> str:
        """Pack the source into `folder` and return the fingerprint. Raises UserError when it cannot."""
        from selfsup.data.packing import pack, progress_bar, threads

        packing = self.packing
        with threads(packing.cpus) as pool, progress_bar(None, "files", "list") as bar:
            listing = self.listing(pool, folder, bar.update)
        check_counts(listing.counts(), self.expected(), self.path)
        check_classes(listing, self.expected(), self.path)
        how = {"resize": packing.resize, "skip_damaged": packing.skip_damaged, "cpus": packing.cpus}
        return pack(listing, folder, **how, measure=self.measure)

    def listing(self, pool: Executor, folder: Path, seen: Callable[[int], None]) -> Listing:
        """List the pictures. folder: of the store; seen: told of how many more files are found."""
        raise NotImplementedError

    def expected(self) -> Mapping[str, int]:
        """Return the numbers that must be found."""
        if self.packing.expect == "known":
            return self.counts._asdict() if self.counts else {}
        return self.packing.expect or {}

    @classmethod
    def urls(cls) -> Iterator[tuple[str, str | None]]:
        """Yield what `download` fetches, each with its MD5, None where its publisher tells none."""
        yield from ()

    @classmethod
    def download(cls, folder: Path) -> Path:
        """Fetch the files into `folder`; return what may be the source's path. Those that are whole are kept."""
        from selfsup.atomic_files import write_atomically
        from selfsup.data.downloading import fetch

        names = [fetch(url, folder, md5).name for url, md5 in cls.urls()]
        write_atomically(folder / DOWNLOADED, "".join(f"{name}\n" for name in names))
        return folder


def unfinished_in(folder: Path) -> Path:
    """Return the folder in a store's folder for what is deleted when it is packed, made if needed."""
    from selfsup.data.store import UNFINISHED

    unfinished = folder / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    return unfinished


@contextmanager
def told(path: Path, what: str) -> Iterator[None]:
    """Tell of a publisher's lists that are not as they should be, in one line."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {what} cannot be read ({error!r}): fetch the files again") from error
