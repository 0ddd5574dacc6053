"""Packing image files into a store: every one is decoded to know that it can be, on all cores, and nothing is lost.

Threads read and decode (both run without Python's lock); this one appends the bytes in the order of the list. A journal
says which images are safely in the file, so a packing that was killed goes on where it was, and one that has found
damaged files reads those alone again once they are mended.
"""

import hashlib
import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
from torchvision.io import encode_jpeg, encode_png
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as resize_image
from tqdm import tqdm

from selfsup.atomic_files import write_atomically
from selfsup.data.decoded import size_of_all, write_pixels
from selfsup.data.listing import SHOWN, Listing, Member, Picture
from selfsup.data.parquet_listing import RowGroups
from selfsup.data.statistics import Sums, mean_and_std, sums_of
from selfsup.data.store import (
    HEAD_BYTES,
    TOP1,
    StoreWriter,
    check_kind,
    decode,
    decoded_size,
    named,
    write_bytes_header,
)
from selfsup.data.zip_listing import read_zipped
from selfsup.errors import UserError

logger = logging.getLogger(__name__)

CHUNK = 16  # pictures handed to a thread at once: some MB, and far fewer hand-overs than pictures
CHUNKS_AHEAD = 3  # of each thread: a thread with large pictures does not hold up the others
COMMIT_S = 2.0  # between two journal entries: what a kill can cost
BAR_S = 1.0  # between two states of the progress bar, which also stand in the log
BAR_COLUMNS = 100
DAMAGED = "damaged.txt"  # in the store's folder: the pictures that could not be packed, and why
JPEG_QUALITY = 95  # of resized pictures; ffcv's ImageNet stores use 90
JPEG_LONGEST = 65_500  # pixels of a side that libjpeg writes


class Packed(NamedTuple):
    """An image in the store.

    stamp: size and time of change of the file that it was read from. sums: over its pixels, as a text; "" where they
    are not wanted, of test pictures.
    """

    stamp: tuple[int, int]
    begin: int
    end: int
    height: int
    width: int
    digest: str
    sums: str


class Checked(NamedTuple):
    """A picture that can be decoded: the bytes to pack, uint8, and what is known of them."""

    content: np.ndarray
    stamp: tuple[int, int]
    size: tuple[int, int]
    digest: str
    sums: str


def pack(
    listing: Listing,
    folder: Path,
    *,
    resize: int | None = None,
    skip_damaged: bool = False,
    cpus: int = 1,
    measure: str = TOP1,
) -> str:
    """Pack the listed pictures into a store in `folder` and return its fingerprint.

    resize: make the shorter side of larger pictures this many pixels (bicubic with antialiasing, JPEG of quality 95, or
    PNG where one side is too long for a JPEG); None keeps every byte. measure: see PackedStore. Raises UserError
    naming the pictures that cannot be decoded, all at once, unless `skip_damaged` says to go without them. Of equal
    small pictures the store holds the pixels: see `selfsup.data.decoded`.
    """
    writer = StoreWriter(folder, listing.classes)
    total = sum(map(len, listing.splits.values()))
    done: dict[str, dict[str, Packed]] = {}
    damaged: dict[str, list[tuple[Picture, str]]] = {}
    with threads(cpus) as pool, Reader() as reader, progress_bar(total, "images", "pack") as bar:
        for split, pictures in listing.splits.items():
            check = partial(_check, reader, resize, split == "train")
            with ImagesFile(writer.unfinished, split, resize) as file:
                damaged[split] = _pack_split(pictures, file, pool, check, CHUNKS_AHEAD * cpus, bar)
                done[split] = file.done
                file.complete()
    _report(folder, damaged, total, skip_damaged)
    kept = {split: _kept(pictures, done[split]) for split, pictures in listing.splits.items()}
    packed = {split: [done[split][picture.member.name] for picture in pictures] for split, pictures in kept.items()}
    for split, pictures in listing.splits.items():
        _add(writer, listing.classes, split, pictures, kept[split], packed[split])
    _keep_small_pixels(writer, packed, cpus)
    writer.note(**mean_and_std(Sums.read(one.sums, one.height * one.width) for one in done["train"].values()))
    writer.note(resize=resize, skipped={split: len(lost) for split, lost in damaged.items()})
    writer.note(**_notes(listing, done["train"], measure))
    return writer.finish()


def progress_bar(total: int | None, unit: str, what: str) -> tqdm:
    """Return a progress bar with the time left; plain text, for output that goes through a pipe into a log."""
    return tqdm(
        file=sys.stdout,
        total=total,
        unit=f" {unit}",
        desc=what,
        mininterval=BAR_S,
        ncols=BAR_COLUMNS,
        ascii=True,
        smoothing=0.1,
    )


class ImagesFile:
    """The bytes of a split's images while they are packed, with a journal of those that are safely on the disk.

    `done`: the packed images by name. Continues what an earlier process has left, if it was to be resized alike.
    """

    def __init__(self, folder: Path, split: str, resize: int | None):
        self._path, self._journal_path = folder / f"{split}_images.npy", folder / journal_name(split)
        with named(self._path):
            self._file = open(self._path, "r+b" if self._path.exists() else "w+b")  # noqa: SIM115
            self._data = write_bytes_header(self._file, 0)
            size = os.fstat(self._file.fileno()).st_size - self._data
            self.done = _read_journal(self._journal_path, resize, size)
            self._end = max((packed.end for packed in self.done.values()), default=0)
            self._file.truncate(self._data + self._end)
            self._file.seek(0, os.SEEK_END)
            self._uncommitted: dict[str, Packed] = {}
            self._journal = self._begin_journal(resize)
        self._last_commit = monotonic()
        # The disk is waited for beside the packing, which would stand still otherwise: 2 s of work are 400 MB.
        self._committer, self._committing = ThreadPoolExecutor(1), None

    def _begin_journal(self, resize: int | None):
        """Write the journal anew: a line that a kill has cut would make the next one unreadable."""
        lines = [json.dumps({"resize": resize}), *map(_line, self.done, self.done.values())]
        write_atomically(self._journal_path, "\n".join(lines) + "\n")
        return open(self._journal_path, "a")

    def append(self, name: str, checked: Checked) -> None:
        """Add an image; it is in `done` at once, and safe from a kill within COMMIT_S."""
        with named(self._path):
            self._file.write(checked.content)
        begin, self._end = self._end, self._end + len(checked.content)
        packed = Packed(checked.stamp, begin, self._end, *checked.size, checked.digest, checked.sums)
        self.done[name] = self._uncommitted[name] = packed
        if monotonic() - self._last_commit > COMMIT_S and (self._committing is None or self._committing.done()):
            self._begin_commit()

    def commit(self) -> None:
        """Return when the journal speaks of all images, after their bytes are on the disk."""
        self._begin_commit()
        with named(self._path):
            self._committing.result()

    def complete(self) -> None:
        """Make the file a whole .npy."""
        with named(self._path):
            self._file.flush()
            write_bytes_header(self._file, self._end)
            self._file.flush()
        self.commit()

    def _begin_commit(self) -> None:
        with named(self._path):
            if self._committing is not None:
                self._committing.result()
            self._file.flush()
        batch, self._uncommitted = self._uncommitted, {}
        self._committing = self._committer.submit(self._write_journal, batch)
        self._last_commit = monotonic()

    def _write_journal(self, batch: Mapping[str, Packed]) -> None:
        os.fsync(self._file.fileno())
        self._journal.writelines(_line(name, packed) + "\n" for name, packed in batch.items())
        self._journal.flush()

    def __enter__(self) -> "ImagesFile":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with suppress(UserError, OSError):  # of a full disk; the error on the way here is the one to tell
            self.commit()
        self._committer.shutdown()
        for file in (self._file, self._journal):
            with suppress(OSError):
                file.close()


def journal_name(split: str) -> str:
    """Return the name of a split's journal."""
    return f"{split}_journal.jsonl"


class Reader:
    """Reads members' bytes, from several threads; an archive is opened once."""

    def __enter__(self) -> "Reader":
        self._archives: dict[str, int] = {}
        self._opening = threading.Lock()
        self._groups = RowGroups()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for archive in self._archives.values():
            os.close(archive)

    def read(self, member: Member) -> tuple[np.ndarray, tuple[int, int]]:
        """Return a member's bytes, uint8, and the stamp of the file that they are from.

        Raises OSError, and ValueError for what is no picture by its first bytes: no more of it is read.
        """
        if member.length < 0:
            with open(member.file, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                return _read(file.fileno(), status.st_size, 0), _stamp(status)
        with self._opening:
            if member.file not in self._archives:
                self._archives[member.file] = os.open(member.file, os.O_RDONLY)
        archive = self._archives[member.file]
        stamp = _stamp(os.fstat(archive))
        if member.row:
            return self._groups.read(member, check_kind, HEAD_BYTES), stamp
        if member.zipped:
            return read_zipped(archive, member, check_kind, HEAD_BYTES), stamp
        return _read(archive, member.length, member.offset), stamp


def _read(file: int, length: int, offset: int) -> np.ndarray:
    """Read up to `length` bytes into memory that the decoder may use as it is. Raises OSError and ValueError."""
    check_kind(os.pread(file, min(length, HEAD_BYTES), offset))
    content, done = np.empty(length, np.uint8), 0
    while done < length and (count := os.preadv(file, [content.data[done:]], offset + done)):
        done += count
    return content[:done]


def _pack_split(
    pictures: list[Picture], file: ImagesFile, pool: Executor, check: Callable, ahead: int, bar: tqdm
) -> list[tuple[Picture, str]]:
    """Append the pictures that are not in the file yet; return the damaged ones with reasons."""
    _forget_changed(pictures, file, pool)
    todo = [picture for picture in pictures if picture.member.problem or picture.member.name not in file.done]
    bar.update(len(pictures) - len(todo))
    damaged = []
    for chunk, results in _in_order(pool, check, todo, ahead):
        for picture, result in zip(chunk, results, strict=True):
            if isinstance(result, Checked):
                file.append(picture.member.name, result)
            else:
                damaged.append((picture, result))
        bar.update(len(chunk))
    return damaged


def _forget_changed(pictures: list[Picture], file: ImagesFile, pool: Executor) -> None:
    """Keep of what an earlier process has packed only what is still listed and whose file has not changed since."""
    if not file.done:
        return
    listed = {picture.member.name: picture.member.file for picture in pictures if not picture.member.problem}
    origins = set(listed.values())
    stamps = dict(zip(origins, pool.map(_stamp_now, origins), strict=True))
    file.done = {
        name: packed for name, packed in file.done.items() if name in listed and stamps[listed[name]] == packed.stamp
    }


def _in_order(
    pool: Executor, check: Callable, pictures: list[Picture], ahead: int
) -> Iterator[tuple[list[Picture], list]]:
    """Yield chunks of pictures with the results of `check`, in order, while the pool works on later ones."""
    waiting: deque = deque()
    for start in range(0, len(pictures), CHUNK):
        chunk = pictures[start : start + CHUNK]
        waiting.append((chunk, pool.submit(lambda chunk: [check(picture) for picture in chunk], chunk)))
        if len(waiting) > ahead:
            chunk, future = waiting.popleft()
            yield chunk, future.result()
    for chunk, future in waiting:
        yield chunk, future.result()


def _check(reader: Reader, resize: int | None, summed: bool, picture: Picture) -> Checked | str:
    """Read and decode a picture; return what to pack, or why it cannot be packed. summed: its pixels are summed."""
    if picture.member.problem:
        return picture.member.problem
    try:
        content, stamp = reader.read(picture.member)
        image = decode(content) if summed else None
        size = decoded_size(content) if image is None else tuple(image.shape[1:])
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:
        return f"cannot be read as an image ({error})"
    if resize and min(size) > resize:
        try:
            content, size = _resized(content, resize)
            image = decode(content) if summed else None
        except (RuntimeError, MemoryError) as error:
            return f"cannot be resized ({str(error).splitlines()[0]})"
    sums = "" if image is None else sums_of(image).text()
    return Checked(content, stamp, size, hashlib.sha256(content).hexdigest(), sums)


def _resized(content: np.ndarray, shorter: int) -> tuple[np.ndarray, tuple[int, int]]:
    image = resize_image(decode(content), [shorter], interpolation=InterpolationMode.BICUBIC, antialias=True)
    fits = max(image.shape) <= JPEG_LONGEST
    encoded = encode_jpeg(image, quality=JPEG_QUALITY) if fits else encode_png(image.contiguous())
    return encoded.numpy(), tuple(image.shape[1:])


def _report(folder: Path, damaged: Mapping[str, list[tuple[Picture, str]]], total: int, skip: bool) -> None:
    """List the damaged pictures in a file, and raise UserError with the first of them unless they are to be skipped."""
    path = folder / DAMAGED
    lines = [f"{picture}: {reason}" for lost in damaged.values() for picture, reason in lost]
    if not lines:
        path.unlink(missing_ok=True)
        return
    write_atomically(path, "\n".join(lines) + "\n")
    if skip:
        logger.info(f"{len(lines):,} of {total:,} images are damaged and left out: {path}")
        return
    head = lines[0] if len(lines) == 1 else "\n  ".join([f"the first {min(SHOWN, len(lines))}:", *lines[:SHOWN]])
    raise UserError(
        f"{len(lines):,} of {total:,} images cannot be packed, all listed in {path}. Mend or remove them, or set the "
        f"dataset's key skip_damaged: true to go without them; the others are not read again. {head}"
    )


def _kept(pictures: list[Picture], done: Mapping[str, Packed]) -> list[Picture]:
    """Return the pictures that the store holds. Of a name that stands twice the first is packed, and the second not."""
    return [picture for picture in pictures if not picture.member.problem and picture.member.name in done]


def _add(
    writer: StoreWriter,
    classes: list[str],
    split: str,
    pictures: list[Picture],
    kept: list[Picture],
    packed: list[Packed],
) -> None:
    """Hand a split's images over to the writer, in the order of the list. packed: of each of `kept`."""
    if pictures and not kept:
        raise UserError(f"{split}: all images are damaged: mend them; {DAMAGED} has the reason of each")
    single = {picture.label for picture in pictures if isinstance(picture.label, int)}
    for label in sorted(single - {picture.label for picture in kept}):
        raise UserError(
            f"{split}: of class {classes[label]} all images are damaged: mend them, or remove the class's folder"
        )
    writer.add_encoded(
        split,
        spans=np.array([(one.begin, one.end) for one in packed], np.int64),
        sizes=np.array([(one.height, one.width) for one in packed], np.int64),
        labels=np.array([picture.label for picture in kept], np.int64) if classes else None,
        digests=np.array([np.frombuffer(bytes.fromhex(one.digest), np.uint8) for one in packed]),
        names=[picture.member.name for picture in kept] if classes and split == "train" else None,
    )


def _keep_small_pixels(writer: StoreWriter, packed: Mapping[str, list[Packed]], cpus: int) -> None:
    """Decode all splits where their pictures are equal and small, from the files that lie there packed."""
    size = size_of_all(np.array([(one.height, one.width) for one in split]) for split in packed.values())
    if size is None:
        return
    with threads(cpus) as pool:
        for split, ones in packed.items():
            spans = np.array([(one.begin, one.end) for one in ones])
            images, pixels = (writer.unfinished / f"{split}_{part}.npy" for part in ("images", "pixels"))
            if not write_pixels(images, spans, size, pixels, pool):
                return
    for split in packed:
        writer.keep_pixels(split, f"{split}_pixels.npy")


def _notes(listing: Listing, done: Mapping[str, Packed], measure: str) -> dict:
    """Return what store.json says of a source that is out of the ordinary. done: the packed training pictures."""
    held_out = listing.splits["train"][len(listing.splits["train"]) - listing.validation :]
    notes = {"validation": len(_kept(held_out, done)), "multi_label": listing.multi_label, "measure": measure}
    usual = {"validation": 0, "multi_label": False, "measure": TOP1}
    return {key: value for key, value in notes.items() if value != usual[key]}


def _line(name: str, packed: Packed) -> str:
    return json.dumps([name, *packed])


def _read_journal(path: Path, resize: int | None, size: int) -> dict[str, Packed]:
    """Return the images that a journal speaks of and that `size` bytes hold; none where they were resized otherwise."""
    try:
        lines = path.read_text().splitlines()
        if json.loads(lines[0]) != {"resize": resize}:
            return {}
    except (OSError, ValueError, IndexError):
        return {}
    done = {}
    for line in lines[1:]:
        with suppress(ValueError, TypeError):  # the last line of a process that was killed while it wrote
            name, stamp, *rest = json.loads(line)
            packed = Packed(tuple(stamp), *rest)
            if packed.end <= size:
                done[name] = packed
    return done


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _stamp_now(file: str) -> tuple[int, int] | None:
    try:
        return _stamp(os.stat(file))
    except OSError:
        return None


@contextmanager
def threads(cpus: int) -> Iterator[Executor]:
    """A pool of a thread for each core, whose own operators use that core alone; given up at once on an error."""
    pool = ThreadPoolExecutor(cpus, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
