"""Gather the figures of all finished evaluations into one tidy table.

    python workflow/scripts/evaluations_table.py --output results/evaluations.csv

Reads config.yaml and the metrics.csv files under --results. Writes --output: a row for each evaluation of each encoder,
whose columns docs/results.md explains.
"""

import argparse
from pathlib import Path

from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.errors import run_script
from selfsup.logs import logger
from selfsup.tables.evaluations import all_evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    arguments = parser.parse_args()
    frame = all_evaluations(config_as_run(arguments.config, arguments.results), arguments.results)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, frame.to_csv(index=False))
    logger.info("wrote %s: %d evaluations", arguments.output, len(frame))


if __name__ == "__main__":
    run_script(main)
