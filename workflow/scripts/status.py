"""Print where each run of config.yaml stands: segment, epoch, loss, k-NN, speed, time left, newest checkpoint, job.

    python workflow/scripts/status.py

Runs that were made with --configfile are shown too, as they were run. Reads config.yaml and what the workflow and its
jobs leave under --results; asks Slurm, where there is one, for the jobs that work. Needs no torch, no Snakemake and no
job: for a login node, while jobs run.
"""

import argparse
from pathlib import Path

from selfsup.config import load_config
from selfsup.errors import run_script
from selfsup.reports.status import standings, to_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    arguments = parser.parse_args()
    print(to_text(list(standings(load_config(arguments.config), arguments.results))), end="")


if __name__ == "__main__":
    run_script(main)
