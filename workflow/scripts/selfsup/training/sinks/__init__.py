"""Trackers, a file each: they get each row of history.csv and knn.csv as it is written."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from selfsup.atomic_files import write_atomically
from selfsup.errors import UserError
from selfsup.settings.registries import TRACKERS
from selfsup.settings.typed import suggest

COUNTED = ("steps_done", "epochs_done")  # columns of the files, which a replay reads: rows as they are made lack them
NOT_CURVES = ("step", "epoch", *COUNTED, "bank", "queries")
PROJECT = "selfsup"


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


def curves_of(row: Mapping[str, float]) -> dict[str, float]:
    """Return what of a row is drawn over the steps."""
    return {name: value for name, value in row.items() if name not in NOT_CURVES}


def wants(package: str, installed_as: str) -> None:
    """Raise UserError where a tracker's package is missing."""
    if find_spec(package) is None:
        raise UserError(
            f"the tracker {package} is asked for, but its package is not installed: pip install {installed_as}, or "
            "leave it out of the experiment's `compute`; history.csv has the same figures"
        )


def run_id(folder: Path, make: Callable[[], str] = lambda: secrets.token_hex(4)) -> str:
    """Return the id of a run in a tracker, one for all its jobs: made by the first, kept in the tracker's folder."""
    path = folder / "run_id.txt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, make())
    return path.read_text()


def run_name(folder: Path) -> str:
    """Return what a run is called in a tracker: "digits/seed0", for its folder of the pretraining."""
    parts = [one for one in folder.resolve().parts if one not in ("pretrain", "tracked")]
    return "/".join(parts[-2:])
