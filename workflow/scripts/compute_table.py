"""Write what the experiments have cost: GPU-hours, wasted GPU-hours, speed, checkpoints, time in the queue.

    python workflow/scripts/compute_table.py --output results/compute.csv

Reads config.yaml and the ledgers under --results, and asks sacct, if there is one, how long jobs have waited. Writes
--output, a row for each stage of each run, beside the paper's GPU-hours.
"""

import argparse
from pathlib import Path

from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.errors import run_script
from selfsup.logs import logger
from selfsup.reports.costs import costs_paid, to_csv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    arguments = parser.parse_args()
    config = config_as_run(arguments.config, arguments.results)
    rows = list(costs_paid(config, arguments.results))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, to_csv(rows))
    logger.info(f"wrote {arguments.output}: {len(rows)} stages of runs")


if __name__ == "__main__":
    run_script(main)
