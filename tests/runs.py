"""Runs of the tiny recipe inside a test's own process, and stops at a chosen moment."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import torch

from selfsup.augment import Views
from selfsup.data.store import PackedStore
from selfsup.engine.checkpoint import load_checkpoint, save_checkpoint
from selfsup.engine.compute import Compute
from selfsup.engine.distributed import Ranks
from selfsup.engine.saving import Saver
from selfsup.evaluation.fine_tune import FineTuning
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.evaluation.linear import LinearEvaluation
from selfsup.evaluation.task import Judged, Task
from selfsup.job.attempt import Attempt
from selfsup.job.ledger import read_ledger
from selfsup.job.place import Place
from selfsup.layout import boundary_name
from selfsup.recipe import Recipe
from selfsup.training.pretraining import Pretraining, Run
from selfsup.training.segment import train_segment


def on_cpu(
    ranks: Ranks | None = None, *, threads: int = 1, precision: str = "fp32", workers: int = 0, **switches: bool
) -> Compute:
    return Compute(ranks or Ranks(), torch.device("cpu"), precision, threads, workers, **switches)


class StopAfter:
    """Asks to stop once `checks` steps have been done, as a signal at that moment would."""

    exit_status = 75

    def __init__(self, checks: int):
        self._left = checks + 1  # the first question comes before the first step

    @property
    def reason(self) -> str | None:
        self._left -= 1
        return "SIGTERM" if self._left < 0 else None

    def request(self, reason: str) -> None:
        self._left = 0

    def close(self) -> None:
        pass


def attempt_at(run: Run, end: int, stop: StopAfter | None = None) -> Attempt:
    """An attempt of this process, or of its rank, entered by `with`; `stop` replaces signals."""
    ranks = run.compute.ranks
    place = Place(ranks.rank, ranks.size)
    return Attempt(run.folder, stage="pretraining", goal=f"epoch {end}", fingerprint="a test", place=place, stop=stop)


def train(run: Run, *ends: int, stop: StopAfter | None = None) -> bool:
    """Train segment by segment; False when stopped before the last one's end."""
    previous = 0
    for end in ends:
        with attempt_at(run, end, stop) as attempt:
            if not train_segment(run, attempt, until_epoch=end, previous=previous):
                return False
        previous = end
    return True


class KilledError(BaseException):
    """What a SIGKILL at a certain step would do to all ranks: nothing more is saved."""


def train_until_killed(run: Run, end: int, steps: int) -> None:
    """Kill the training to the epoch `end` after so many steps; the rolling checkpoint of the last of them is lost."""
    honest, left = Pretraining.train_step, iter(range(steps))

    def mortal(self, batch):
        if next(left, None) is None:
            raise KilledError
        return honest(self, batch)

    Pretraining.train_step = mortal
    try:
        with contextlib.suppress(KilledError):
            train(run, end)
            raise AssertionError("the run was not killed")
    finally:
        Pretraining.train_step = honest
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    if run.compute.ranks.is_main:
        max(run.partial.glob("step_*.pt")).unlink()
    run.compute.ranks.barrier()


def compute_in(dtype: torch.dtype, training: Pretraining) -> None:
    """Have a pretraining compute in another precision, from the pictures on."""
    training.method.networks.to(dtype)
    for parameter, buffers in training.optimizer.state.items():
        buffers |= {name: one.to(dtype) for name, one in buffers.items() if one.shape == parameter.shape}
    make_views = training.make_views

    def converted(batch) -> Views:
        views = make_views(batch)
        return Views(tuple(view.to(dtype) for view in views), views.parameters)

    training.make_views = converted


def part_in_float64(ranks: Ranks, store: PackedStore, recipe, path: Path, until: int) -> np.ndarray:
    """Go on from the state at `path`, if there is one, and leave it there after step `until`. Returns all weights."""
    training = Pretraining(Run(recipe, 0, 1, store, path.parent, on_cpu(ranks, threads=1), 60))
    compute_in(torch.float64, training)
    if path.exists():
        training.restore(path, load_checkpoint(path))
    while training.step < until:
        training.train_step(training.batches[training.step])
    ranks.barrier()
    if ranks.is_main:
        save_checkpoint(path, training.state(), {"step": training.step})
    return torch.cat([p.detach().flatten() for p in training.method.networks.parameters()]).numpy()


def state_of(run: Run, end: int = 4) -> dict:
    return load_checkpoint(run.folder / boundary_name(end))


def equal_states(one: dict, other: dict) -> bool:
    """Whether weights, buffers and momenta are equal to the bit."""
    tensors = [one["method"][name].equal(value) for name, value in other["method"].items()]
    momenta = [
        one["optimizer"]["state"][key]["momentum_buffer"].equal(value["momentum_buffer"])
        for key, value in other["optimizer"]["state"].items()
    ]
    return all(tensors + momenta) and one["method"].keys() == other["method"].keys() and one["step"] == other["step"]


def evaluation(encoder, store, recipe, encoder_name="a test", compute=None) -> LinearEvaluation:
    judged = Judged(encoder, store, Recipe.of(recipe), seed=0, compute=compute or on_cpu())
    return LinearEvaluation(judged, judged.recipe.linear, identity={"of": encoder_name})


def evaluate(one: Task, folder, stop=None, minutes=60.0) -> list[dict]:
    """Continue an evaluation to its end, or until it is stopped; its rows of this time. The ledger has its steps."""
    ranks, stage = one.compute.ranks, "linear evaluation"
    place = Place(ranks.rank, ranks.size)
    with Attempt(folder, stage=stage, goal="its end", fingerprint="a test", place=place, stop=stop) as attempt:
        saver = Saver(ranks, attempt, minutes)
        rows = list(one.run(attempt, saver, folder / "partial"))
        saver.finish()
    if ranks.is_main:
        written = read_ledger(folder / "ledger.csv")[-1]
        assert written["end_step"] in ("", str(one.step))
    return rows


# A fine-tuning of four points, whose trainings take two steps an epoch of the tiny dataset.
TINY_TUNING = {
    "labels": 60,
    "subset_seed": 0,
    "held_out": 8,
    "held_out_of": "share",
    "unit": "epochs",
    "lengths": [1, 2],
    "batch": 8,
    "peak_lrs": [0.02, 0.05],
    "lr_floor": 0.0,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decays": [0.0],
    "decay_over_lr": False,
    "batch_norm_momentum": "encoder",
    "batch_norm_statistics": "all_devices",
    "train_view": None,
    "test": None,
}


def fine_tuning(encoder, store, recipe, settings=None, encoder_name="a test", compute=None) -> FineTuning:
    """A fine-tuning; settings: what differs from TINY_TUNING."""
    judged = Judged(encoder, store, Recipe.of(recipe), seed=0, compute=compute or on_cpu())
    whole = FineTuneSettings(**{**TINY_TUNING, **(settings or {})})
    return FineTuning(judged, whole, identity={"of": encoder_name})


def untimed(rows: list[dict]) -> list[dict]:
    """Rows without what a clock says."""
    return [{key: value for key, value in row.items() if key != "images_per_s"} for row in rows]
