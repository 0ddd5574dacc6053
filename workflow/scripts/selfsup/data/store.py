"""The packed store: a dataset as a few large files that are safe to memory-map.

A folder with, for each split, either `<split>_images.npy` (uint8 [N, 3, H, W], all of one size) or
`<split>_images.bin` (the image files' own bytes, end to end) with `<split>_offsets.npy` and `<split>_sizes.npy`;
`<split>_labels.npy`; and `store.json`, written last: without it there is no store.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from selfsup.errors import PermanentError, UserError

FORMAT = 1
PROGRESS_IMAGES = 10_000  # a line of progress after so many


class Split:
    """One split of a store: images by index, memory-mapped. Pickles as its path: loader workers map it themselves."""

    def __init__(self, folder: Path, name: str, entry: dict):
        self._folder, self._name, self._entry = folder, name, entry
        self._open()

    def _open(self) -> None:
        def mapped(part: str) -> np.ndarray:  # copy on write: torch warns of tensors that it may not write to
            return np.load(self._folder / f"{self._name}_{part}.npy", mmap_mode="c", allow_pickle=False)

        self.labels = np.asarray(mapped("labels"))
        self.raw = mapped("images") if self._entry["kind"] == "raw" else None  # uint8 [N, 3, H, W], if of one size
        if self.raw is not None:
            self.sizes = np.tile(np.array(self.raw.shape[2:], np.int64), (len(self.labels), 1))
        else:
            self.sizes, self._offsets = np.asarray(mapped("sizes")), mapped("offsets")
            self._bytes = np.memmap(self._folder / f"{self._name}_images.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [3, H, W]."""
        if self.raw is not None:
            return torch.from_numpy(np.array(self.raw[index]))
        encoded = np.array(self._bytes[self._offsets[index] : self._offsets[index + 1]])
        try:
            return decode_image(torch.from_numpy(encoded), ImageReadMode.RGB)
        except (RuntimeError, ValueError) as error:
            raise PermanentError(
                f"{self._folder}: {self._name} image {index} cannot be decoded ({str(error).split('. ')[0]}): the "
                "store was damaged after it was packed; delete it and prepare the dataset again"
            ) from error

    def __getstate__(self) -> tuple:
        return self._folder, self._name, self._entry

    def __setstate__(self, state: tuple) -> None:
        self._folder, self._name, self._entry = state
        self._open()


class PackedStore:
    """A prepared dataset: its `classes` (names, in label order), content `fingerprint`, `train` and `test` splits.

    Raises UserError when the folder holds no complete store, or one of another format, or a file of the wrong length.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        description = self._read_description()
        self.classes: list[str] = description["classes"]
        self.fingerprint: str = description["fingerprint"]
        for name, size in description["files"].items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else "nothing"
            if found != size:
                raise UserError(
                    f"{path}: found {found}, wanted {size} bytes: delete {self.folder} and prepare the dataset again"
                )
        self.train = Split(self.folder, "train", description["splits"]["train"])
        self.test = Split(self.folder, "test", description["splits"]["test"])

    def _read_description(self) -> dict:
        path = self.folder / "store.json"
        try:
            description = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(
                f"{self.folder}: no prepared dataset here (no store.json): run prepare_dataset.py first"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}): delete {self.folder} and prepare the dataset again") from error
        if description.get("format") != FORMAT:
            raise UserError(
                f"{path}: format {description.get('format')}, wanted {FORMAT}: delete {self.folder} and prepare "
                "the dataset again"
            )
        return description


class StoreWriter:
    """Writes a store. `store.json` appears last and at once, so that a half store never looks whole."""

    def __init__(self, folder: Path, classes: list[str]):
        self._folder, self._classes = Path(folder), classes
        self._splits: dict[str, dict] = {}
        self._files: list[str] = []
        self._hash = hashlib.sha256("\n".join(classes).encode())
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "store.json").unlink(missing_ok=True)

    def write_raw(self, split: str, images: np.ndarray, labels: np.ndarray) -> None:
        """Write images of one size: uint8 [N, 3, H, W], labels int64 [N]."""
        self._save(split, "images", np.ascontiguousarray(images, np.uint8))
        self._finish_split(split, "raw", labels)

    def write_encoded(self, split: str, files: list[Path], labels: np.ndarray) -> None:
        """Write image files of any size, their bytes unchanged. Raises UserError naming a file that is no image."""
        name, offsets, sizes = f"{split}_images.bin", [0], []
        with _named(self._folder / name), open(self._folder / name, "wb") as out:
            for number, file in enumerate(files, 1):
                content, size = _read_image(file)
                out.write(content)
                self._hash.update(content)
                offsets.append(offsets[-1] + len(content))
                sizes.append(size)
                if number % PROGRESS_IMAGES == 0 or number == len(files):
                    print(f"packed {number:,} of {len(files):,} {split} images", flush=True)
        self._files.append(name)
        self._save(split, "offsets", np.array(offsets, np.int64))
        self._save(split, "sizes", np.array(sizes, np.int64))
        self._finish_split(split, "encoded", labels)

    def finish(self) -> str:
        """Write store.json and return the content's fingerprint, a SHA-256 over classes, images and labels."""
        description = {
            "format": FORMAT,
            "classes": self._classes,
            "fingerprint": self._hash.hexdigest(),
            "splits": self._splits,
            "files": {name: (self._folder / name).stat().st_size for name in self._files},
        }
        temporary = self._folder / "store.json.tmp"
        temporary.write_text(json.dumps(description, indent=1) + "\n")
        os.replace(temporary, self._folder / "store.json")
        return description["fingerprint"]

    def _finish_split(self, split: str, kind: str, labels: np.ndarray) -> None:
        self._save(split, "labels", np.asarray(labels, np.int64))
        self._splits[split] = {"kind": kind, "images": len(labels)}

    def _save(self, split: str, part: str, array: np.ndarray) -> None:
        name = f"{split}_{part}.npy"
        with _named(self._folder / name):
            np.save(self._folder / name, array, allow_pickle=False)
        self._files.append(name)
        self._hash.update(f"{split} {part} {array.dtype} {array.shape}".encode())
        self._hash.update(array.data)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file that could not be written: neither a short write nor NumPy's error does."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}): free space or mend permissions, start again") from error


def _read_image(file: Path) -> tuple[bytes, tuple[int, int]]:
    """Return a file's bytes and its height and width, decoded once to know that it can be."""
    try:
        content = file.read_bytes()
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read as an image ({str(error).split('. ')[0]}): mend or remove it"
        ) from error
    return content, (image.shape[1], image.shape[2])
