"""Which training images' labels are used: nested, class-balanced draws that (labels, seed) give, on any machine."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from selfsup.data.store import PackedStore
from selfsup.errors import PermanentError
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.random_draws import Stream, words


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return all images in an order whose every beginning has as many of each class as of any other, as far as they go.

    labels: int64 [N]. Returns int64 [N]. It goes round the classes: each round has the next image, drawn at random, of
    each class that has one left, in an order of its own. A beginning of N // 100 images is what the lists of SimCLR's
    authors are for 1 % of ImageNet: 12 or 13 of a class, 12,811 in all, and part of the list of 10 %.
    """
    drawn = words(seed, Stream.SUBSET, epoch=0, indices=np.arange(len(labels)))
    by_class = np.lexsort((drawn[:, 1], drawn[:, 0], labels))
    starts = np.searchsorted(labels[by_class], labels[by_class])
    rounds = np.empty(len(labels), np.int64)
    rounds[by_class] = np.arange(len(labels)) - starts
    return np.lexsort((drawn[:, 3], drawn[:, 2], rounds))


def listed_images(store: PackedStore, settings: FineTuneSettings) -> np.ndarray | None:
    """Return the places of the training images that the settings' list names, int64, in order; None without a list.

    A line is a file's name, as in the lists of SimCLR's authors, or where several files have it, its path below the
    split's folder. Raises PermanentError for a name that is not in the store, or is there more than once, and where the
    list is of another share than `labels` says.
    """
    if settings.labels_list is None:
        return None
    text = settings.list_file.read_text(encoding="utf-8", errors="surrogateescape")
    wanted = [line.strip() for line in text.splitlines() if line.strip()]
    places = _places(store.train.names())
    for name in wanted:
        if len(found := places.get(name, [])) != 1:
            where = f"in the training set of {store.folder}"
            wrong = f"is {len(found)} times {where}: give paths, class/name" if found else f"is not {where}"
            raise PermanentError(f"labels_list {settings.list_file}: {name} {wrong}")
    images = np.unique([places[name][0] for name in wanted]).astype(np.int64)
    share = 100 * len(images) / len(store.train)
    stated = int(len(store.train) * settings.labels / 100 + 1e-9)
    if abs(len(images) - stated) > 0.01 * stated:
        raise PermanentError(
            f"labels is {settings.labels:g} %, but labels_list {settings.list_file} names {len(images):,} of "
            f"{len(store.train):,} training images: set labels to {share:.3g}"
        )
    return images


def _places(names: list[str]) -> dict[str, list[int]]:
    """Return {a way to name an image: the places of all that it may mean}: path, path in the split, file name."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        for known in {name, name.partition("/")[2] or name, name.rpartition("/")[2]}:
            places[known].append(place)
    return places


@dataclass(frozen=True)
class LabelledImages:
    """The places of training images, int64: `share`, all whose labels train; `tried`, those of the grid's trainings;
    `held_out`, by which one of these is chosen."""

    share: np.ndarray
    tried: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, settings: FineTuneSettings, listed: np.ndarray | None = None) -> "LabelledImages":
        """Return what the settings say of a training set's labels, int64 [N].

        listed: the places of the images whose labels are used, instead of a draw. Raises PermanentError where there are
        too few images for it.
        """
        count = int(len(labels) * settings.labels / 100 + 1e-9)  # 10 % of 70 is 7, not 6.999...
        count = count if listed is None else len(listed)
        held_out = settings.held_out if settings.held_out >= 1 else settings.held_out * len(labels)
        held_out = int(held_out + 1e-9) if settings.chooses else 0
        _check_counts(len(labels), count, held_out, settings)
        order = balanced_order(labels, settings.subset_seed)
        if listed is not None:
            first = np.isin(order, listed)
            order = np.concatenate([order[first], order[~first]])
        share, rest = order[:count], order[count:]
        if settings.held_out_of == "rest":
            return cls(share, share, rest[:held_out])
        return cls(share, share[: count - held_out], share[count - held_out :])


def _check_counts(images: int, count: int, held_out: int, settings: FineTuneSettings) -> None:
    of_share = settings.held_out_of == "share"
    wanted = 2 + (held_out if of_share else 0)
    if count < wanted:
        also = f" beside the {held_out} held out" if of_share and held_out else ""
        raise PermanentError(
            f"labels is {settings.labels:g} % of {images} training images, which is {count}; wanted at least 2{also}: "
            "raise labels, or hold fewer out"
        )
    if settings.chooses and held_out == 0:
        raise PermanentError(f"held_out is {settings.held_out} of {images} training images, which is none: raise it")
    if not of_share and held_out > images - count:
        raise PermanentError(
            f"held_out is {held_out}, but only {images - count} of {images} training images are not among the "
            f"{settings.labels:g} %: hold fewer out"
        )
