"""The rows of history.csv and knn.csv as TensorBoard events, continuous over segments. An option, an extra package."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from selfsup.errors import UserError

FOLDER = "tensorboard"
NOT_CURVES = ("step", "epoch", "bank", "queries")


def check_tensorboard() -> None:
    """Raise UserError where the package is missing; called before anything long begins."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "compute.tensorboard is true, but the package tensorboard is not installed: pip install tensorboard, or "
            "set it to false; history.csv has the same figures"
        )


class Events:
    """Writes rows as scalars at their step. start: steps done; what was written of later ones before is hidden."""

    def __init__(self, folder: Path, *, start: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and needs the package

        self._writer = SummaryWriter(str(folder), purge_step=start)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row as scalars, one per column."""
        for name, value in row.items():
            if name not in NOT_CURVES:
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()  # a job may be killed at any moment
