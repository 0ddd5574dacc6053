"""The rows of history.csv and knn.csv as a run of Weights & Biases; optional, needs wandb.

Offline, in <folder>/wandb: compute nodes have no network. `wandb sync --append <folder>/wandb/offline-run-*` sends it
from a machine that has one. With WANDB_MODE=online it is sent at once; WANDB_PROJECT and WANDB_ENTITY are heeded.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from selfsup.training.sinks import PROJECT, curves_of, run_id, run_name, wants


class Tracker:
    """Logs rows at their step, under one id over all jobs of a run. Of undone steps it keeps what was told first."""

    def __init__(self, folder: Path, *, start: int):
        import wandb

        mode, project = os.environ.get("WANDB_MODE", "offline"), os.environ.get("WANDB_PROJECT", PROJECT)
        known = {"id": run_id(folder / "wandb"), "name": run_name(folder), "resume": "allow"}
        quiet = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(
            project=project, mode=mode, dir=str(folder), settings=quiet, reinit="create_new", **known
        )

    @staticmethod
    def check() -> None:
        wants("wandb", "wandb")

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row. One step may have several, of history.csv and of knn.csv; a step is kept once it is over."""
        self._run.log(curves_of(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()
