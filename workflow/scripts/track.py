"""Replay a run into a tracker, from its history.csv and knn.csv: each step once, however often its jobs were killed.

    python workflow/scripts/track.py --run results/digits/seed0 --tracker tensorboard

The run may be finished or still going on. Reads <run>/pretrain/history.csv and <run>/knn.csv. Writes
<run>/pretrain/tracked/<tracker>, anew each time, so that it shows what the files hold now.
"""

import argparse
import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

from selfsup.csv_cells import number, text_of
from selfsup.errors import UserError, run_script
from selfsup.layout import RunFolder
from selfsup.logs import logger
from selfsup.settings.registries import TRACKERS
from selfsup.training.sinks import check_trackers, open_trackers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="folder of a run, results/<experiment>/seed<n>")
    parser.add_argument("--tracker", default="tensorboard", help=f"{', '.join(TRACKERS)}; default tensorboard")
    arguments = parser.parse_args()
    check_trackers([arguments.tracker])
    run = RunFolder(arguments.run)
    rows = sorted([*rows_of(run.pretrain.history), *rows_of(run.knn, counted_from=1)], key=lambda row: row["step"])
    if not rows:
        raise UserError(
            f"{run.pretrain.history} has no rows yet, or is not there: --run wants results/<experiment>/seed<n>"
        )
    folder = run.pretrain.folder / "tracked"
    shutil.rmtree(folder / arguments.tracker, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    (tracker,) = open_trackers([arguments.tracker], folder, start=0)
    for row in rows:
        tracker.append(row)
    tracker.close()
    logger.info("%s: %d rows, up to step %d", folder / arguments.tracker, len(rows), rows[-1]["step"])


def rows_of(path: Path, counted_from: int = 0) -> Iterator[dict[str, float]]:
    """Yield the complete rows of a CSV, without blank cells; none where there is none. counted_from: its first step.

    Raises UserError that names the line that is damaged.
    """
    text = text_of(path) if path.exists() else ""
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if None in row:
            raise UserError(f"{where}: more cells than columns: restore it, or delete the line")
        if None not in row.values():
            cells = {name: number(where, name, value, float) for name, value in row.items() if value}
            yield cells | {"step": number(where, "step", row.get("step", ""), int) - counted_from}


if __name__ == "__main__":
    run_script(main)
