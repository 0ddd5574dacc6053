"""A pretraining as processes that are killed outright, and one that is not: their last checkpoints."""

import contextlib
import csv
import subprocess
import sys
from pathlib import Path

from selfsup.engine.checkpoint import load_checkpoint
from selfsup.layout import boundary_name
from selfsup.recipe import Recipe, canonical
from workflows import wait_until

PRETRAIN = Path(__file__).parents[1] / "workflow/scripts/pretrain.py"


def reached(folder: Path) -> int:
    """The last step that history.csv tells of; -1 for none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(list(csv.DictReader((folder / "history.csv").open()))[-1]["step"])
    return -1


def trained(recipe: Recipe, data: Path, folder: Path, *arguments: str, kills: tuple[int, ...] = ()) -> dict:
    """Train to the end, killed by SIGKILL after each of these steps; return the last checkpoint.

    A rolling checkpoint is written several times a second, so that each process continues another one's.
    """
    own = ["--recipe", canonical(recipe), "--data", str(data), "--run-folder", str(folder)]
    own += ["--until-epoch", str(recipe["epochs"]), "--checkpoint-minutes", "0.005", *arguments]
    for step in kills:
        process = subprocess.Popen([sys.executable, str(PRETRAIN), *own], stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: reached(folder) >= step or process.poll() is not None, f"step {step}")  # noqa: B023
            assert process.poll() is None, f"ended before step {step}"
        finally:
            process.kill()
            process.wait()
    done = subprocess.run([sys.executable, str(PRETRAIN), *own], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_checkpoint(folder / boundary_name(recipe["epochs"]))
