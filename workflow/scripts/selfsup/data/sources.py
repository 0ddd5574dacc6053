"""Where images come from. Each source writes a packed store: a train and a test split, or one split without labels."""

import logging
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from selfsup.data.archives import UNPACK_ERRORS, check_kind_of_archive, is_zip
from selfsup.data.imagenet import is_official, list_official
from selfsup.data.listing import Listing, Tree, check_classes, check_counts, read_tree
from selfsup.data.packing import pack, progress_bar, threads
from selfsup.data.parquet_listing import Columns, list_parquet
from selfsup.data.splits import TESTS, Wanted
from selfsup.data.statistics import of_images
from selfsup.data.store import UNFINISHED, StoreWriter, named
from selfsup.data.tar_listing import first_name, plain_tar, read_tar_tree
from selfsup.data.zip_listing import read_zip_tree
from selfsup.errors import UserError
from selfsup.job.lock import held

logger = logging.getLogger(__name__)

DIGITS_PIXELS = 32  # the 8-pixel originals are enlarged once, so that crops can begin between two of their pixels
DIGITS_TEST_SHARE = 0.2
# Krizhevsky (2009), section 3; Russakovsky et al. (2015), table 2.
KNOWN_COUNTS = {
    "cifar10": {"train": 50_000, "test": 10_000, "classes": 10},
    "imagenet": {"train": 1_281_167, "test": 50_000, "classes": 1_000},
}


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


def prepare(source: str, path: Path | None, folder: Path, packing: Packing = Packing()) -> str:
    """Pack a dataset into `folder` and return its fingerprint. Raises UserError with what to do when it cannot."""
    if source != "digits" and (path is None or not path.exists()):
        found = "not given" if path is None else f"{path}, which does not exist"
        raise UserError(f"source {source}: --path is {found}; wanted the existing folder or archive of its images")
    if path is not None and path.is_file() and source != "parquet":
        check_kind_of_archive(path)
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with held(folder, f"packing {source}"):
        if source == "digits":
            return _prepare_digits(folder)
        if source == "cifar10" and _is_cifar10_python(path):
            return _prepare_cifar10(path, folder, packing)
        return _prepare_files(source, path, folder, packing)


def download_cifar10(folder: Path) -> Path:
    """Download CIFAR-10's archive into `folder`, check it, and return its path; a checked one is kept."""
    archive = folder / CIFAR10.filename
    if not check_integrity(archive, CIFAR10.tgz_md5):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"CIFAR-10 could not be downloaded from {CIFAR10.url} ({error}). Fetch {CIFAR10.filename} on a machine "
                "with a network and set datasets.cifar10.path in config.yaml to it"
            ) from error
    return archive


def _prepare_files(source: str, path: Path, folder: Path, packing: Packing) -> str:
    with threads(packing.cpus) as pool:
        listing = _listed(source, path, folder, packing, pool)
    check_counts(listing.counts(), _expected(source, packing), path)
    check_classes(listing, _expected(source, packing), path)
    return pack(listing, folder, resize=packing.resize, skip_damaged=packing.skip_damaged, cpus=packing.cpus)


def _listed(source: str, path: Path, folder: Path, packing: Packing, pool: Executor) -> Listing:
    """List the pictures of a tree, in a folder, a tar or a zip, of Parquet files or of ImageNet's official archives."""
    with progress_bar(None, "files", "list") as bar:
        if source == "parquet":
            columns = Columns(packing.image_column, packing.label_column)
            return list_parquet(path, Wanted(TESTS, packing.labels, packing.test_share), columns, bar.update)
        if source == "imagenet" and path.is_dir() and is_official(path):
            return list_official(path, pool, bar.update)
        tree = _tree(path, folder, _wanted(source, packing), bar.update)
    _say(tree)
    return tree.listing()


def _say(tree: Tree) -> None:
    """Tell what was chosen of the source's folders, where it is not what their names say."""
    layout = tree.layout
    if layout.test not in (None, tree.wanted.tests[0]):
        logger.info(f"{tree.where}: the test set is {layout.test}/")
    if not layout.labels and layout.train:
        logger.info(f"{tree.where}: has a test set beside {layout.train}/, so that {layout.train}/ alone is packed")


def _wanted(source: str, packing: Packing) -> Wanted:
    if source == "folder":
        return Wanted(TESTS, packing.labels, packing.test_share)
    return Wanted(("val",) if source == "imagenet" else ("test",))


def _tree(path: Path, folder: Path, wanted: Wanted, seen: Callable[[int], None]) -> Tree:
    if path.is_dir():
        return read_tree(path, wanted, seen)
    if is_zip(path):
        return read_zip_tree(path, wanted, seen)
    return read_tar_tree(plain_tar(path, _unfinished(folder)), wanted, seen)


def _unfinished(folder: Path) -> Path:
    unfinished = folder / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    return unfinished


def _expected(source: str, packing: Packing) -> Mapping[str, int]:
    known = KNOWN_COUNTS.get(source, {}) if packing.expect == "known" else packing.expect
    return known or {}


def _prepare_digits(folder: Path) -> str:
    """scikit-learn's 1,797 handwritten digits, grey, 8 x 8, values 0 to 16, made RGB; 80/20 split, fixed by seed."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError(
            "the digits dataset comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    pictures, labels = load_digits(return_X_y=True)
    grey = torch.from_numpy(pictures.reshape(-1, 1, 8, 8) / 16).float()
    large = resize(grey, [DIGITS_PIXELS, DIGITS_PIXELS], interpolation=InterpolationMode.BICUBIC).clamp(0, 1)
    images = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    train, test = train_test_split(np.arange(len(labels)), test_size=DIGITS_TEST_SHARE, stratify=labels, random_state=0)
    writer = StoreWriter(folder, [str(digit) for digit in range(10)])
    for split, chosen in {"train": np.sort(train), "test": np.sort(test)}.items():
        writer.write_raw(split, images[chosen], labels[chosen])
    writer.note(**of_images(images[np.sort(train)]))
    return writer.finish()


def _is_cifar10_python(path: Path) -> bool:
    """Return whether `path` is CIFAR-10 as its authors publish it, in arrays, and no tree of image files."""
    if path.is_file():
        return not is_zip(path) and first_name(path).split("/")[0] == CIFAR10.base_folder
    return not (path / "train").is_dir()


def _prepare_cifar10(path: Path, folder: Path, packing: Packing) -> str:
    """CIFAR-10 from its archive or the folder of `cifar-10-batches-py`; torchvision checks each file's MD5."""
    if packing.resize:
        raise UserError(f"{path}: images of {CIFAR10.filename} are 32 pixels large: remove the dataset's key resize")
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        root = path
        if path.is_file():
            _unpack(path, Path(unpacked))
            root = Path(unpacked)
        elif path.name == CIFAR10.base_folder:
            root = path.parent
        try:
            splits = {"train": CIFAR10(root, train=True), "test": CIFAR10(root, train=False)}
        except RuntimeError as error:
            raise UserError(
                f"{path}: no intact CIFAR-10 here ({error}): wanted {CIFAR10.filename} or its unpacked folder"
            ) from error
    counts = {split: len(dataset) for split, dataset in splits.items()} | {"classes": len(splits["train"].classes)}
    check_counts(counts, _expected("cifar10", packing), path)
    writer = StoreWriter(folder, splits["train"].classes)
    for split, dataset in splits.items():
        writer.write_raw(split, dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))
    writer.note(**of_images(splits["train"].data.transpose(0, 3, 1, 2)))
    return writer.finish()


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # refuses members that would leave the folder
    except (tarfile.TarError, *UNPACK_ERRORS) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}): fetch the archive again") from error
