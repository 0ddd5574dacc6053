"""Write the report's first page: tables, curves, what was run and what it took, in one file that needs no network.

    python workflow/scripts/landing_page.py --table demo --experiment digits --output results/report.html

Reads config.yaml, the configurations of the runs, and under --results the tables, their figures, compute.csv and the
encoders' cards. Writes --output. `make report` calls it for all that is finished.
"""

import argparse
from pathlib import Path

from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.errors import UserError, run_script
from selfsup.logs import logger
from selfsup.reports.landing import landing_page
from selfsup.settings.typed import suggest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", default=[], metavar="NAME", help="under `tables` in config.yaml")
    parser.add_argument("--experiment", action="append", required=True, metavar="NAME", help="under `experiments`")
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="the page")
    arguments = parser.parse_args()
    config = config_as_run(arguments.config, arguments.results)
    for flag, names, known in (
        ("--table", arguments.table, config.tables),
        ("--experiment", arguments.experiment, config.experiments),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"{flag} is {name!r}, which config.yaml lacks{suggest(name, list(known))}")
    text = landing_page(config, arguments.results, arguments.table, arguments.experiment)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, text)
    logger.info("wrote %s: open it in a browser, or send it to others", arguments.output)


if __name__ == "__main__":
    run_script(main)
