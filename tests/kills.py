"""A pretraining as processes that are killed outright, and one that is not: their last checkpoints."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from many_ranks import forking
from runs import on_cpu, train
from selfsup.data.store import PackedStore
from selfsup.engine.checkpoint import load_checkpoint
from selfsup.layout import boundary_name
from selfsup.models.backbone import LAYERS
from selfsup.recipe import Recipe, canonical, load_recipe
from selfsup.training import static_step
from selfsup.training.pretraining import Pretraining, Run

SCRIPTS = Path(__file__).parents[1] / "workflow/scripts"
# It kills itself before the first step from the given one on by when there is a checkpoint to go on from: who looks
# from outside may come late.
MORTAL = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
last, backend = float(sys.argv.pop(1)), sys.argv.pop(1)
import pretrain
from selfsup.errors import run_script
from selfsup.training import static_step
from selfsup.training.pretraining import Pretraining

def train_step(self, batch, honest=Pretraining.train_step):
    if self.step >= last and list(self.run.partial.glob("step_*.pt")):
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, batch)

Pretraining.train_step = train_step
static_step.BACKEND = backend
run_script(pretrain.main)
"""


def trained(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *arguments: str,
    kills: tuple[int, ...] = (),
    backend: str = static_step.BACKEND,
    program: Sequence[str | Path] = (sys.executable, "-c", MORTAL),
) -> dict:
    """Train to the end, killed by SIGKILL after each of these steps; return the last checkpoint.

    A rolling checkpoint is written several times a second, so that each process continues another one's. backend: what
    compiles a step as one graph. program: what starts MORTAL.
    """
    own = ["--recipe", canonical(recipe), "--data", str(data), "--run-folder", str(folder)]
    own += ["--until-epoch", str(recipe["epochs"]), "--checkpoint-minutes", "0.002", *arguments]
    program = [*map(str, program), str(SCRIPTS)]
    for step in kills:
        done = subprocess.run([*program, str(step), backend, *own], stdout=subprocess.DEVNULL)
        assert done.returncode == -signal.SIGKILL, f"ended before step {step}"
    done = subprocess.run([*program, str(math.inf), backend, *own], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_checkpoint(folder / boundary_name(recipe["epochs"]))


def kill_in_process(overrides: Mapping, store: PackedStore, folder: Path, step: int) -> None:
    """Train the digits recipe in a process that SIGKILL ends before the first step from this one on by when there is a
    rolling checkpoint. It is forked, which costs a tenth of a process of `trained`."""
    process = forking().Process(target=_mortal, args=(dict(LAYERS), overrides, store, folder, step))
    process.start()
    process.join(600)
    process.kill()  # one that has ended keeps how
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode}"


def _mortal(layers: Mapping, overrides: Mapping, store: PackedStore, folder: Path, last: int) -> None:
    torch.set_num_threads(1)
    LAYERS.update(layers)
    honest = Pretraining.train_step

    def train_step(self, batch):
        if self.step >= last and list(self.run.partial.glob("step_*.pt")):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, batch)

    Pretraining.train_step = train_step
    recipe = load_recipe("digits", overrides)
    train(Run(recipe, 0, 1, store, folder, on_cpu(), checkpoint_minutes=0.0), recipe["epochs"])
