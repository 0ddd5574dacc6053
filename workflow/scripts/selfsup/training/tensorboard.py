"""The rows of history.csv and knn.csv as TensorBoard events, continuous over segments; optional, needs tensorboard."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from selfsup.errors import UserError

FOLDER = "tensorboard"
NOT_CURVES = ("step", "epoch", "bank", "queries")


def check_tensorboard() -> None:
    """Raise UserError if the package is missing; to be called before anything takes long."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "compute.tensorboard is true, but the package tensorboard is not installed: pip install tensorboard, or "
            "set compute.tensorboard to false; history.csv has the same figures"
        )


class Events:
    """Writes rows as scalars at their step. start: how many steps are done; older events of later steps are hidden."""

    def __init__(self, folder: Path, *, start: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and is optional

        self._writer = SummaryWriter(str(folder), purge_step=start)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row: a scalar per column."""
        for name, value in row.items():
            if name not in NOT_CURVES:
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()  # a job may be killed at any moment
