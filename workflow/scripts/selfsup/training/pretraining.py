"""The state of a pretraining and its step: forward, backward, update, and the checkpoint of it all.

Apart from the state in checkpoints, everything that a step needs is a function of (recipe, seed, step).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from selfsup import provenance
from selfsup.atomic_files import flush
from selfsup.data.loader import Batches, LoadedBatch, ViewMaker
from selfsup.data.store import STATISTICS
from selfsup.engine import checkpoint
from selfsup.engine.device import autocast
from selfsup.engine.equal_ranks import check_equal_on_all_ranks
from selfsup.engine.gradients import GradientAverager
from selfsup.engine.late_numbers import LateNumbers
from selfsup.engine.network_draws import NetworkDraws
from selfsup.engine.saving import Saver
from selfsup.errors import PermanentError, UserError
from selfsup.job.waiting import waiting_for_ranks
from selfsup.methods import Batch, Output, Step, build_method
from selfsup.models import counted_together, recompute_activations, software
from selfsup.optim import build_optimizer, learning_rate, load_optimizer_state
from selfsup.segments import record_run, write_card
from selfsup.training.finite import FiniteGuard
from selfsup.training.run import Run
from selfsup.training.static_step import OneGraph, StaticViewMaker, compiled

COMPILED_VARIANTS = 64  # of one function, at most: a ResNet-50 over ranks has about 16
ROWS_PER_EPOCH = 10  # of history.csv; each reads a loss back from the device, on a GPU when the next is due


class Pretraining:
    """The state of a pretraining: method, optimiser, gradient scaler. `step` counts attempted steps from 0.

    `skipped` counts the steps whose fp16 gradients overflowed: they count as steps, but change no weight and no moving
    average. A step never synchronises the host with the device.
    """

    def __init__(self, run: Run):
        ranks, device = run.compute.ranks, run.compute.device
        self.run, self.ranks, self.step = run, ranks, 0
        self._one_graph: OneGraph | None = None
        self._open_batches()
        context = {"total_steps": self.total_steps, "ranks": ranks, "device": device}
        self.method = build_method(run.recipe, seed=run.seed, **context)
        self._place_networks()
        self.treatments = self.method.parameter_groups()
        self.averager = GradientAverager([one.parameter for one in self.treatments], ranks)
        self.optimizer = build_optimizer(self.treatments, run.recipe["optimizer"])
        if run.compute.compiled_update:
            self._compile_update()
        self._decaying = [group["weight_decay"] != 0 for group in self.optimizer.param_groups]
        if "weight_decay" in self.method.schedules(0) and not any(self._decaying):
            raise PermanentError(
                f"{run.recipe['method']} has a schedule of weight decay, but optimizer.weight_decay is 0, so "
                "it has no effect: set any other number, which the schedule replaces"
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.compute.precision == "fp16")
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._last_skipped: torch.Tensor | None = None  # bool on the device, in fp16
        if self.scaler.is_enabled():  # now, so that the first step is like the others
            self._last_skipped = torch.zeros((), dtype=torch.bool, device=device)
            self.scaler.scale(self._skipped)  # the scaler makes its tensors when it is asked first
        self._scalars: dict[str, torch.Tensor] = {}  # of the newest step, for history.csv; the method chooses them
        self._draws = NetworkDraws(run.seed, ranks.rank, device)
        self._finite = FiniteGuard(ranks, device, self.total_steps)
        self.numerics = run.compute.numerics() | software(run.recipe)
        self.code_revision = provenance.code_revision()  # read now, because a pull during the run does not change it
        self.attempts: list[dict[str, Any]] = []
        self._known_equal = False  # on all ranks

    def _open_batches(self) -> None:
        run, compute = self.run, self.run.compute
        place = {"rank": self.ranks.rank, "world_size": self.ranks.size, "device": compute.device}
        recipe = run.recipe_of_views
        self.batches = Batches(run.store.train, recipe, seed=run.seed, stage="pretrain", **place)
        static = compute.one_graph or compute.static_views
        maker = StaticViewMaker if static else ViewMaker
        self.make_views = maker(run.store.train, recipe, compute.device, compute.memory_format)
        self.steps_per_epoch = self.batches.steps_per_epoch
        if self.steps_per_epoch == 0:
            raise PermanentError(
                f"global_batch is {run.recipe['global_batch']}, more than the {len(run.store.train)} training "
                f"images of {run.store.folder}"
            )
        self.total_steps = run.recipe["epochs"] * self.steps_per_epoch
        self.row_interval = max(1, self.steps_per_epoch // ROWS_PER_EPOCH)  # steps between two rows of history.csv

    def _place_networks(self) -> None:
        compute, networks = self.run.compute, self.method.networks
        networks.to(compute.device, memory_format=compute.memory_format)
        self.method.connect()
        if compute.one_graph and compute.recompute:
            raise UserError("compute.one_graph is true, and cannot go with recompute, too: set one of them to false")
        if compute.combined_kernels and not (compute.one_graph or compute.compile):
            raise UserError(
                "compute.combined_kernels is true, but nothing is compiled whose kernels could be combined: set "
                "one_graph or compile to true, too"
            )
        # What is computed again inside of a compiled network is right in a whole graph alone.
        whole_graphs = compute.recompute and compute.compile and self.ranks.size == 1
        if compute.recompute:
            recompute_activations(networks, self.run.recipe["augment"]["size"], whole_graphs=whole_graphs)
        if compute.one_graph:
            self._one_graph = OneGraph(self.method, self.make_views, compute)
        elif compute.compile:
            # Over ranks a graph ends at every batch norm, and all blocks of both networks are variants of one function;
            # variants beyond the limit, 8 by default, would not be compiled. torch 2.6 knows the limit by this name.
            torch._dynamo.config.cache_size_limit = COMPILED_VARIANTS
            for network in _single_networks(networks):
                network.compile(dynamic=False, fullgraph=whole_graphs, options=compute.inductor_options or None)

    def _compile_update(self) -> None:
        compute, optimizer = self.run.compute, self.run.recipe["optimizer"]["name"]
        reason = None
        if not compute.one_graph:
            reason = "one_graph is not"
        elif not hasattr(self.optimizer, "compile_update"):
            reason = f"the optimiser is {optimizer}, wanted lars"
        elif "weight_decay" in self.method.schedules(0):
            reason = f"{self.run.recipe['method']} has a schedule of weight decay"
        if reason:
            raise UserError(f"compute.compiled_update is true, but {reason}: set compiled_update to false")
        self.optimizer.compile_update(partial(compiled, compute=compute))

    @property
    def skipped(self) -> int:
        """The number of steps skipped so far. Waits for the device."""
        return int(self._skipped)

    def learning_rate(self, step: int) -> float:
        settings = self.run.recipe["optimizer"]
        return learning_rate(
            step if settings["lr_update"] == "step" else step - step % self.steps_per_epoch,
            total_steps=self.total_steps,
            warmup_steps=settings["warmup_epochs"] * self.steps_per_epoch,
            peak=settings["peak_lr"],
            start_factor=settings["lr_start_factor"],
            floor=settings["lr_floor"],
            cosine_extra_steps=settings["cosine_extra_epochs"] * self.steps_per_epoch,
        )

    def train_step(self, batch: LoadedBatch) -> torch.Tensor:
        """Do one optimiser step and return this rank's loss, a scalar still on the device."""
        with self._one_graph.explained() if self._one_graph else contextlib.nullcontext():
            loss = self._attempted(batch)
        self.step += 1
        return loss

    def _attempted(self, batch: LoadedBatch) -> torch.Tensor:
        self.method.before_step(self._step_for_method())
        self._set_schedules()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(batch)
        self._finite.note(self.step, loss)
        self.method.after_backward(self._step_for_method())
        self._update_weights()
        self.method.after_step(self._step_for_method())
        return loss

    def _step_for_method(self) -> Step:
        return Step(self.step, self._last_skipped)

    def _set_schedules(self) -> None:
        schedules = {"lr": self.learning_rate(self.step), **self.method.schedules(self.step)}
        for group, decays in zip(self.optimizer.param_groups, self._decaying, strict=True):
            group["lr"] = schedules[group["lr_schedule"]] * group["lr_scale"]
            if decays and "weight_decay" in schedules:
                group["weight_decay"] = schedules["weight_decay"]

    def _update_weights(self) -> None:
        if self.run.compute.compiled_update:
            self.optimizer.rates = self._one_graph.rates.unbind()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        if self.scaler.is_enabled():
            # What the scaler has found; asking it through its public methods would make the host wait.
            found = self.scaler._found_inf_per_device(self.optimizer).values()
            self._last_skipped = torch.stack(list(found)).sum() > 0
            self._skipped += self._last_skipped
        self.scaler.update()

    def _accumulate_gradients(self, batch: LoadedBatch) -> torch.Tensor:
        """Compute the mean gradient over micro-batches and ranks, times the scaler's factor, and return the loss."""
        parts = self.run.recipe["micro_batches"]
        total, self._scalars = torch.zeros((), device=self.run.compute.device), {}
        for part, output in enumerate(self._outputs(batch, parts), 1):
            self._draws.begin(self.step, part - 1)
            loss, scalars = self._checked(output())
            with self.averager.last_backward() if part == parts else contextlib.nullcontext():
                self.scaler.scale(loss / parts).backward()
            total += loss.detach() / parts
            for name, value in scalars.items():
                self._scalars[name] = self._scalars.get(name, 0) + value.detach() / parts
        return total

    def _outputs(self, batch: LoadedBatch, parts: int) -> Iterator[Callable[[], Output]]:
        """Yield for each micro-batch a function that computes its loss."""
        compute, step = self.run.compute, self._step_for_method()
        if self._one_graph:
            rates = np.array([group["lr"] for group in self.optimizer.param_groups], np.float32)
            yield from self._one_graph.losses(batch, step, parts, rates if compute.compiled_update else None)
            return

        # Not of compiled networks, whose graphs would depend on how many batch norms came before.
        counting = contextlib.nullcontext if compute.compile else counted_together

        def loss_of(piece: Batch) -> Output:
            with autocast(compute.device, compute.precision), counting():
                return self.method.loss(piece, step)

        for piece in Batch.of(self.make_views(batch), batch.indices, batch.labels).chunk(parts):
            yield partial(loss_of, piece)

    def _checked(self, output: Output) -> Output:
        for name, value in {"the loss": output.loss, **output.scalars}.items():
            if value.numel() != 1:
                raise PermanentError(
                    f"{self.run.recipe['method']}: {name} has the shape {list(value.shape)}, wanted one number: take "
                    "its mean"
                )
        return output

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        return {
            **self.run.identity,
            **self._normalisation(),
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

    def _normalisation(self) -> dict[str, dict]:
        """Return the numbers that the recipe leaves to the dataset, for the encoder's card."""
        own, found = self.run.recipe["augment"], self.run.recipe_of_views["augment"]
        numbers = {key: list(found[key]) for key in STATISTICS}
        return {"normalisation": numbers} if any(own[key] != numbers[key] for key in STATISTICS) else {}

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises UserError with the differences if it is of another run."""
        checkpoint.check_belongs(path, state, self.run.identity)
        self.method.load_state_dict(state["method"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.attempts = state["step"], list(state["attempts"])
        self._skipped.fill_(state["skipped"])
        if self.scaler.is_enabled():
            self._last_skipped = torch.tensor(state["last_skipped"], device=self.run.compute.device)

    def checked_loss(self, loss: torch.Tensor, saver: Saver | None = None) -> float:
        """Return the mean over ranks of this step's loss, after checking that all losses and the weights are finite.

        Collective; waits for the device. Raises PermanentError on every rank, with the first bad step and the last good
        checkpoint.
        """
        examined = self.method.networks.parameters()
        self._check_finite(self._finite.first_bad_step(self.step - 1, examined), saver)
        return float(self.ranks.mean(loss))

    def _check_finite(self, bad_step: int | None, saver: Saver | None) -> None:
        if bad_step is not None:
            if saver:
                saver.finish()  # the checkpoint being written is good, and may be the last
            raise self._not_finite(bad_step)

    def _not_finite(self, step: int) -> PermanentError:
        good = checkpoint.newest_by_card(self.run.checkpoints())
        precision = "" if self.run.compute.precision == "fp32" else ", or set precision: fp32"
        return PermanentError(
            f"loss or weights are not finite at step {step} (epoch {step / self.steps_per_epoch:.2f}): nothing was "
            f"written since; last good checkpoint: {good or 'none'}. Lower optimizer.peak_lr and raise `revision`"
            f"{precision}"
        )

    def note_row(self, loss: torch.Tensor) -> Callable[[Saver], dict[str, float]]:
        """Note the row of history.csv for the newest step: means over ranks. Collective; does not wait for the device.

        Returns a function that returns the row, collective too. It waits until the device has come as far as now, and
        raises PermanentError on every rank if a loss until now was not finite.
        """
        step, names = self.step - 1, sorted(self._scalars)
        means = [self.ranks.mean(one) for one in (loss, *(self._scalars[name] for name in names))]
        late = LateNumbers([self._finite.bad_step, self._skipped, *means], self.run.compute.device)
        row = {"step": step, "epoch": step // self.steps_per_epoch, "loss": 0.0}
        row |= {"lr": self.learning_rate(step), **self.method.schedules(step)}

        def read(saver: Saver) -> dict[str, float]:
            with waiting_for_ranks():
                bad_step, skipped, *values = late.read()
            self._check_finite(self._finite.first_of_ranks(bad_step), saver)
            numbers = dict(zip(["loss", *names], values, strict=True))
            return row | numbers | ({"skipped": int(skipped)} if self.scaler.is_enabled() else {})

        return read

    def save(
        self,
        path: Path,
        loss: torch.Tensor,
        saver: Saver,
        *,
        wait: bool,
        health: Mapping[str, float] | None = None,
    ) -> None:
        """Write a checkpoint after checking that the loss and all parameters are finite on every rank.

        Before the first checkpoint of a job the method's state must also be equal on all ranks.

        health: a boundary's figures, for its JSON file, in which the rule health_gate finds them and their floors.
        """
        card = {key: value for key, value in self.run.identity.items() if key != "recipe"}
        mean_loss = self.checked_loss(loss, saver)
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
            for rows in run.rows:  # before the checkpoint has its name: those of its steps are never made again
                flush(rows)
            # A boundary's own card is written last, when the segment is finished, because Snakemake waits for it.
            if health is None:
                write_card(path, card)
            else:
                record_run(run.folder, run.recipe, run.revision, card=card)

        saver.save(path, self.state, card, wait=wait, then=tidy, note=record)


def _single_networks(networks: nn.Module) -> Iterator[nn.Module]:
    """Yield the backbones and heads in a method's nested dicts of networks."""
    if isinstance(networks, nn.ModuleDict):
        for network in networks.values():
            yield from _single_networks(network)
    else:
        yield networks
