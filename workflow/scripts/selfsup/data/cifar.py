"""CIFAR-10 and CIFAR-100 as their authors publish them, in arrays. torchvision checks each file's MD5."""

import tarfile
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from selfsup.data.archives import UNPACK_ERRORS, is_zip
from selfsup.data.listing import check_counts
from selfsup.data.trees import TreeSource
from selfsup.errors import UserError


class CIFARSource(TreeSource):
    """From the archive, its unpacked folder, or a tree of image files. dataset: torchvision's name of its reader."""

    dataset: ClassVar[str]
    downloads = True
    packed_bytes = 3 * 32**2

    def pack(self, folder: Path) -> str:
        return self._pack_arrays(folder) if self._is_python() else super().pack(folder)

    @classmethod
    def reader(cls):
        """Return torchvision's reader."""
        import torchvision.datasets

        return getattr(torchvision.datasets, cls.dataset)

    @classmethod
    def urls(cls):
        yield cls.reader().url, cls.reader().tgz_md5

    def _is_python(self) -> bool:
        """Return whether the path is CIFAR as its authors publish it, in arrays, and no tree of image files."""
        from selfsup.data.tar_listing import first_name

        path = self.path
        if path.is_file():
            return not is_zip(path) and first_name(path).split("/")[0] == self.reader().base_folder
        return not (path / "train").is_dir()

    def _pack_arrays(self, folder: Path) -> str:
        from selfsup.data.statistics import of_images
        from selfsup.data.store import StoreWriter

        splits = self._read(folder)
        train = splits["train"]
        counts = {split: len(dataset) for split, dataset in splits.items()} | {"classes": len(train.classes)}
        counts["validation"] = 0
        check_counts(counts, self.expected(), self.path)
        writer = StoreWriter(folder, train.classes)
        for split, dataset in splits.items():
            writer.write_raw(split, dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets))
        writer.note(**of_images(train.data.transpose(0, 3, 1, 2)))
        return writer.finish()

    def _read(self, folder: Path) -> dict:
        reader, path = self.reader(), self.path
        if self.packing.resize:
            raise UserError(f"{path}: images of {reader.filename} are 32 pixels large: remove the dataset's key resize")
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            root = path
            if path.is_file():
                _unpack(path, Path(unpacked))
                root = Path(unpacked)
            elif path.name == reader.base_folder:
                root = path.parent
            elif (path / reader.filename).is_file() and not (path / reader.base_folder).is_dir():
                _unpack(path / reader.filename, Path(unpacked))
                root = Path(unpacked)
            try:
                return {"train": reader(root, train=True), "test": reader(root, train=False)}
            except RuntimeError as error:
                name = self.dataset.replace("CIFAR", "CIFAR-")
                raise UserError(
                    f"{path}: no intact {name} here ({error}): wanted {reader.filename} or its unpacked folder"
                ) from error


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # refuses members that would leave the folder
    except (tarfile.TarError, *UNPACK_ERRORS) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error}): fetch the archive again") from error
