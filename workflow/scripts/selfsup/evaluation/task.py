"""What an evaluation asks of a task: figures of a frozen or fine-tuned encoder, resumable to the bit."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from selfsup.data.store import PackedStore
from selfsup.engine.checkpoint import DamagedCheckpointError, load_checkpoint, newest_checkpoint, prune
from selfsup.engine.compute import Compute
from selfsup.engine.saving import Decision, Saver
from selfsup.errors import PermanentError
from selfsup.job.attempt import Attempt
from selfsup.layout import rolling_name
from selfsup.models import Backbone, seeded_weights
from selfsup.recipe import Recipe
from selfsup.settings.registries import TASKS
from selfsup.settings.typed import Settings
from selfsup.tables.figure_keys import TOP1


@dataclass(frozen=True)
class Judged:
    """What is judged, on what, and with what.

    encoder: frozen, in eval mode, on the device. recipe: the encoder's. features: the folder of the encoder's features
    of the store's images, where there is one. encoder_sha256: of the encoder's file, as its card has it.
    """

    encoder: Backbone
    store: PackedStore
    recipe: Recipe
    seed: int
    compute: Compute
    features: Path | None = None
    encoder_sha256: str = ""


class Task:
    """The state of an evaluation. A subclass has `run`, `figures` and `total_steps`, and says what a state is.

    `step` counts from 0 what is done of `total_steps`; of what kind of steps is the task's own. rows: the lines of
    history.csv so far. further_rows: those of further.csv, once `finished`. measures: of data sets, by names of
    `selfsup.tables.figure_keys.MEASURES`, that its `figures` give. multi_label: whether it takes labels [N, classes].
    """

    total_steps: int
    measures: ClassVar[tuple[str, ...]] = (TOP1,)
    multi_label: ClassVar[bool] = False

    def __init__(self, judged: Judged, settings: Settings, identity: Mapping[str, Any]):
        """identity: a saved state with another identity is not continued."""
        self.judged, self.settings, self.identity = judged, settings, dict(identity)
        self.compute = judged.compute
        self.step, self.rows, self.further_rows = 0, [], []

    def run(self, attempt: Attempt, saver: Saver, partial: Path) -> Iterator[dict[str, Any]]:
        """Continue from `step`, and yield each row after it was added to `rows`. Collective.

        When asked to stop, it saves all work in `partial` and ends early, without being `finished`: see `go_on`.
        """
        raise NotImplementedError

    def figures(self) -> dict[str, Any]:
        """Return the columns of metrics.csv that are the task's own, once `finished`; in %, those of its `measures`.

        Collective.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what is saved beside `step` and `rows`: tensors, numbers, texts, lists and mappings of these."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take a saved state over."""

    def line(self, row: Mapping[str, Any]) -> str:
        """Return a row for a person to read."""
        return "  ".join(f"{key} {value:{'.4g' if isinstance(value, float) else ''}}" for key, value in row.items())

    def remarks(self) -> Iterator[str]:
        """Yield what is told of a finished evaluation beside its figures. Collective."""
        yield from ()

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps

    @cached_property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.judged.store.classes)

    def initial_classifier(self, draw: int = 0) -> nn.Linear:
        """Return a linear layer from features to classes as it starts. draw: of its weights; 0 is the headline's."""
        with seeded_weights(self.judged.seed, 2, draw):
            return nn.Linear(self.judged.encoder.out_features, self.classes)

    def advance(self, attempt: Attempt) -> None:
        """Count one more step as done, here and in the attempt's books."""
        self.step += 1
        attempt.step_done(self.step)

    def go_on(self, saver: Saver, partial: Path) -> bool:
        """Save a state in `partial` if that is due; return False if the job is to end. Collective, between steps."""
        decision = saver.decide()
        if decision is not Decision.GO_ON:
            self._save(partial, saver, wait=decision is Decision.STOP)
        return decision is not Decision.STOP

    def resume(self, partial: Path) -> Path | None:
        """Continue from the newest state in `partial` if it is of this evaluation; delete states of others.

        Collective.
        """
        path = state = None
        if self.compute.ranks.is_main:
            with contextlib.suppress(DamagedCheckpointError):
                path, state = newest_checkpoint(list(partial.glob("*.pt"))) or (None, None)
            if state is not None and state["identity"] != self.identity:
                path = state = None
                prune(partial)
        path = self.compute.ranks.from_main(path)
        if path is not None:
            state = state or load_checkpoint(path)
            self.step, self.rows = state["step"], list(state["rows"])
            self.load_state(state)
        return path

    def _save(self, partial: Path, saver: Saver, *, wait: bool) -> None:
        path, own = partial / rolling_name(self.step), self.state()

        def state() -> dict[str, Any]:
            return {"identity": self.identity, "step": self.step, "rows": list(self.rows), **own}

        saver.save(path, state, {"step": self.step}, wait=wait, then=lambda: prune(partial, keep=path))


def build_task(name: str, judged: Judged, settings: Settings, identity: Mapping[str, Any]) -> Task:
    """Return the task of that name."""
    task = TASKS.component(name)
    _check_store(name, task, judged.store)
    return task(judged, settings, identity)


def _check_store(name: str, task: type[Task], store: PackedStore) -> None:
    """Raise PermanentError for a dataset that a task cannot judge on."""
    if store.multi_label and not task.multi_label:
        raise PermanentError(
            f"{store.folder}: a picture may be of several classes, which the task {name} cannot handle"
        )
    if store.measure not in task.measures:
        raise PermanentError(
            f"{store.folder}: its measure is {store.measure}, which the task {name} cannot compute; it computes "
            f"{', '.join(task.measures)}"
        )


def own_part(count: int, compute: Compute) -> np.ndarray:
    """Return which of `count` images are this rank's: int64, each on one rank."""
    return np.arange(compute.ranks.rank, count, compute.ranks.size)


def labels_of(split, indices: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return labels of a split's images, int64 [n], on a device."""
    return torch.from_numpy(split.labels[indices]).to(device)
