"""Mean and standard deviation of the training pictures' channels: what a recipe's `mean: dataset` means.

Over all pixels of all training pictures, as they are stored, so a large picture counts for more than a small one. What
is summed are whole numbers, so neither the order nor the number of processes changes a bit.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import add
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from selfsup.atomic_files import write_atomically
from selfsup.data.store import STATISTICS, PackedStore, Split, named
from selfsup.errors import UserError
from selfsup.recipe import Recipe

WORD = "dataset"  # in a recipe, for numbers
LARGEST = 255  # of a stored sample
ROW = 192  # samples that are added to those of the next row at once, a multiple of the channels
ROWS = 2**31 // LARGEST**2 - 1  # whose squares an int32 holds
IMAGES_AT_ONCE = 256  # of one size


class Sums(NamedTuple):
    """Sums over pixels, for each of the three channels: of the values, 0 to 255, and of their squares."""

    pixels: int
    values: tuple[int, ...]
    squares: tuple[int, ...]

    def text(self) -> str:
        """Return the six numbers as a text, which takes a quarter of the memory: there is one of each picture."""
        return " ".join(map(str, (*self.values, *self.squares)))

    @classmethod
    def read(cls, text: str, pixels: int) -> "Sums":
        """Return what `text` has made of sums over so many pixels."""
        numbers = tuple(map(int, text.split()))
        return cls(pixels, numbers[:3], numbers[3:])


def sums_of(pictures: torch.Tensor) -> Sums:
    """Return the sums of a picture, uint8 [3, H, W], or of several of one size, uint8 [N, 3, H, W].

    Pixel by pixel, as decoders leave them in memory, in rows of many pixels, so that columns are added to each other.
    """
    samples = pictures.movedim(-3, -1).reshape(-1)
    values, squares = torch.zeros(2, 3, dtype=torch.int64)
    for part in samples.split(ROWS * ROW):
        whole = len(part) // ROW * ROW
        for rows in (part[:whole].view(-1, ROW), part[whole:].view(-1, 3)):
            wide = rows.int()
            values += _by_channel(wide)
            squares += _by_channel(wide.mul_(wide))  # a tenth of the time of square_
    return Sums(len(samples) // 3, tuple(values.tolist()), tuple(squares.tolist()))


def _by_channel(rows: torch.Tensor) -> torch.Tensor:
    return rows.sum(0, dtype=torch.int32).long().view(-1, 3).sum(0)


def mean_and_std(parts: Iterable[Sums]) -> dict[str, list[float]]:
    """Return {"mean", "std"} of each channel, 0 to 1, from the sums of parts; {} where there are none."""
    count, values, squares = 0, [0, 0, 0], [0, 0, 0]
    for part in parts:
        count += part.pixels
        values, squares = (list(map(add, *pair)) for pair in ((values, part.values), (squares, part.squares)))
    if not count:
        return {}
    pairs = zip(values, squares, strict=True)
    variances = [(count * square - value * value) / (count * count) for value, square in pairs]  # of whole numbers
    return {
        "mean": [value / (LARGEST * count) for value in values],
        "std": [math.sqrt(variance) / LARGEST for variance in variances],
    }


def of_images(images: np.ndarray) -> dict[str, list[float]]:
    """Return {"mean", "std"} of images of one size, uint8 [N, 3, H, W]."""
    starts = range(0, len(images), IMAGES_AT_ONCE)
    blocks = (torch.from_numpy(images[start : start + IMAGES_AT_ONCE]) for start in starts)
    return mean_and_std(map(sums_of, blocks))


def of_split(split: Split, seen: Callable[[int], None] = lambda count: None, cpus: int = 1) -> dict[str, list[float]]:
    """Return {"mean", "std"} of a stored split. seen: told of how many more pictures were read."""
    if split.raw is not None:
        return of_images(split.raw)

    def sums() -> Iterator[Sums]:
        with ThreadPoolExecutor(cpus, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for start in range(0, len(split), IMAGES_AT_ONCE):
                places = range(start, min(start + IMAGES_AT_ONCE, len(split)))
                yield from pool.map(lambda place: sums_of(split.image(place)), places)
                seen(len(places))

    return mean_and_std(sums())


def add_statistics(
    folder: Path, seen: Callable[[int], None] = lambda count: None, cpus: int = 1
) -> dict[str, list[float]]:
    """Add "mean" and "std" to a store that was packed before they were measured, and return them.

    The file keeps its times, for nothing that was made from it has changed.
    """
    store, path = PackedStore(folder), Path(folder) / "store.json"
    if store.statistics:
        return store.statistics
    found, status = of_split(store.train, seen, cpus), path.stat()
    with named(path):
        write_atomically(path, json.dumps(json.loads(path.read_text()) | found, indent=1) + "\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return found


def statistics_of(store: PackedStore) -> dict[str, list[float]]:
    """Return a store's {"mean", "std"}. Raises UserError with what to do where it has none that can be divided by."""
    if not store.statistics:
        raise UserError(
            f"{store.folder}: store.json has no mean and std, which the recipe needs: an older version packed it; "
            f"to add them: python workflow/scripts/prepare_dataset.py --measure --output {store.folder}"
        )
    if not all(store.statistics["std"]):
        raise UserError(
            f"{store.folder}: std is {store.statistics['std']}, because a channel is the same everywhere: write "
            "numbers into the recipe's augment.mean and augment.std"
        )
    return store.statistics


def resolved(recipe: Mapping, store: PackedStore, card: Mapping | None = None) -> Recipe:
    """Return the recipe with numbers where its augment.mean or std is "dataset".

    card: of an encoder that is evaluated, whose own numbers go before the store's: it was trained on such pictures.
    Raises UserError where there are none.
    """
    recipe, known = Recipe.of(recipe), (card or {}).get("recipe", {}).get("augment", {})
    words = [key for key in STATISTICS if recipe.augment[key] == WORD]
    if all(known.get(key, WORD) != WORD for key in words):
        return with_numbers(recipe, known)
    return with_numbers(recipe, statistics_of(store))


def with_numbers(recipe: Recipe, found: Mapping) -> Recipe:
    """Return the recipe with its augment.mean and std as found, where they are "dataset"."""
    numbers = {key: found[key] for key in STATISTICS if key in found and recipe.augment[key] == WORD}
    return recipe.changed(augment=recipe.augment.changed(**numbers))
