"""Check in a minute what a job of days will need: ranks, devices, network, batch norm, files, clocks, time limit.

    python workflow/scripts/preflight.py --data data/digits --results results --output preflight.txt --ranks 1

Started like pretrain.py, one process per device. Writes --output: a line with a verdict for each check, and what to do
about failed ones. Exit status 0 even if checks fail, because the table is the result; 1 if it could not be made.
"""

import argparse
from pathlib import Path

from selfsup.arguments import add_compute_arguments, own_place, start_local_ranks
from selfsup.atomic_files import write_atomically
from selfsup.errors import run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, required=True, help="the number of processes that there should be")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], help="folder of a packed dataset; may be given several times"
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="folder of results, which every node must be able to write to"
    )
    parser.add_argument("--output", type=Path, required=True, help="the table")
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    start_local_ranks(arguments)
    place = own_place()

    from selfsup.engine.compute import start_compute
    from selfsup.preflight import Preflight, to_text

    compute = start_compute(arguments, place)
    limit = arguments.time_limit and arguments.time_limit * 60
    verdicts = Preflight(compute, place, arguments.ranks, arguments.data, arguments.results, limit).run()
    if place.is_main:
        text = to_text(verdicts)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.output, text)
        print(text, end="")
    compute.ranks.close()


if __name__ == "__main__":
    run_script(main)
