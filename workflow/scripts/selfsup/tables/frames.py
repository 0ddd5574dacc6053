"""CSV files as pandas has them, checked: a damaged or badly edited file is told in a line."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from selfsup.csv_cells import number
from selfsup.errors import UserError

# Of a metrics.csv: what a table wants of it.
METRICS = ("top1", "top5", "n_test", "protocol", "encoder_sha256", "numerics_changes")
NEVER_BLANK = ("protocol", "encoder_sha256", "numerics_changes", "n_test")
NUMBERS = (
    *("top1", "top5", "figure", "best_top1", "best_epoch", "n_test", "n_train", "labels", "seed", "epochs"),
    *("numerics_changes", "width", "global_batch"),
)


def read_metrics(path: Path, wanted: Iterable[str] = ("top1",)) -> pd.DataFrame:
    """Return the one row of a metrics.csv. Raises UserError for a file that has something else.

    wanted: the columns without which it is refused; curves are drawn of files of older versions, which have fewer.
    """
    try:
        metrics = pd.read_csv(path)
    except ValueError as error:  # as all of pandas' own, and what is no text
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not the metrics of one evaluation ({first}): delete it and evaluate again") from error
    missing = [name for name in wanted if name not in metrics or (name in NEVER_BLANK and metrics[name].isna().any())]
    if missing or len(metrics) != 1:
        raise UserError(
            f"{path}: not the metrics of one evaluation (lacks {', '.join(sorted(missing)) or 'a line'}): delete it "
            "and evaluate again"
        )
    return frame_of_numbers(path, metrics, NUMBERS, "delete the file and evaluate again")


def frame_of_numbers(
    path: Path, frame: pd.DataFrame, names: Iterable[str], way: str = "restore it, or delete the line"
) -> pd.DataFrame:
    """Return the frame. Raises UserError that names a cell of these columns that is neither blank nor a number.

    way: out of it.
    """
    for name in names:
        if name in frame and not pd.api.types.is_numeric_dtype(frame[name]):
            for place, value in frame[name].dropna().items():
                number(f"{path}: line {place + 2}", name, str(value), float, way)
    return frame
