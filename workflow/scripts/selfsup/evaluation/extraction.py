"""A frozen encoder's features of a dataset's images, each computed once and kept in files that are memory-mapped.

A folder with, for each split, chunks of CHUNK images, `<split>_<number>.npy`, float32 or float16 [n, D], and
`features.json`, which says what they are of. Each chunk is computed in batches of BATCH images, in fp32 by the unfolded
encoder, and written at once, whatever the number of ranks: a job goes on where another was stopped, with as many ranks
as it has, and the bits are the same.
"""

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsup.atomic_files import write_atomically
from selfsup.augment import centre_view
from selfsup.cards import card_if_any
from selfsup.data.loader import CPU, Batches, LoadedBatch
from selfsup.data.store import PackedStore, Split
from selfsup.engine.device import full_fp32
from selfsup.errors import UserError
from selfsup.evaluation.task import Judged, labels_of
from selfsup.evaluation.task_settings import FrozenSettings
from selfsup.job.attempt import Attempt
from selfsup.settings.typed import plain

CHUNK = 2048  # images: what a job that is killed does again at most, for each rank
BATCH = 128
SPLITS = ("train", "test")
FOLDER = "features"  # inside a job's partial one


@dataclass(frozen=True)
class SplitFeatures:
    """The features of a split. parts: arrays of CHUNK rows each, the last one of fewer."""

    split: Split
    parts: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.split)

    @property
    def width(self) -> int:
        """The number of features of an image."""
        return self.parts[0].shape[1]

    def rows(self, places: Sequence[int]) -> torch.Tensor:
        """Return the features of some images: float32 [n, D], on the host."""
        places = np.asarray(places, np.int64)
        chunks, within = places // CHUNK, places % CHUNK
        found = np.empty((len(places), self.width), np.float32)
        for chunk in np.unique(chunks):
            found[chunks == chunk] = self.parts[chunk][within[chunks == chunk]]
        return torch.from_numpy(found)

    def labels(self, places: Sequence[int]) -> torch.Tensor:
        """Return the labels of some images: int64 [n], on the host."""
        return torch.from_numpy(self.split.labels[np.asarray(places, np.int64)])


@dataclass(frozen=True)
class Features:
    """The features of a dataset's images."""

    train: SplitFeatures
    test: SplitFeatures

    @classmethod
    def read(cls, folder: Path, judged: Judged, settings: FrozenSettings) -> "Features":
        """Map a folder's files. Raises UserError where they are of something else than what is judged, or not whole."""
        found, wanted = card_if_any(folder / "features.json"), made_of(judged, settings)
        wrong = [key for key in wanted if found.get(key) != wanted[key]]
        if wrong:
            key = wrong[0]
            raise UserError(
                f"{folder}: its features.json has {key} {found.get(key)!r}, wanted {wanted[key]!r}: delete the folder "
                "and start again"
            )
        return cls(*(SplitFeatures(getattr(judged.store, name), _mapped(folder, name, judged)) for name in SPLITS))


def features_of(judged: Judged, settings: FrozenSettings, attempt: Attempt, partial: Path) -> Features | None:
    """Return the features that a task looks at: those that it was given, or computed in a folder inside `partial`.

    None if the job is asked to stop: what is computed is kept. Collective.
    """
    folder = judged.features
    if folder is None:
        folder = partial / FOLDER
        for chunks in extract(judged, settings, folder, attempt):
            attempt.heartbeat(f"{chunks} chunks of features")
        if not judged.compute.ranks.from_main(is_whole(folder)):
            return None
    return Features.read(folder, judged, settings)


def forget_features(partial: Path) -> None:
    """Delete what `features_of` has computed there."""
    shutil.rmtree(partial / FOLDER, ignore_errors=True)
    _begun(partial / FOLDER).unlink(missing_ok=True)


def made_of(judged: Judged, settings: FrozenSettings) -> dict[str, Any]:
    """Return what features depend on, as features.json has it."""
    store, how = judged.store, plain(settings.features(judged.recipe))
    images = {name: len(getattr(store, name)) for name in SPLITS}
    return {"encoder_sha256": judged.encoder_sha256, "dataset": store.fingerprint, "images": images, "made": how}


def is_whole(folder: Path) -> bool:
    """Return whether all chunks are in a folder: features.json is written last."""
    return (folder / "features.json").exists()


def number_of_chunks(store: PackedStore) -> int:
    """Return how many files both splits together have."""
    return len(list(_chunks(store)))


def extract(judged: Judged, settings: FrozenSettings, folder: Path, attempt: Attempt) -> Iterator[int]:
    """Compute the chunks that are missing in `folder`, each on one rank; yield how many there are, now and then.

    Ends early, without features.json, if the job is asked to stop. Chunks of something else are deleted. Collective.
    """
    ranks, wanted = judged.compute.ranks, made_of(judged, settings)
    if ranks.is_main:
        _begin(folder, wanted)
    missing = ranks.from_main([one for one in _chunks(judged.store) if not _file(folder, *one).exists()])
    total = number_of_chunks(judged.store)
    done = total - len(missing)
    yield done
    mine, rounds = missing[ranks.rank :: ranks.size], -(-len(missing) // ranks.size)
    pictures = Pictures(judged, settings.view(judged.recipe), mine)
    batches = pictures.read(0, len(pictures), workers=judged.compute.workers, pin_memory=False)
    for turn in range(rounds):
        if not _extract_chunk(judged, settings, folder, mine[turn : turn + 1], batches, attempt):
            return
        done = min(done + ranks.size, total)
        yield done
    ranks.barrier()  # all files are there
    if ranks.is_main:
        write_atomically(folder / "features.json", json.dumps(wanted, indent=1) + "\n")
    ranks.barrier()


Chunk = tuple[str, int]  # the split's name, the chunk's number


class Pictures(Batches):
    """The plain views of some chunks' images, BATCH at a time: what loader workers make.

    Of `Batches` it is the reading alone.
    """

    def __init__(self, judged: Judged, view: Mapping, chunks: Sequence[Chunk]):
        self._recipe, self._view = judged.recipe, view
        self._splits = {name: getattr(judged.store, name) for name in SPLITS}
        self._places = [(name, part) for name, number in chunks for part in _parts(self._splits[name], number)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> LoadedBatch:
        name, places = self._places[number]
        split, indices = self._splits[name], np.asarray(places)
        pictures = centre_view(self._recipe, map(split.image, places), self._view)
        return LoadedBatch(number, indices, labels_of(split, indices, CPU), None, pictures, len(indices))


def _extract_chunk(
    judged: Judged,
    settings: FrozenSettings,
    folder: Path,
    chunks: Sequence[Chunk],
    batches: Iterator[LoadedBatch],
    attempt: Attempt,
) -> bool:
    """Compute this rank's chunk of a round, if it has one; return False if the job is asked to stop. Collective."""
    ranks, found = judged.compute.ranks, []
    left = sum(len(_parts(getattr(judged.store, name), number)) for name, number in chunks)
    for place in range(CHUNK // BATCH):  # equally often on all ranks
        if ranks.any(attempt.stop.reason is not None):
            return False
        if place < left:
            found.append(_forward(judged, next(batches).pictures))
            attempt.heartbeat(f"batch {place} of a chunk of features")
    for chunk in chunks:
        _write(_file(folder, *chunk), torch.cat(found).numpy().astype(settings.precision))
    return True


@torch.no_grad()
def _forward(judged: Judged, pictures: torch.Tensor) -> torch.Tensor:
    with full_fp32():
        return judged.encoder(pictures.to(judged.compute.device)).cpu()


def _begin(folder: Path, wanted: Mapping) -> None:
    """Make the folder, empty if its chunks are of something else: what they are of stands beside it from the start."""
    begun = _begun(folder)
    if card_if_any(begun) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp"):  # of a process that was killed while writing
        leftover.unlink()
    write_atomically(begun, json.dumps(wanted, indent=1) + "\n")


def _begun(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_of.json")


def _chunks(store: PackedStore) -> Iterator[Chunk]:
    for name in SPLITS:
        yield from ((name, number) for number in range(-(-len(getattr(store, name)) // CHUNK)))


def _parts(split: Split, number: int) -> list[range]:
    """Return which images the batches of a chunk have."""
    end = min((number + 1) * CHUNK, len(split))
    return [range(start, min(start + BATCH, end)) for start in range(number * CHUNK, end, BATCH)]


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}_{number:06d}.npy"


def _write(path: Path, rows: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, rows, allow_pickle=False)
    write_atomically(path, content.getvalue())


def _mapped(folder: Path, name: str, judged: Judged) -> list[np.ndarray]:
    files = [_file(folder, *chunk) for chunk in _chunks(judged.store) if chunk[0] == name]
    try:
        return [np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for file in files]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not whole ({error}): delete the folder and start again") from error
