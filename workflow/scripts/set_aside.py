"""Set the run of an older revision aside, so that a new one can begin in its place.

    python workflow/scripts/set_aside.py --run-folder results/digits/seed0 --revision 2

Moves checkpoints, encoder and evaluation from <run-folder> to <run-folder>_revision<old>, if they are of a revision
older than --revision, and writes their new place to --output (default <run-folder>/revision_<N>.json).
"""

import argparse
import json
from pathlib import Path

from selfsup.atomic_files import write_atomically
from selfsup.errors import run_script
from selfsup.layout import RunFolder
from selfsup.logs import logger
from selfsup.segments import set_aside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-folder", required=True, type=Path, help="folder of an experiment's seed")
    parser.add_argument("--revision", required=True, type=int, help="the revision to begin")
    parser.add_argument("--output", type=Path, help="file to write")
    arguments = parser.parse_args()
    run, revision = arguments.run_folder, arguments.revision
    aside = set_aside(run, revision)
    run.mkdir(parents=True, exist_ok=True)
    record = {"revision": revision, "set_aside": str(aside) if aside else None}
    write_atomically(arguments.output or RunFolder(run).begun(revision), json.dumps(record) + "\n")
    logger.info(f"set the older run aside: {aside}" if aside else f"no older run in {run}")


if __name__ == "__main__":
    run_script(main)
