"""Where images come from. Each source writes a packed store with a train and a test split."""

import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from selfsup.data.store import StoreWriter
from selfsup.errors import UserError

DIGITS_PIXELS = 32  # the 8-pixel originals are enlarged once, so that crops can begin between two of their pixels
DIGITS_TEST_SHARE = 0.2
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


def prepare(source: str, path: Path | None, folder: Path) -> str:
    """Pack a dataset into `folder` and return its fingerprint. Raises UserError with what to do when it cannot."""
    if source == "digits":
        return _prepare_digits(folder)
    if path is None or not path.exists():
        found = "not given" if path is None else f"{path}, which does not exist"
        raise UserError(f"source {source}: --path is {found}; wanted the existing folder or archive of its images")
    if source == "cifar10" and not (path / "train").is_dir():
        return _prepare_cifar10(path, folder)
    return _prepare_class_folders(path, folder, test="val" if source == "imagenet" else "test")


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
    return writer.finish()


def _prepare_cifar10(path: Path, folder: Path) -> str:
    """CIFAR-10 from its archive or the folder of `cifar-10-batches-py`; torchvision checks each file's MD5."""
    folder.mkdir(parents=True, exist_ok=True)
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
    writer = StoreWriter(folder, splits["train"].classes)
    for split, dataset in splits.items():
        writer.write_raw(split, dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))
    return writer.finish()


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # refuses members that would leave the folder
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}): fetch the archive again") from error


def _prepare_class_folders(path: Path, folder: Path, *, test: str) -> str:
    """A tree train/<class>/<image>, <test>/<class>/<image>; classes are train's folder names in sorted order."""
    for split in ("train", test):
        if not (path / split).is_dir():
            raise UserError(f"{path}: has no folder {split}/, wanted train/<class>/*.jpg and {test}/<class>/*.jpg")
    classes = sorted(entry.name for entry in (path / "train").iterdir() if entry.is_dir())
    writer = StoreWriter(folder, classes)
    for split, source in {"train": path / "train", "test": path / test}.items():
        files, labels = _class_files(source, classes)
        writer.write_encoded(split, files, np.array(labels))
    return writer.finish()


def _class_files(source: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    unknown = sorted(entry.name for entry in source.iterdir() if entry.is_dir() and entry.name not in classes)
    if unknown:
        raise UserError(f"{source}: {', '.join(unknown)}: no such class in train/; wanted the same classes in both")
    pairs = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((source / name).glob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not pairs:
        raise UserError(
            f"{source}: no images with the endings {', '.join(sorted(IMAGE_SUFFIXES))} in its class folders"
        )
    files, labels = zip(*pairs, strict=True)
    return list(files), list(labels)
