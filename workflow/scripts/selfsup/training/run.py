"""What a pretraining is: recipe, seed, data, folder, and the means by which it is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfsup.data.statistics import resolved
from selfsup.data.store import PackedStore
from selfsup.engine import checkpoint
from selfsup.engine.compute import Compute
from selfsup.layout import PretrainPaths, RunFolder, boundary_files
from selfsup.recipe import fingerprint
from selfsup.settings.typed import plain


@dataclass(frozen=True)
class Run:
    """A run of pretraining. Nothing in `compute` changes the recipe or which images the steps see."""

    recipe: Mapping[str, Any]
    seed: int
    revision: int
    store: PackedStore
    folder: Path
    compute: Compute
    checkpoint_minutes: float
    trackers: tuple[str, ...] = ()  # they get the rows of history.csv and knn.csv too
    knn: Path | None = None  # the file for k-NN at milestones; None: of the name that a run's has, in the folder

    @cached_property
    def recipe_of_views(self) -> Mapping[str, Any]:
        """The recipe by which views are made: in numbers what the recipe leaves to the dataset."""
        return resolved(self.recipe, self.store)

    @property
    def paths(self) -> PretrainPaths:
        return PretrainPaths(self.folder)

    @property
    def partial(self) -> Path:
        return self.paths.partial

    @property
    def rows(self) -> list[Path]:
        """The files with rows of steps, which a resume goes on with."""
        return [self.paths.history, self.knn_rows]

    @property
    def knn_rows(self) -> Path:
        return self.knn or RunFolder(self.folder).knn

    def checkpoints(self) -> list[Path]:
        """Return all existing checkpoints, rolling ones and boundaries."""
        return checkpoints_in(self.folder)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What a checkpoint must share with this run for the run to continue from it."""
        return {
            "recipe": plain(self.recipe),
            "revision": self.revision,
            "seed": self.seed,
            "dataset_fingerprint": self.store.fingerprint,
            "fingerprint": fingerprint(self.recipe, self.revision),
        }


def checkpoints_in(folder: Path) -> list[Path]:
    """Return all checkpoints of a run's folder, rolling ones and boundaries."""
    return [*PretrainPaths(folder).partial.glob("*.pt"), *boundary_files(folder)]


def begun_with(folder: Path) -> Mapping[str, Any] | None:
    """Return the numerics of the newest checkpoint that tells them; {} if none does, None where a run has none yet."""
    newest_first = sorted(checkpoints_in(folder), key=checkpoint.step_of, reverse=True)
    cards = (checkpoint.known_card(path) or {} for path in newest_first)
    return next((card["numerics"] for card in cards if "numerics" in card), {} if newest_first else None)
