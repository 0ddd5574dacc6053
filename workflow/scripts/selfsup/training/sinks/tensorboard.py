"""The rows of history.csv and knn.csv as TensorBoard events, continuous over segments; optional, needs tensorboard."""

from collections.abc import Mapping
from pathlib import Path

from selfsup.training.sinks import curves_of, wants


class Tracker:
    """Writes rows as scalars at their step, into <folder>/tensorboard; older events of undone steps are hidden."""

    def __init__(self, folder: Path, *, start: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and is optional

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    @staticmethod
    def check() -> None:
        wants("tensorboard", "tensorboard")

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row: a scalar per column."""
        for name, value in curves_of(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()  # a job may be killed at any moment

    def close(self) -> None:
        self._writer.close()
