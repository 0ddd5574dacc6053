"""Write an encoder's weights as safetensors, with torchvision's or timm's parameter names, and a card beside them.

    python workflow/scripts/export_encoder.py --recipe digits --output encoder.safetensors \\
        --checkpoint results/digits/seed0/pretrain/epoch_0030.pt
    python workflow/scripts/export_encoder.py --recipe digits --random-init --output encoder.safetensors

Reads a boundary of a pretraining and the ledger beside it. With --random-init it reads nothing, and writes the weights
from which training with this seed starts. Writes --output and the card, the same path ending in .json: recipe, data,
protocol of the evaluation, cost of the training, versions, figures of finished evaluations. Then loads the file, into
torchvision's or timm's network too, and compares features.
"""

import argparse
from itertools import pairwise
from pathlib import Path

from selfsup.arguments import add_recipe_arguments
from selfsup.data.statistics import with_numbers
from selfsup.engine.checkpoint import load_checkpoint, prune
from selfsup.errors import UserError, run_script
from selfsup.evaluation.encoder import check_same_features, encoder_card, save_encoder
from selfsup.job.ledger import ledger_totals
from selfsup.layout import PretrainPaths
from selfsup.logs import logger
from selfsup.methods import build_method
from selfsup.models import initial_backbone
from selfsup.provenance import numerics_differences
from selfsup.recipe import differences, parse_recipe, pretraining_part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="the boundary to export")
    source.add_argument("--random-init", action="store_true", help="export the untrained encoder")
    parser.add_argument("--output", required=True, type=Path, help="ends in .safetensors")
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    if arguments.checkpoint and not arguments.checkpoint.exists():
        card = arguments.checkpoint.with_suffix(".json")
        raise UserError(
            f"{arguments.checkpoint} is not there: restore it, or train its segment again: "
            f"snakemake --cores all --force {card}"
        )
    network = "online backbone, at random initialisation" if arguments.random_init else "online backbone"
    if arguments.random_init:
        card, encoder = encoder_card(network, recipe, arguments.seed), initial_backbone(recipe, arguments.seed)
    else:
        encoder, training = trained_encoder(arguments.checkpoint, recipe, arguments.seed)
        seen = with_numbers(recipe, training.get("normalisation", {}))  # in numbers what the dataset told
        card = {**encoder_card(network, seen, arguments.seed), "training": training}
    checksum = save_encoder(arguments.output, encoder, card)
    check_same_features(arguments.output, encoder, recipe)
    if arguments.checkpoint and card["training"]["epoch"] == recipe["epochs"]:
        prune(PretrainPaths(arguments.checkpoint.parent).partial)  # the run is over, so nothing is left to continue
    unfinished = arguments.checkpoint and card["training"]["epoch"] < recipe["epochs"]
    after = f", after {card['training']['epoch']:g} of {recipe['epochs']} epochs" if unfinished else ""
    logger.info("exported %s, SHA-256 %s%s", arguments.output, checksum[:16], after)


def trained_encoder(path: Path, recipe: dict, seed: int):
    """Return the checkpoint's encoder and the card's part about its training."""
    state = load_checkpoint(path)
    lines = differences(pretraining_part(recipe), pretraining_part(state["recipe"]))
    if lines or state["seed"] != seed:
        raise UserError(
            f"{path} belongs to another run; " + "; ".join(lines or [f"seed: wanted {seed}, found {state['seed']}"])
        )
    method = build_method(recipe, seed=seed, total_steps=max(state["step"], 1))
    method.load_state_dict(state["method"])
    attempts = state["attempts"]
    tuples = [
        {key: value for key, value in attempt.items() if key not in ("start_step", "started")} for attempt in attempts
    ]
    changes = sum(bool(numerics_differences(one, other)) for one, other in pairwise(tuples))
    keys = ("fingerprint", "revision", "dataset_fingerprint", "step", "epoch", "numerics")
    totals = ledger_totals(PretrainPaths(path.parent).ledger)
    told = {"attempts": attempts, "numerics_changes": changes, "ledger": totals}
    told |= {key: state[key] for key in ("normalisation",) if key in state}
    return method.encoder(), {**{key: state[key] for key in keys}, **told}


if __name__ == "__main__":
    run_script(main)
