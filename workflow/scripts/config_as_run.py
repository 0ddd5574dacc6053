"""Write config.yaml with the changes by --configfile and --config with which the runs under --results were made.

    python workflow/scripts/config_as_run.py --output results/config.json

Reads config.yaml and results/<experiment>/seed<n>.json, which the workflow leaves for each run. Writes --output, for
`snakemake --configfile`, as `make report` does.
"""

import argparse
import json
from pathlib import Path

from selfsup.as_run import as_run
from selfsup.atomic_files import write_atomically
from selfsup.config import check_config
from selfsup.errors import run_script
from selfsup.grids import read_config_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="ends in .json")
    arguments = parser.parse_args()
    now = read_config_file(arguments.config)
    check_config(now)
    merged = as_run(now, arguments.results)
    check_config(merged)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
