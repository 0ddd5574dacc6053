"""The packed store: a dataset as a few large files that are safe to memory-map, each in NumPy's .npy format.

A folder with, for each split, `<split>_images.npy`, `<split>_labels.npy` (int64 [N], or [N, classes] where a picture
may be of several), and `store.json`, written last: without it there is no store. Pictures without classes have no
labels, and are all in the split "train". Images of one size are uint8 [N, 3, H, W] ("raw"). Image files ("encoded") are
their own bytes, end to end, uint8 [bytes], with `<split>_spans.npy` (int64 [N, 2]: first byte, and the one after the
last) and `<split>_sizes.npy` (int64 [N, 2]: height, width); of small equal ones the pixels are kept, raw
(selfsup.data.decoded). Of training pictures with classes `train_names.npy` (uint8 [bytes]) has the names in the tree, a
zero behind each; stores of older versions lack it. benchmarks/store_formats.py compares the store with other formats.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from selfsup.atomic_files import rename_over, write_atomically
from selfsup.cards import read_card
from selfsup.data.gif_frames import check_gif
from selfsup.errors import PermanentError, UserError

FORMAT = 2
RAW_READABLE = (1, 2)  # raw splits have not changed since format 1
KNOWN_HEADS = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|RIFF.{4}WEBP", re.DOTALL)
HEAD_BYTES = 12  # of a file, by which it is known for a picture
STATISTICS = ("mean", "std")
TOP1 = "top-1"  # the measure of most data sets
UNFINISHED = "packing"  # folder inside the store's where files lie until all are whole


class Split:
    """One split of a store: images by index, memory-mapped. Pickles as its path: loader workers map it themselves.

    labels: int64 [N], None where the store has no classes; of a multi-label store [N, classes], 1 for a picture of the
    class, 0 for none, -1 for one that counts as neither. sizes: int64 [N, 2], each image's height and width. raw:
    uint8 [N, 3, H, W] where all images are of one size and stored as they are, else None. All arrays are pages of the
    store's files, which the processes of a machine share.
    """

    def __init__(self, folder: Path, name: str, entry: dict, labelled: bool = True):
        self._folder, self._name, self._entry, self._labelled = folder, name, entry, labelled
        self._open()

    def _open(self) -> None:
        def mapped(part: str) -> np.ndarray:  # copy on write: torch warns of tensors that it may not write to
            file = self._folder / f"{self._name}_{part}.npy"
            return np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))  # a memmap takes long to slice

        self.labels = mapped("labels") if self._labelled else None
        self._images = mapped("images")
        self.raw = self._images if self._entry["kind"] == "raw" else None
        if self.raw is not None:
            self.sizes = np.broadcast_to(np.array(self.raw.shape[2:], np.int64), (len(self.raw), 2))
        else:
            self.sizes, self._spans = mapped("sizes"), mapped("spans")
        if self.labels is not None and len(self.labels) != len(self):
            raise UserError(
                f"{self._folder}: {self._name} has {len(self):,} images, but {len(self.labels):,} labels, so "
                f"labels do not belong to their images: delete {self._folder} and prepare the dataset again"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [3, H, W]. Raises PermanentError when it can no longer be decoded."""
        if self.raw is not None:
            return torch.from_numpy(np.array(self.raw[index]))
        try:
            return decode(self.encoded(index))
        except ValueError as error:
            raise PermanentError(
                f"{self._folder}: {self._name} image {index} cannot be decoded ({error}): the "
                "store was damaged after it was packed; delete it and prepare the dataset again"
            ) from error

    def encoded(self, index: int) -> np.ndarray:
        """Return an encoded image's own bytes, uint8 [bytes], a copy; only of splits that are not raw."""
        begin, end = self._spans[index]
        return np.array(self._images[begin:end])

    def names(self) -> list[str]:
        """Return the images' names in the tree that they were packed from, "train/n01440764/n01440764_10026.JPEG".

        Raises PermanentError where the store does not know them.
        """
        path = self._folder / f"{self._name}_names.npy"
        if not path.exists():
            raise PermanentError(
                f"{self._folder}: does not know its images' file names (an older version packed it, or the images were "
                "not files): pack it again (delete the folder; the images, and so all results, stay the same)"
            )
        names = np.load(path, allow_pickle=False).tobytes().decode("utf-8", "surrogateescape")
        return names.split("\0")[:-1]

    def __getstate__(self) -> tuple:
        return self._folder, self._name, self._entry, self._labelled

    def __setstate__(self, state: tuple) -> None:
        self._folder, self._name, self._entry, self._labelled = state
        self._open()


def decode(encoded: np.ndarray, mode: ImageReadMode = ImageReadMode.RGB) -> torch.Tensor:
    """Decode a JPEG, PNG, WebP or GIF by its content, whatever its name, to uint8 [3, H, W].

    Grey, palette, 16-bit and CMYK pictures become RGB, and transparency is dropped. encoded: uint8 [bytes].
    Raises ValueError saying what is wrong. A JPEG that lost its middle but has its end is decoded, as by PIL.
    """
    check_kind(bytes(encoded[:HEAD_BYTES]))
    if encoded[:3].tobytes() == b"GIF":
        check_gif(encoded.tobytes())
    try:
        image = decode_image(torch.from_numpy(encoded), mode)
    except (RuntimeError, ValueError) as error:
        raise ValueError(str(error).split(". ")[0]) from error
    if image.ndim != 3:
        raise ValueError(f"an animation of {len(image)} pictures")
    return _of_8_bits(image)


def check_kind(head: bytes) -> None:
    """Raise ValueError unless the first HEAD_BYTES of a file are those of a picture that `decode` may know."""
    if not head:
        raise ValueError("an empty file")
    if not KNOWN_HEADS.match(head):
        raise ValueError("no JPEG, PNG, WebP or GIF")


def _of_8_bits(image: torch.Tensor) -> torch.Tensor:
    """Return a picture of 16-bit samples, which torchvision leaves as they are, by their upper eight bits.

    As torchvision's to_dtype and Pillow's RGB do; a picture widened from 8 bits, by 256 or by 257, comes back exact.
    """
    if image.dtype == torch.uint8:
        return image
    return torch.from_numpy((image.numpy() >> 8).astype(np.uint8))  # NumPy: torch cannot shift a uint16


def decoded_size(encoded: np.ndarray) -> tuple[int, int]:
    """Return height and width of what `decode` would give, having decoded all of it. Raises ValueError as it does.

    Of a JPEG all bytes are read, but of the colours none is computed: a fifth less work (benchmarks/packing.py).
    """
    jpeg = encoded[:2].tobytes() == b"\xff\xd8"
    return tuple(decode(encoded, ImageReadMode.GRAY if jpeg else ImageReadMode.RGB).shape[1:])


class PackedStore:
    """A prepared dataset: its `classes` (names, in label order), content `fingerprint`, `train` and `test` splits.

    Of pictures without labels there are no classes, and `test` is None. statistics: "mean" and "std" of the training
    pictures' channels, 0 to 1, as `selfsup.data.statistics` has them; empty where an older version packed. resize: the
    shorter side, in pixels, to which larger pictures were resized when they were packed, or None. skipped: by split,
    how many damaged images were left out. validation: how many of the last training images their publisher
    has meant for validation, 0 for none. multi_label: whether an image may be of several classes. measure: by which
    papers compare. Raises UserError when the folder holds no complete store, or one of another format, or a file of the
    wrong length.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        description = self._read_description()
        try:
            self._open(description)
        except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
            what = f"{type(error).__name__} {error}".splitlines()[0]
            raise UserError(
                f"{self.folder / 'store.json'}: damaged ({what}): delete {self.folder} and prepare the dataset again"
            ) from error

    def _open(self, description: dict) -> None:
        self.classes: list[str] = description["classes"]
        self.fingerprint: str = description["fingerprint"]
        self.resize: int | None = description.get("resize")
        self.statistics: dict[str, list[float]] = {key: description[key] for key in STATISTICS if key in description}
        self.skipped: dict[str, int] = {"train": 0, "test": 0} | description.get("skipped", {})
        self.validation: int = description.get("validation", 0)
        self.multi_label: bool = description.get("multi_label", False)
        self.measure: str = description.get("measure", TOP1)
        self.files: dict[str, int] = description["files"]  # name: bytes
        for name, size in self.files.items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else "nothing"
            if found != size:
                raise UserError(
                    f"{path}: found {found}, wanted {size} bytes: delete {self.folder} and prepare the dataset again"
                )
        splits = {name: Split(self.folder, name, entry, self.labelled) for name, entry in description["splits"].items()}
        self.train, self.test = splits["train"], splits.get("test")

    @property
    def labelled(self) -> bool:
        """Whether the pictures have classes."""
        return bool(self.classes)

    def remarks(self) -> list[str]:
        """Return what a table must say of the images: resized, some left out, all of one class."""
        several = ["a classifier of each class against the rest"] if self.multi_label else []
        resized = [f"images packed with shorter side {self.resize}"] if self.resize else []
        single = ["one class: every top-1 is 100 %"] if len(self.classes) == 1 else []
        counts = [f"{count:,} of {split}" for split, count in self.skipped.items() if count]
        return several + resized + single + ([f"damaged images skipped: {' and '.join(counts)}"] if counts else [])

    def _read_description(self) -> dict:
        path = self.folder / "store.json"
        try:
            description = read_card(path)
        except FileNotFoundError:
            raise UserError(
                f"{self.folder}: no prepared dataset here (no store.json): run prepare_dataset.py first"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}): delete {self.folder} and prepare the dataset again") from error
        found, splits = description.get("format"), description.get("splits", {})
        splits = splits.values() if isinstance(splits, dict) else [splits]
        raw = all(isinstance(split, dict) and split.get("kind") == "raw" for split in splits)
        if found != FORMAT and not (raw and found in RAW_READABLE):
            raise UserError(
                f"{path}: format {found}, wanted {FORMAT}: delete {self.folder} and prepare the dataset again"
            )
        return description


class StoreWriter:
    """Writes a store. Its files lie in `<folder>/packing` until all are whole; then they are moved to their places,
    and `store.json` appears last and at once: a half store never looks whole, and a store in use is not written over.
    """

    def __init__(self, folder: Path, classes: list[str]):
        self._folder, self._classes = Path(folder), classes
        self._splits: dict[str, dict] = {}
        self._files: list[str] = []
        self._lies_as: dict[str, str] = {}  # in `unfinished`, what has another name there
        self._notes: dict = {}
        self._hash = hashlib.sha256("\n".join(classes).encode())
        self.unfinished = self._folder / UNFINISHED
        self.unfinished.mkdir(parents=True, exist_ok=True)

    def write_raw(self, split: str, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Write images of one size: uint8 [N, 3, H, W], labels int64 [N], or None where there are no classes."""
        self._save(split, "images", np.ascontiguousarray(images, np.uint8))
        self._finish_split(split, "raw", len(images), labels)

    def add_encoded(
        self,
        split: str,
        spans: np.ndarray,
        sizes: np.ndarray,
        labels: np.ndarray | None,
        digests: np.ndarray,
        names: list[str] | None = None,
    ) -> None:
        """Add image files whose bytes are in `<unfinished>/<split>_images.npy` already.

        spans, sizes: int64 [N, 2]; labels: int64 [N] or [N, classes], or None where there are no classes; digests:
        uint8 [N, 32], the SHA-256 of each image's bytes, which the fingerprint is made of: it does not depend on the
        order in which they came to lie in the file. names: of the files, of which it does not depend.
        """
        self._files.append(f"{split}_images.npy")
        self._update_hash(split, "digests", digests)
        self._save(split, "spans", np.asarray(spans, np.int64), hashed=False)
        self._save(split, "sizes", np.asarray(sizes, np.int64))
        if names is not None:
            text = "".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape")
            self._save(split, "names", np.frombuffer(text, np.uint8), hashed=False)
        self._finish_split(split, "encoded", len(sizes), labels)

    def keep_pixels(self, split: str, file: str) -> None:
        """Let the store hold a split's pixels in place of the image files that were added.

        file: in `unfinished`, a .npy, uint8 [N, 3, H, W], in the files' order. The fingerprint stays that of the files.
        Raises ValueError where there are more or fewer pixels than image files.
        """
        found = np.load(self.unfinished / file, mmap_mode="r", allow_pickle=False).shape[0]
        if found != (wanted := self._splits[split]["images"]):
            raise ValueError(f"{file}: found the pixels of {found:,} images, wanted those of {wanted:,}")
        self._splits[split]["kind"] = "raw"
        self._files = [name for name in self._files if name not in (f"{split}_spans.npy", f"{split}_sizes.npy")]
        self._lies_as[f"{split}_images.npy"] = file

    def note(self, **notes) -> None:
        """Add what store.json shall say beside: resize, skipped, mean and std, and PackedStore's others."""
        self._notes.update(notes)

    def finish(self) -> str:
        """Complete the store and return the content's fingerprint, a SHA-256 over classes, images and labels."""
        description = {
            "format": FORMAT,
            "classes": self._classes,
            "fingerprint": self._hash.hexdigest(),
            "splits": self._splits,
            "files": {name: self._unfinished(name).stat().st_size for name in self._files},
            **self._notes,
        }
        (self._folder / "store.json").unlink(missing_ok=True)
        for name in self._files:
            rename_over(self._unfinished(name), self._folder / name)
        with named(self._folder / "store.json"):
            write_atomically(self._folder / "store.json", json.dumps(description, indent=1) + "\n")
        shutil.rmtree(self.unfinished, ignore_errors=True)
        return description["fingerprint"]

    def _unfinished(self, name: str) -> Path:
        return self.unfinished / self._lies_as.get(name, name)

    def _finish_split(self, split: str, kind: str, images: int, labels: np.ndarray | None) -> None:
        if labels is not None:
            self._save(split, "labels", np.asarray(labels, np.int64))
        self._splits[split] = {"kind": kind, "images": images}

    def _save(self, split: str, part: str, array: np.ndarray, hashed: bool = True) -> None:
        name = f"{split}_{part}.npy"
        with named(self.unfinished / name), open(self.unfinished / name, "wb") as file:
            np.save(file, array, allow_pickle=False)
            to_disk(file)
        self._files.append(name)
        if hashed:
            self._update_hash(split, part, array)

    def _update_hash(self, split: str, part: str, array: np.ndarray) -> None:
        self._hash.update(f"{split} {part} {array.dtype} {array.shape}".encode())
        self._hash.update(np.ascontiguousarray(array).data)


def write_bytes_header(file: BinaryIO, length: int) -> int:
    """Write the .npy header of uint8 [length] at the start of `file` and return where the data begins.

    The header's own length does not depend on `length`: NumPy leaves space for a first axis that grows.
    """
    file.seek(0)
    header: Mapping = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def to_disk(file: BinaryIO) -> None:
    """Return when all that was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file that could not be written: neither a short write nor NumPy's error does. Raises UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}): free space or mend permissions, start again") from error
