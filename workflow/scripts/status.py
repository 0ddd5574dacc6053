"""Print where each run of config.yaml stands: segment, epoch, loss, k-NN, speed, time left, newest checkpoint, job.

    python workflow/scripts/status.py
    python workflow/scripts/status.py --watch        # again every ten seconds, until Ctrl-C

Runs that were made with --configfile are shown too, as they were run. Reads config.yaml and what the workflow and its
jobs leave under --results; asks Slurm, if there is one, which jobs are running. Needs no torch, no Snakemake and no
job of its own: use it on a login node while jobs run.
"""

import argparse
import contextlib
import time
from datetime import datetime
from pathlib import Path

from selfsup.config import load_config
from selfsup.errors import run_script
from selfsup.reports.status import standings, to_text

CLEAR = "\033[H\033[2J"  # a terminal's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="refresh it every so many seconds; default 10",
    )
    arguments = parser.parse_args()
    if arguments.watch is None:
        print(standing(arguments), end="")
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            text = standing(arguments)  # before the screen is cleared: the old one stays until the new one is there
            print(
                f"{CLEAR}{datetime.now():%H:%M:%S}, again every {arguments.watch:g} s, Ctrl-C ends\n\n{text}",
                end="",
                flush=True,
            )
            time.sleep(arguments.watch)


def standing(arguments: argparse.Namespace) -> str:
    return to_text(list(standings(load_config(arguments.config), arguments.results)))


if __name__ == "__main__":
    run_script(main)
