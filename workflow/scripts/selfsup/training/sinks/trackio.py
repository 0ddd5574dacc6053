"""The rows of history.csv and knn.csv as a run of trackio; optional, needs trackio.

In <folder>/trackio, without a network: `TRACKIO_DIR=<folder>/trackio trackio show` shows it. Where TRACKIO_DIR is
set already, it is added to what is there.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from selfsup.training.sinks import PROJECT, curves_of, run_id, wants


class Tracker:
    """Logs rows at their step, in one run over all jobs. Steps that were undone stand there twice."""

    def __init__(self, folder: Path, *, start: int):
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))  # read when trackio is imported
        import trackio

        machine = {"auto_log_gpu": False, "auto_log_cpu": False}  # figures of the run alone
        name = run_id(folder / "trackio")
        self._run = trackio.init(project=PROJECT, name=name, resume="allow", embed=False, **machine)

    @staticmethod
    def check() -> None:
        wants("trackio", "trackio")

    def append(self, row: Mapping[str, float]) -> None:
        self._run.log(curves_of(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()
