"""Pretrain up to a segment's boundary, continuing from the newest checkpoint of the run.

    python workflow/scripts/pretrain.py --recipe digits --data data/digits \\
        --run-folder results/digits/seed0/pretrain --until-epoch 10

One process per device: alone, or started by srun or torchrun. Reads the packed dataset, the boundary before this one
(--previous) and the rolling checkpoints in <run-folder>/partial. Writes <run-folder>/epoch_<N>.pt and .json, rolling
checkpoints, and history.csv. Exit status: 0 boundary reached, 75 stopped by a signal with all work saved, 1 error.
"""

import argparse
from pathlib import Path

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, existing_path, start_compute
from selfsup.data.store import PackedStore
from selfsup.errors import UserError, run_script
from selfsup.recipe import parse_recipe
from selfsup.segments import boundary_name
from selfsup.training.pretraining import Run, train_segment
from selfsup.training.stopping import EXIT_RESUBMIT, StopRequest


def main() -> int:
    arguments = parse_arguments()
    recipe = parse_recipe(arguments.recipe)
    if not 0 < arguments.until_epoch <= recipe["epochs"]:
        raise UserError(f"--until-epoch is {arguments.until_epoch}, wanted 1 to the recipe's {recipe['epochs']} epochs")
    store = PackedStore(arguments.data)
    ranks, device, precision, workers = start_compute(arguments)
    if recipe["global_batch"] % (ranks.size * recipe["micro_batches"]):
        raise UserError(
            f"global_batch {recipe['global_batch']} cannot be shared equally by {ranks.size} ranks of "
            f"{recipe['micro_batches']} micro-batches"
        )
    run = Run(
        recipe=recipe,
        seed=arguments.seed,
        revision=arguments.revision,
        store=store,
        folder=arguments.run_folder,
        device=device,
        precision=precision,
        threads=arguments.cpus,
        workers=workers,
        checkpoint_minutes=arguments.checkpoint_minutes,
    )
    output = arguments.run_folder / boundary_name(arguments.until_epoch)
    arguments.run_folder.mkdir(parents=True, exist_ok=True)
    reached = train_segment(
        run, ranks, until_epoch=arguments.until_epoch, previous=arguments.previous, output=output, stop=StopRequest()
    )
    ranks.close()
    return 0 if reached else EXIT_RESUBMIT


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("--revision", type=int, default=1, help="of the experiment in config.yaml; default 1")
    parser.add_argument("--data", required=True, type=Path, help="folder of the packed dataset")
    parser.add_argument("--run-folder", required=True, type=Path, help="folder of this run's checkpoints")
    parser.add_argument("--until-epoch", required=True, type=int, help="epoch at which this segment ends")
    parser.add_argument(
        "--previous", type=existing_path, help="checkpoint of the boundary before; none for the first segment"
    )
    add_compute_arguments(parser)
    parser.add_argument("--checkpoint-minutes", type=float, default=10, help="between rolling checkpoints; default 10")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
