"""The rows of history.csv and knn.csv as a run of MLflow; optional, needs mlflow or mlflow-skinny.

Files in <folder>/mlflow, unless MLFLOW_TRACKING_URI names a server or a database: without a daemon or a lock, for a
cluster's file systems; `mlflow migrate-filestore` moves them into a database.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from selfsup.training.sinks import PROJECT, curves_of, run_id, run_name, wants


class Tracker:
    """Logs rows at their step, in one run over all jobs. Steps that were undone stand there twice."""

    def __init__(self, folder: Path, *, start: int):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 asks for; others can still be named
        from mlflow import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow" / "runs").resolve().as_uri()
        self._client = MlflowClient(tracking_uri=where)
        self._run = run_id(folder / "mlflow", make=lambda: self._new_run(run_name(folder)))

    def _new_run(self, name: str) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT)
        return self._client.create_run(experiment, run_name=name).info.run_id

    @staticmethod
    def check() -> None:
        wants("mlflow", "mlflow-skinny")

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; a figure that is not finite is left out, which MLflow would refuse in some of its stores."""
        from mlflow.entities import Metric

        now, figures = round(time.time() * 1000), {name: float(value) for name, value in curves_of(row).items()}
        metrics = [
            Metric(name, value, now, int(row["step"])) for name, value in figures.items() if math.isfinite(value)
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)
