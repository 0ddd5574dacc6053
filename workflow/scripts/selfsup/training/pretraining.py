"""Pretraining in segments: each call continues from the newest checkpoint and ends at a boundary.

All that a step needs besides the checkpointed state is a function of (recipe, seed, step).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsup import provenance
from selfsup.data.loader import Batch, Batches, ViewMaker
from selfsup.data.store import PackedStore
from selfsup.engine import checkpoint
from selfsup.engine.compute import Compute
from selfsup.engine.device import autocast
from selfsup.engine.equal_ranks import check_equal_on_all_ranks
from selfsup.engine.gradients import GradientAverager
from selfsup.engine.saving import Decision, Saver
from selfsup.errors import PermanentError, UserError
from selfsup.job.attempt import Attempt
from selfsup.job.waiting import waiting_for_ranks
from selfsup.layout import boundary_files, boundary_name
from selfsup.methods import build_method, takes_skipped
from selfsup.models import recompute_activations
from selfsup.optim import build_optimizer, learning_rate, treatment_table
from selfsup.recipe import fingerprint
from selfsup.segments import record_run, work_done, write_card
from selfsup.training.clock import History, Progress, steps_logged
from selfsup.training.health import Health
from selfsup.training.tensorboard import FOLDER, Events

HISTORY = "history.csv"
IDENTITY = ("revision", "seed", "dataset_fingerprint", "fingerprint")  # what the cards of a run share
COMPILED_VARIANTS = 64  # of one function: a ResNet-50 over ranks has about 16
ROWS_PER_EPOCH = 10  # of history.csv; each reads a loss back from the device


@dataclass(frozen=True)
class Run:
    """What is trained, and with what. Nothing of `compute` changes recipe or image stream."""

    recipe: Mapping[str, Any]
    seed: int
    revision: int
    store: PackedStore
    folder: Path
    compute: Compute
    checkpoint_minutes: float
    tensorboard: bool = False  # event files beside history.csv, with the same rows
    knn: Path | None = None  # where k-NN at milestones is written; None: into the folder

    @property
    def partial(self) -> Path:
        return self.folder / "partial"

    def checkpoints(self) -> list[Path]:
        """All that is there: rolling ones and boundaries."""
        return [*self.partial.glob("*.pt"), *boundary_files(self.folder)]

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
    """The state of a pretraining: method, optimiser, gradient scaler. `step` counts attempted steps from 0.

    `skipped` counts those whose fp16 gradients overflowed: they count as steps and change no weight and no average. In
    a step the host waits for nothing that the device computes.
    """

    def __init__(self, run: Run):
        ranks, device = run.compute.ranks, run.compute.device
        self.run, self.ranks, self.step = run, ranks, 0
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._last_skipped: torch.Tensor | None = None  # bool on the device, in fp16
        self.batches = Batches(
            run.store.train,
            run.recipe,
            seed=run.seed,
            stage="pretrain",
            rank=ranks.rank,
            ranks=ranks.size,
            device=device,
        )
        self.make_views = ViewMaker(run.store.train, run.recipe, device, run.compute.memory_format)
        self.steps_per_epoch = self.batches.steps_per_epoch
        if self.steps_per_epoch == 0:
            raise PermanentError(
                f"global_batch is {run.recipe['global_batch']}, more than the {len(run.store.train)} training "
                f"images of {run.store.folder}"
            )
        self.total_steps = run.recipe["epochs"] * self.steps_per_epoch
        self.method = build_method(run.recipe, seed=run.seed, total_steps=self.total_steps)
        self._place_networks()
        self.treatments = self.method.parameter_groups()
        self.averager = GradientAverager([one.parameter for one in self.treatments], ranks)
        self.optimizer = build_optimizer(self.treatments, run.recipe["optimizer"])
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.compute.precision == "fp16")
        self._scalars: dict[str, torch.Tensor] = {}  # of the newest step, which the method wants logged
        self._bad_step = torch.full((), math.inf, device=device)  # first with a loss that is not finite
        self.numerics = run.compute.numerics()
        self.code_revision = provenance.code_revision()  # now: a pull during the run changes nothing that runs
        self.attempts: list[dict[str, Any]] = []
        self._known_equal = False  # on all ranks

    def _place_networks(self) -> None:
        compute, networks = self.run.compute, self.method.networks
        networks.to(compute.device, memory_format=compute.memory_format)
        self.method.connect(self.ranks)
        if compute.recompute:
            recompute_activations(networks)
        if compute.compile:
            # Over ranks a graph ends at every batch norm, and all blocks of both networks are variants of one function;
            # those beyond the limit, 8 by default, would not be compiled. The name that torch 2.6 knows too.
            torch._dynamo.config.cache_size_limit = COMPILED_VARIANTS
            for network in _single_networks(networks):
                network.compile(dynamic=False)

    @property
    def skipped(self) -> int:
        """How many steps were skipped so far. Waits for the device."""
        return int(self._skipped)

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
        self.method.before_step(self.step, **self._verdict(self.method.before_step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(batch)
        bad = torch.where(torch.isfinite(loss), math.inf, float(self.step))
        self._bad_step = torch.minimum(self._bad_step, bad)  # read late: here it would make the host wait
        self._update_weights()
        self.method.after_step(self.step, **self._verdict(self.method.after_step))
        self.step += 1
        return loss

    def _verdict(self, told: Callable) -> dict[str, torch.Tensor]:
        """What a member of the method is told of the newest update, if it asks: in fp16 it may have been skipped."""
        wants = self._last_skipped is not None and takes_skipped(told)
        return {"skipped": self._last_skipped} if wants else {}

    def _update_weights(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            self._last_skipped = self.optimizer.skipped
            self._skipped += self._last_skipped

    def _accumulate_gradients(self, batch: Batch) -> torch.Tensor:
        """Leave the mean gradient over micro-batches and ranks, times the scaler's factor, and return the loss."""
        parts = self.run.recipe["micro_batches"]
        compute = self.run.compute
        total, self._scalars = torch.zeros((), device=compute.device), {}
        for part, views in enumerate(self.make_views(batch).chunk(parts), 1):
            with autocast(compute.device, compute.precision):
                loss, scalars = self.method.loss(views, self.step, self.ranks)
            with self.averager.last_backward() if part == parts else contextlib.nullcontext():
                self.scaler.scale(loss / parts).backward()
            total += loss.detach() / parts
            for name, value in scalars.items():
                self._scalars[name] = self._scalars.get(name, 0) + value.detach() / parts
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
            "skipped": self.skipped,
            "last_skipped": self._last_skipped is not None and bool(self._last_skipped),
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
        self._skipped.fill_(state["skipped"])
        if self.scaler.is_enabled():
            self._last_skipped = torch.tensor(state["last_skipped"], device=self.run.compute.device)

    def checked_loss(self, loss: torch.Tensor, saver: Saver | None = None, *, weights: bool) -> float:
        """Return the mean over ranks of this step's loss, once all losses so far (and the weights) are known finite.

        Waits for the device. Raises PermanentError on every rank, with the first bad step and the last good checkpoint.
        """
        bad_step = self._bad_step
        if weights:
            finite = torch.stack([torch.isfinite(p).all() for p in self.method.networks.parameters()]).all()
            bad_step = torch.minimum(bad_step, torch.where(finite, math.inf, float(self.step - 1)))
        with waiting_for_ranks():  # on a GPU the host waits here for what all ranks compute together
            place = float(bad_step)
        first = self.ranks.highest(0 if math.isinf(place) else self.total_steps - int(place))
        if first:
            step = self.total_steps - first
            if saver:
                saver.finish()  # what is being written is good, and may be the last
            good = checkpoint.newest_by_card(self.run.checkpoints())
            precision = "" if self.run.compute.precision == "fp32" else ", or set precision: fp32"
            raise PermanentError(
                f"loss or weights are not finite at step {step} (epoch {step / self.steps_per_epoch:.2f}): nothing was "
                f"written since; last good checkpoint: {good or 'none'}. Lower optimizer.peak_lr and raise `revision`"
                f"{precision}"
            )
        return float(self.ranks.mean(loss))

    def row(self, step: int, loss: torch.Tensor, saver: Saver) -> dict[str, float]:
        """Return what history.csv tells of `step`, the newest, means over ranks. Collective; waits for the device."""
        row = {
            "step": step,
            "epoch": step // self.steps_per_epoch,
            "loss": self.checked_loss(loss, saver, weights=False),
            "lr": self.learning_rate(step),
            **self.method.schedules(step),
            **{name: float(self.ranks.mean(value)) for name, value in sorted(self._scalars.items())},
        }
        return row | ({"skipped": self.skipped} if self.scaler.is_enabled() else {})

    def save(
        self,
        path: Path,
        loss: torch.Tensor,
        saver: Saver,
        *,
        wait: bool,
        health: Mapping[str, float] | None = None,
    ) -> None:
        """Write a checkpoint, once the loss and all parameters are known to be finite on every rank.

        The first one of a job also wants the method's state to be equal on all ranks.

        health: a boundary's figures, for its JSON file, where the rule health_gate reads them and their floors.
        """
        card = {key: value for key, value in self.run.identity().items() if key != "recipe"}
        mean_loss = self.checked_loss(loss, saver, weights=True)
        if not self._known_equal:
            check_equal_on_all_ranks(self.method.state_dict(), self.ranks)
            self._known_equal = True
        epoch, run = self.step / self.steps_per_epoch, self.run
        card |= {"step": self.step, "epoch": epoch, "loss": mean_loss, "numerics": self.numerics}
        card |= {} if health is None else {"health": dict(health), "floors": dict(self.method.floors)}

        def tidy() -> None:
            checkpoint.prune(run.partial, keep=path)
            record_run(run.folder, run.recipe, run.revision, reached=epoch)

        def record(path: Path, card: Mapping) -> None:
            record_run(run.folder, run.recipe, run.revision, card=card)

        # A boundary's own card comes last, when the segment is finished: it is what Snakemake waits for.
        saver.save(path, self.state, card, wait=wait, then=tidy, note=write_card if health is None else record)


def _single_networks(networks: nn.Module) -> Iterator[nn.Module]:
    """Yield the backbones and heads that a method's dicts of networks hold."""
    if isinstance(networks, nn.ModuleDict):
        for network in networks.values():
            yield from _single_networks(network)
    else:
        yield networks


def train_segment(run: Run, attempt: Attempt, *, until_epoch: int, previous: int = 0) -> bool:
    """Train to the end of `until_epoch` and leave its checkpoint and card in the run's folder.

    Continues from the newest of the run's checkpoints. previous: the epoch of the boundary before, which must be there,
    or something later; 0 for the first segment. Returns False when asked to stop before the boundary; all work is then
    in a rolling checkpoint. A segment that was finished before is not trained again: its card is written anew.
    """
    ranks, boundary = run.compute.ranks, run.folder / boundary_name(until_epoch)
    finished = ranks.is_main and _card_of_finished(run, until_epoch)
    if ranks.from_main(bool(finished)):
        if finished:
            print(f"{boundary} was finished before: its card is written anew", flush=True)
            _finish(run, finished)
        return True
    training = Pretraining(run)
    end = until_epoch * training.steps_per_epoch
    source = _continue_from(training, run.checkpoints(), end)
    _check_source(run, training, source, until_epoch, previous)
    attempt.begin(training.step, run.recipe["global_batch"], steps_logged(run.folder / HISTORY) if ranks.is_main else 0)
    if training.step < end:
        _announce(training, end, source)
        training.attempts.append(
            {**training.numerics, "start_step": training.step, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        )
        if not _train(training, end, boundary, attempt):
            return False
    if not ranks.from_main(boundary.exists()):
        _take_over(training, attempt, source, boundary)
    if ranks.is_main:
        _finish(run, checkpoint.find_card(boundary))
    ranks.barrier()
    return True


def _take_over(training: "Pretraining", attempt: Attempt, source: Path, boundary: Path) -> None:
    """Make a boundary of the checkpoint at its step. A rolling one, where segments were cut anew, has no health yet."""
    run, is_main = training.run, training.ranks.is_main
    card = checkpoint.find_card(source) if is_main else {}
    if training.ranks.from_main("health" not in card):
        card |= {"health": _health_now(training, attempt), "floors": dict(training.method.floors)}
    if is_main:
        record_run(run.folder, run.recipe, run.revision, card=card)
        checkpoint.take_over(source, boundary)


def _health_now(training: "Pretraining", attempt: Attempt) -> dict[str, float]:
    """Return the figures of a segment's end, as the loop measures them. Collective."""
    rows, step = max(1, training.steps_per_epoch // ROWS_PER_EPOCH), training.step
    spe = training.steps_per_epoch
    health = Health(training.method, training.run, attempt, start=step - 1, steps_per_epoch=spe, row_interval=rows)
    return health.figures(step, last=True) | health.milestone(step)


def _finish(run: Run, card: Mapping) -> None:
    """Record a segment as finished, and write the card for which Snakemake waits."""
    epoch = round(card["epoch"])
    record_run(run.folder, run.recipe, run.revision, boundary=epoch, card=card)
    write_card(run.folder / boundary_name(epoch), card)


def _card_of_finished(run: Run, epoch: int) -> dict | None:
    """Return the card of a segment that was finished before, by the run's record; None where it has to be trained.

    Its checkpoint may be gone, to save space, or damaged, where a later one is there.
    """
    done = work_done(run.folder, run.recipe, run.revision)  # refuses a folder of another recipe
    boundary = run.folder / boundary_name(epoch)
    card, mine = checkpoint.known_card(boundary), {key: run.identity()[key] for key in IDENTITY}
    if card and any(card.get(key) != value for key, value in mine.items()):
        return None  # of another seed or dataset: what continues from it will say so
    if boundary.exists() and card and provenance.sha256(boundary) == card.get("sha256"):
        return card
    later = any((checkpoint.known_card(path) or {}).get("epoch", 0) > epoch for path in run.checkpoints())
    if epoch not in done.boundaries or not later:
        return None
    if boundary.exists() and card:
        checkpoint.set_aside(boundary, f"{boundary}: its checksum is not the recorded one", "later ones are there")
    return card or {**mine, "epoch": float(epoch), "note": "its checkpoint and card were deleted"}


def _check_source(run: Run, training: "Pretraining", source: Path | None, until_epoch: int, previous: int) -> None:
    """Raise UserError where training up to `until_epoch` from `source` would undo work, or repeat what is lost."""
    done = work_done(run.folder, run.recipe, run.revision)
    end, spe = until_epoch * training.steps_per_epoch, training.steps_per_epoch
    if any(checkpoint.step_of(path) > end for path in run.checkpoints()):
        raise UserError(
            f"{run.folder} has reached epoch {done.reached:g} already; to train up to {until_epoch} once more would "
            "undo that: ask for a later epoch, or raise `revision`"
        )
    if previous and training.step < previous * spe:
        wanted = run.folder / boundary_name(previous)
        raise UserError(
            f"{wanted} is not there, nor anything later: restore it, or train its segment again: snakemake --cores all "
            f"--force {wanted.with_suffix('.json')}"
        )
    if source is None and done.reached > 0:
        raise UserError(
            f"{run.folder} has reached epoch {done.reached:g}, but no checkpoint of it is left: restore one (*.damaged "
            "are those that failed their checksum), or delete the folder to begin anew"
        )


def _continue_from(training: Pretraining, candidates: list[Path], end: int) -> Path | None:
    """Restore the newest checkpoint at or before step `end`. Rank 0 chooses; the others read the same file."""
    ranks, found = training.ranks, None
    if ranks.is_main:
        found = checkpoint.newest_checkpoint([path for path in candidates if checkpoint.step_of(path) <= end])
    path = ranks.from_main(found and found[0])
    if path is None:
        return None
    state = found[1] if found else checkpoint.load_checkpoint(path)
    changed = provenance.numerics_differences(training.numerics, state["numerics"])
    if ranks.is_main and changed:
        print(
            f"note: the run continues under other numerics; its bits may differ from here on: {'; '.join(changed)}",
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
        f"{run.compute.precision}, {run.compute.threads} threads each",
        flush=True,
    )
    if source is None:
        print(treatment_table(training.treatments), flush=True)


def _train(training: Pretraining, end: int, boundary: Path, attempt: Attempt) -> bool:
    """The loop. Returns False when it was asked to stop."""
    run, ranks, compute = training.run, training.ranks, training.run.compute
    start, spe = training.step, training.steps_per_epoch
    if ranks.any(attempt.stop.reason is not None):
        return _stopped(training, attempt)
    progress = Progress(
        start=start,
        segment_end=end,
        run_end=training.total_steps,
        steps_per_epoch=spe,
        batch=run.recipe["global_batch"],
    )
    events = Events(run.folder / FOLDER, start=start) if run.tensorboard and ranks.is_main else None
    history = History(run.folder / HISTORY, start=start, also=events) if ranks.is_main else None
    row_interval = max(1, spe // ROWS_PER_EPOCH)
    health = Health(
        training.method, run, attempt, start=start, steps_per_epoch=spe, row_interval=row_interval, events=events
    )
    pinned = compute.device.type == "cuda"
    with contextlib.closing(Saver(ranks, attempt, run.checkpoint_minutes)) as saver:
        for batch in progress.counted(training.batches.read(start, end, workers=compute.workers, pin_memory=pinned)):
            step = training.step
            loss = training.train_step(batch)
            done = training.step
            attempt.at(done)
            figures = health.figures(done, last=done == end)
            logged = done % row_interval == 0
            if logged or done == end:
                row = training.row(step, loss, saver)
                if ranks.is_main:
                    row |= progress.since_last_row(done) | figures
                    if logged:
                        history.append(row)
                    if progress.due(done):
                        print(progress.line(done, row), flush=True)
            if done == end or health.is_milestone(done):
                figures |= health.milestone(done)
            if done == end:
                training.save(boundary, loss, saver, wait=True, health=figures)
                return True
            decision = saver.decide()
            if decision is not Decision.GO_ON:
                training.save(run.partial / f"step_{done:09d}.pt", loss, saver, wait=decision is Decision.STOP)
            if decision is Decision.STOP:
                return _stopped(training, attempt)
        return True


def _stopped(training: Pretraining, attempt: Attempt) -> bool:
    if training.ranks.is_main:
        reason = attempt.stop.reason or "another rank's request"
        print(f"stopped by {reason} after step {training.step}: saved, to be continued", flush=True)
        attempt.ended(f"stopped by {reason}")
    return False
