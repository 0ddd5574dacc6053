"""Trackers, a file each: they get each row of history.csv and knn.csv as it is written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from selfsup.errors import UserError
from selfsup.settings.registries import TRACKERS
from selfsup.settings.typed import suggest


class Sink(Protocol):
    """A tracker. A file here has one by the name `Tracker`."""

    def __init__(self, folder: Path, *, start: int):
        """Open it, or go on with it. folder: the run's. start: steps done; rows of that number or more are void."""

    @staticmethod
    def check() -> None:
        """Raise UserError if it cannot be used, as where its package is missing. Called before anything takes long."""

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row, which has its "step". What was added must be kept if the job is killed the moment after."""

    def close(self) -> None:
        """End it: the job is over, the run perhaps not."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is not known or cannot be used."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"the tracker {name!r} does not exist{suggest(name, list(TRACKERS))}")
        TRACKERS[name].check()


def open_trackers(names: Sequence[str], folder: Path, start: int) -> list[Sink]:
    """Return the trackers of a run, which continue after `start` steps."""
    return [TRACKERS[name](folder, start=start) for name in names]
