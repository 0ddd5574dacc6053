"""Pretrain up to a segment's boundary, continuing from the newest checkpoint of the run.

    python workflow/scripts/pretrain.py --recipe digits --data data/digits \\
        --run-folder results/digits/seed0/pretrain --until-epoch 10

One process per device: a single one, --local-ranks of them on this machine, or as many as srun or torchrun start. Reads
the packed dataset, earlier boundaries and the rolling checkpoints in <run-folder>/partial. Writes
<run-folder>/epoch_<N>.pt and .json, rolling checkpoints, history.csv, knn.csv and ledger.csv.

Exit status: 0 boundary reached; 75 stopped by a signal or the time limit, with all work saved; 1 error, or stopped for
good by a file STOP in <run-folder> or beside it. An error that no retry can fix is recorded in failed.json; delete that
file to try again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, begin_attempt
from selfsup.errors import PermanentError, UserError, run_script
from selfsup.job.attempt import Attempt
from selfsup.job.place import Place
from selfsup.jobs import AUTO
from selfsup.layout import epoch_of
from selfsup.recipe import fingerprint, parse_recipe
from selfsup.settings.registries import METHODS
from selfsup.training.sinks import check_trackers


def main() -> int:
    arguments = parse_arguments()
    recipe = parse_recipe(arguments.recipe)
    if not 0 < arguments.until_epoch <= recipe["epochs"]:
        raise UserError(f"--until-epoch is {arguments.until_epoch}, wanted 1 to the recipe's {recipe['epochs']} epochs")
    check_trackers(arguments.tracker)
    goal, name = f"epoch {arguments.until_epoch}", fingerprint(recipe, arguments.revision)
    with begin_attempt(arguments, arguments.run_folder, stage="pretraining", goal=goal, fingerprint=name) as attempt:
        return train(arguments, recipe, attempt.place, attempt)


def train(arguments: argparse.Namespace, recipe: dict, place: Place, attempt: Attempt) -> int:
    # From here on torch is loaded; whatever can be refused without it has been refused above.
    from selfsup.data.local_copy import open_store
    from selfsup.engine.compute import one_graph_applies, start_compute
    from selfsup.training.run import Run, begun_with
    from selfsup.training.segment import train_segment

    if recipe["global_batch"] % (place.size * recipe["micro_batches"]):
        raise PermanentError(
            f"global_batch {recipe['global_batch']} cannot be shared equally by {place.size} ranks with "
            f"{recipe['micro_batches']} micro-batches each"
        )
    store = open_store(
        arguments.data, arguments.local_copy, heartbeat=attempt.heartbeat_before_work, quiet=place.local_rank > 0
    )
    compute = start_compute(arguments, place)
    if arguments.one_graph == AUTO and METHODS.is_own(recipe["method"]):  # whether another's loss compiles is not known
        begun = begun_with(arguments.run_folder)
        applies = one_graph_applies(compute.device, compute.ranks.size, vars(compute), begun)
        compute = replace(compute, one_graph=applies)
    attempt.set_columns(**compute.ledger_columns())
    run = Run(
        recipe=recipe,
        seed=arguments.seed,
        revision=arguments.revision,
        store=store,
        folder=arguments.run_folder,
        compute=compute,
        checkpoint_minutes=arguments.checkpoint_minutes,
        knn=arguments.knn,
        trackers=tuple(arguments.tracker),
    )
    reached = train_segment(run, attempt, until_epoch=arguments.until_epoch, previous=arguments.previous)
    compute.ranks.close()
    if reached:
        attempt.set_ending("reached its goal")
    return 0 if reached else attempt.stop.exit_status


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("--revision", type=int, default=1, help="of the experiment in config.yaml; default 1")
    parser.add_argument("--data", required=True, type=Path, help="folder of the packed dataset")
    parser.add_argument("--run-folder", required=True, type=Path, help="folder of this run's checkpoints")
    parser.add_argument("--until-epoch", required=True, type=int, help="epoch at which this segment ends")
    parser.add_argument(
        "--previous", type=epoch_of, default=0, help="the previous boundary's epoch, or its file; default: none"
    )
    parser.add_argument("--knn", type=Path, help="file for k-NN at milestones; default <run-folder>/knn.csv")
    parser.add_argument(
        "--tracker",
        action="append",
        default=[],
        metavar="NAME",
        help="a tracker that gets the rows of history.csv too, tensorboard, wandb, mlflow, trackio or an extension's",
    )
    add_compute_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
