"""Pretraining in segments: each call continues from the newest checkpoint and ends at a boundary.

All that a step needs besides the checkpointed state is a function of (recipe, seed, step).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfsup import provenance
from selfsup.data.loader import Batch, Batches
from selfsup.data.store import PackedStore
from selfsup.errors import UserError
from selfsup.methods import build_method
from selfsup.optim import LARS, learning_rate, optimizer_groups, treatment_table
from selfsup.recipe import differences, fingerprint
from selfsup.segments import boundary_name, record_run, work_done
from selfsup.training import checkpoint
from selfsup.training.clock import History, Progress
from selfsup.training.device import autocast
from selfsup.training.distributed import Ranks
from selfsup.training.stopping import StopRequest

ROWS_PER_EPOCH = 10  # of history.csv; each reads a loss back from the device


@dataclass(frozen=True)
class Run:
    """What is trained, and how this process computes. Nothing under "how" changes recipe or image stream."""

    recipe: Mapping[str, Any]
    seed: int
    revision: int
    store: PackedStore
    folder: Path
    # how
    device: torch.device
    precision: str
    threads: int
    workers: int
    checkpoint_minutes: float

    @property
    def partial(self) -> Path:
        return self.folder / "partial"

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run to be continued."""
        return {
            "recipe": dict(self.recipe),
            "revision": self.revision,
            "seed": self.seed,
            "dataset_fingerprint": self.store.fingerprint,
            "fingerprint": fingerprint(self.recipe, self.revision),
        }


class Pretraining:
    """The state of a pretraining: method, optimiser, gradient scaler. `step` counts attempted steps from 0."""

    def __init__(self, run: Run, ranks: Ranks):
        self.run, self.ranks, self.step = run, ranks, 0
        self.batches = Batches(
            run.store.train, run.recipe, seed=run.seed, stage="pretrain", rank=ranks.rank, ranks=ranks.size
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        if self.steps_per_epoch == 0:
            raise UserError(
                f"global_batch is {run.recipe['global_batch']}, more than the {len(run.store.train)} training "
                f"images of {run.store.folder}"
            )
        self.total_steps = run.recipe["epochs"] * self.steps_per_epoch
        self.method = build_method(run.recipe, seed=run.seed, total_steps=self.total_steps)
        self.method.networks.to(run.device)
        self.method.connect(ranks)
        self.treatments = self.method.parameter_groups()
        settings = run.recipe["optimizer"]
        self.optimizer = LARS(
            optimizer_groups(self.treatments),
            lr=settings["peak_lr"],
            momentum=settings["momentum"],
            trust_coefficient=settings["trust_coefficient"],
            lr_in_momentum=settings["lr_in_momentum"],
        )
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.precision == "fp16")
        self.finite = torch.ones((), dtype=torch.bool, device=run.device)
        self.numerics = provenance.numerics(run.device, run.precision, run.threads, ranks.size)
        self.code_revision = provenance.code_revision()  # now: a pull during the run changes nothing that runs
        self.attempts: list[dict[str, Any]] = []

    def learning_rate(self, step: int) -> float:
        settings = self.run.recipe["optimizer"]
        return learning_rate(
            step,
            total_steps=self.total_steps,
            warmup_steps=settings["warmup_epochs"] * self.steps_per_epoch,
            peak=settings["peak_lr"],
            start_factor=settings["lr_start_factor"],
            floor=settings["lr_floor"],
        )

    def train_step(self, batch: Batch) -> torch.Tensor:
        """Do one optimiser step and return this rank's loss, a scalar still on the device."""
        self.method.before_step(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(batch)
        self.finite &= torch.isfinite(loss)
        self.ranks.average_gradients(one.parameter for one in self.treatments)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # an overflowed fp16 step counts, but moves nothing
            self.method.after_step(self.step)
        self.step += 1
        return loss

    def _accumulate_gradients(self, batch: Batch) -> torch.Tensor:
        parts = self.run.recipe["micro_batches"]
        total = torch.zeros((), device=self.run.device)
        for views in batch.views.to(self.run.device).chunk(parts):
            with autocast(self.run.device, self.run.precision):
                loss, _ = self.method.loss(views, self.step, self.ranks)
            self.scaler.scale(loss / parts).backward()
            total += loss.detach() / parts
        return total

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            **self.run.identity(),
            "format": checkpoint.FORMAT,
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "numerics": self.numerics,
            "attempts": self.attempts,
            "code_revision": self.code_revision,
            "versions": provenance.versions(),
        }

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises UserError with the differences when it is of another run."""
        checkpoint.check_belongs(path, state, self.run.identity())
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.attempts = state["step"], list(state["attempts"])

    def save(self, path: Path, loss: torch.Tensor) -> None:
        """Write a checkpoint from rank 0, once the loss and all parameters are known to be finite on every rank."""
        finite = self.finite & torch.stack([torch.isfinite(p).all() for p in self.method.networks.parameters()]).all()
        if self.ranks.any(not bool(finite)):
            raise UserError(
                f"loss or weights are not finite before step {self.step}: nothing was written. The last good "
                f"checkpoint is in {self.run.folder}; "
                "lower optimizer.peak_lr or use precision: fp32, then start again"
            )
        mean_loss = float(self.ranks.mean(loss))
        if self.ranks.is_main:
            card = {key: value for key, value in self.run.identity().items() if key != "recipe"}
            figures = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "loss": mean_loss}
            checkpoint.save_checkpoint(path, self.state(), {**card, **figures, "numerics": self.numerics})
            checkpoint.prune(self.run.partial, keep=path)
            record_run(self.run.folder, self.run.recipe, self.run.revision, reached=self.step / self.steps_per_epoch)
        self.ranks.barrier()


def train_segment(
    run: Run, ranks: Ranks, *, until_epoch: int, previous: Path | None, output: Path, stop: StopRequest
) -> bool:
    """Train to the end of `until_epoch` and leave its checkpoint at `output`.

    Continues from the newest of `previous`, the boundary before, and the run's rolling checkpoints. Returns False when
    asked to stop before the boundary; all work is then in a rolling checkpoint.
    """
    work_done(run.folder, run.recipe, run.revision)  # refuses a folder of another recipe
    boundary = run.partial / boundary_name(until_epoch)
    training = Pretraining(run, ranks)
    end = until_epoch * training.steps_per_epoch
    source = _continue_from(training, [*run.partial.glob("*.pt"), *([previous] if previous else [])], end)
    if previous and training.step == 0:
        raise UserError(f"{previous}: the boundary to continue from is not there: run the segment before it again")
    if training.step < end:
        _announce(training, end, source)
        training.attempts.append(
            {**training.numerics, "start_step": training.step, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        )
        if not _train(training, end, boundary, stop):
            return False
    if ranks.is_main:
        checkpoint.link_boundary(boundary, output)
        record_run(run.folder, run.recipe, run.revision, boundary=until_epoch)
    ranks.barrier()
    return True


def _continue_from(training: Pretraining, candidates: list[Path], end: int) -> Path | None:
    """Restore the newest checkpoint at or before step `end`. Rank 0 chooses; the others read the same file."""
    ranks, found = training.ranks, None
    if ranks.is_main:
        found = checkpoint.newest_checkpoint([path for path in candidates if checkpoint.step_of(path) <= end])
    path = ranks.from_main(found and found[0])
    if path is None:
        return None
    state = found[1] if found else checkpoint.load_checkpoint(path)
    if ranks.is_main and state["numerics"] != training.numerics:
        print(
            "note: the run continues under other numerics; its bits may differ from here on: "
            + "; ".join(differences(training.numerics, state["numerics"])),
            flush=True,
        )
    training.restore(path, state)
    return path


def _announce(training: Pretraining, end: int, source: Path | None) -> None:
    run = training.run
    if not training.ranks.is_main:
        return
    where = f"continuing after {source}" if source else "from the beginning"
    print(
        f"pretraining {run.recipe['method']} with {run.recipe['model']['backbone']}, {len(run.store.train):,} images, "
        f"seed {run.seed}: steps {training.step} to {end} of {training.total_steps}, {where}\n"
        f"global batch {run.recipe['global_batch']} over {training.ranks.size} ranks on {training.numerics['device']}, "
        f"{run.precision}, {run.threads} threads each",
        flush=True,
    )
    if source is None:
        print(treatment_table(training.treatments), flush=True)


def _train(training: Pretraining, end: int, boundary: Path, stop: StopRequest) -> bool:
    """The loop. Returns False when it was asked to stop."""
    run, ranks = training.run, training.ranks
    start, spe = training.step, training.steps_per_epoch
    progress = Progress(
        start=start,
        segment_end=end,
        run_end=training.total_steps,
        steps_per_epoch=spe,
        batch=run.recipe["global_batch"],
    )
    schedules = tuple(training.method.schedules(start))
    history = History(run.folder / "history.csv", start=start, columns=schedules) if ranks.is_main else None
    row_interval = max(1, spe // ROWS_PER_EPOCH)
    saved = time.monotonic()
    for batch in training.batches.read(start, end, workers=run.workers, pin_memory=run.device.type == "cuda"):
        step = training.step
        loss = training.train_step(batch)
        done = training.step
        logged = done % row_interval == 0
        if logged or done == end:
            mean_loss = float(ranks.mean(loss))
            row = {
                "step": step,
                "epoch": step // spe,
                "loss": mean_loss,
                "lr": training.learning_rate(step),
                **training.method.schedules(step),
            }
            if ranks.is_main:
                row["images_per_s"] = progress.images_per_s(done)
                if logged:
                    history.append(row)
                if progress.due(done):
                    print(progress.line(done, row), flush=True)
        if done == end:
            training.save(boundary, loss)
            return True
        stopping = ranks.any(stop.reason is not None)
        if stopping or ranks.any(time.monotonic() - saved > run.checkpoint_minutes * 60):
            training.save(run.partial / f"step_{done:09d}.pt", loss)
            saved = time.monotonic()
        if stopping:
            if ranks.is_main:
                print(f"stopped by {stop.reason} after step {done}: saved, to be continued", flush=True)
            return False
    return True
