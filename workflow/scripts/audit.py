"""Train one segment of a finished run again, and compare its end with the run's, bit for bit.

    python workflow/scripts/audit.py --run results/digits/seed0 --segment 2

Reads the checkpoints at both ends of the segment, history.csv beside them and the packed dataset; writes nothing there.
Options of the machine that are not given (threads, ranks, precision, switches) are those of the segment's own training.
Writes into --output, by default results/audit/<experiment>/seed<n>/epoch_<N>: audit.json, the verdict, if weights,
buffers, momenta and rows of history are the same; otherwise differs.json, with what differs and from which step on.

Exit status: 0 the same bits; 75 stopped by a signal or the time limit, to be continued by the same call; 1 a
difference, or an error.
"""

import argparse
import json
from pathlib import Path

from selfsup.arguments import add_compute_arguments, begin_attempt
from selfsup.errors import PermanentError, run_script
from selfsup.job.attempt import Attempt
from selfsup.layout import AuditPaths
from selfsup.logs import logger
from selfsup.training.audited import (
    UNTOLD,
    Audited,
    check_output,
    choose_segment,
    data_folder,
    extensions_of,
    run_folder,
    use_conditions_of,
)


def main() -> int:
    arguments = parse_arguments()
    segment = choose_segment(arguments.run, arguments.segment, arguments.until_epoch)
    arguments.data = arguments.data or data_folder(segment.run)
    arguments.output = arguments.output or segment.own_folder
    check_output(segment, arguments.output)
    use_conditions_of(arguments, segment.card.get("numerics") or {})
    goal, name = f"epoch {segment.end}", segment.card.get("fingerprint", "unknown")
    with begin_attempt(arguments, arguments.output, stage="audit", goal=goal, fingerprint=name) as attempt:
        return audit(arguments, segment, attempt)


def audit(arguments: argparse.Namespace, segment: Audited, attempt: Attempt) -> int:
    from selfsup.data.local_copy import open_store
    from selfsup.engine.compute import start_compute
    from selfsup.recipe import parse_recipe
    from selfsup.training.audit import audited_run, check_dataset, leave, read_ends, train_again, verdict

    claimed = read_ends(segment)
    recipe = parse_recipe(json.dumps({**claimed["recipe"], "extensions": extensions_of(segment.run)}))
    place = attempt.place
    if recipe["global_batch"] % (place.size * recipe["micro_batches"]):
        raise PermanentError(f"global_batch {recipe['global_batch']} cannot be shared equally by {place.size} ranks")
    store = open_store(
        arguments.data, arguments.local_copy, heartbeat=attempt.heartbeat_before_work, quiet=place.local_rank > 0
    )
    compute = start_compute(arguments, place)
    attempt.set_columns(**compute.ledger_columns())
    run = audited_run(claimed, recipe, store=store, folder=arguments.output, compute=compute)
    check_dataset(run, claimed, arguments.data)
    reached = train_again(run, segment, attempt)
    is_main = compute.ranks.is_main
    compute.ranks.close()
    if not reached:
        return attempt.stop.exit_status
    if is_main:
        own, found = AuditPaths(arguments.output), verdict(segment, claimed, run)
        leave(own, segment, found)
        logger.info(
            f"{segment}: {found['verdict']} in {', '.join(found['sha256'])} ({found['rows']} rows); {own.verdict}"
        )
    attempt.set_ending("reached its goal")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=run_folder, help="folder of a run: results/<experiment>/seed<n>")
    parser.add_argument("--segment", type=number, help="1, 2, ...; default: the last that can be audited")
    parser.add_argument("--until-epoch", type=int, help="the epoch at which the segment ends, instead of its number")
    parser.add_argument(
        "--data", type=Path, help="folder of the packed dataset; default: the one that the run was made with"
    )
    parser.add_argument("--output", type=Path, help="folder to work in and for the verdict")
    add_compute_arguments(parser)
    parser.set_defaults(**UNTOLD)
    return parser.parse_args()


def number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no segment, wanted 1, 2, ...")
    return int(text)


if __name__ == "__main__":
    run_script(main)
