"""Turn weights that others have published into an encoder of this package, to evaluate them without training.

    python workflow/scripts/import_encoder.py --publisher authors --weights weights_byol_cifar10.pt \\
        --recipe cifar10_authors --output results/published/cifar10/encoder.safetensors
    python workflow/scripts/import_encoder.py --publisher official --weights pretrain_res50x1.pkl \\
        --recipe imagenet_official --output results/published/imagenet/encoder.safetensors
    python workflow/scripts/import_encoder.py --publisher selfsup --recipe digits \\
        --weights results/published/digits_seed0/model.safetensors --output results/imported/encoder.safetensors

authors: checkpoints/ of github.com/ADevillers/BYOL and of github.com/ADevillers/SimCLR. official: the pre-trained
ResNet-50 1x that is linked in the README of github.com/google-deepmind/deepmind-research, byol. selfsup: a folder of
publish.py.
Reads --weights and runs nothing that the file brings.
Writes --output and the card, the same path ending in .json; linear_eval.py evaluates them with the same --recipe.
"""

import argparse
from pathlib import Path

from selfsup import provenance
from selfsup.arguments import existing_path
from selfsup.errors import run_script
from selfsup.evaluation.encoder import check_same_features, encoder_card, save_encoder
from selfsup.importing import PUBLISHERS, imported_backbone
from selfsup.logs import logger
from selfsup.recipe import parse_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publisher", required=True, choices=list(PUBLISHERS), help="who published the weights")
    parser.add_argument("--weights", required=True, type=existing_path, help="their file")
    parser.add_argument("--recipe", required=True, help="a name in workflow/recipes: the network, and its evaluation")
    parser.add_argument("--output", required=True, type=Path, help="ends in .safetensors")
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    encoder, published = imported_backbone(arguments.weights, arguments.publisher, recipe)
    source = {"publisher": arguments.publisher, "file": arguments.weights.name}
    part = "online backbone" if recipe.method == "byol" else "backbone"
    card = encoder_card(f"{part}, published ({arguments.publisher})", recipe, seed=None)
    card["imported"] = {**source, "sha256": provenance.sha256(arguments.weights), **published.facts}
    checksum = save_encoder(arguments.output, encoder, card)
    check_same_features(arguments.output, encoder, recipe)
    told = "".join(f", {value} {key}" for key, value in published.facts.items())
    logger.info(f"imported {arguments.weights}{told}: {arguments.output}, SHA-256 {checksum[:16]}")


if __name__ == "__main__":
    run_script(main)
