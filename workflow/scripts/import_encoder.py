"""Turn weights that others have published into an encoder of this package, to evaluate them without training.

    python workflow/scripts/import_encoder.py --publisher authors --weights weights_byol_cifar10.pt \\
        --recipe cifar10_authors --output results/published/cifar10/encoder.safetensors
    python workflow/scripts/import_encoder.py --publisher official --weights pretrain_res50x1.pkl \\
        --recipe imagenet_official --output results/published/imagenet/encoder.safetensors
    python workflow/scripts/import_encoder.py --publisher torchvision --weights resnet50-11ad3fa6.pth \\
        --recipe imagenet --output results/supervised/encoder.safetensors
    python workflow/scripts/import_encoder.py --publisher selfsup --recipe digits \\
        --weights results/published/digits_seed0/model.safetensors --output results/imported/encoder.safetensors

authors: checkpoints/ of github.com/ADevillers/BYOL and of github.com/ADevillers/SimCLR. official: the pre-trained
ResNet-50 1x that is linked in the README of github.com/google-deepmind/deepmind-research, byol. selfsup: a folder made
by publish.py. torchvision, timm: weights of those libraries' networks; state_dict: of the recipe's backbone, from
anywhere. Files are .safetensors, or torch's.
Reads --weights and executes nothing in the file.
Writes --output and the card, the same path ending in .json; linear_eval.py evaluates them with the same --recipe.
"""

import argparse
from pathlib import Path

from selfsup import provenance
from selfsup.arguments import existing_path
from selfsup.errors import UserError, run_script
from selfsup.evaluation.encoder import check_same_features, encoder_card, save_encoder
from selfsup.importing import LIBRARIES, PUBLISHERS, imported_backbone
from selfsup.logs import logger
from selfsup.recipe import parse_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    publishers = [*PUBLISHERS, *LIBRARIES]
    parser.add_argument("--publisher", required=True, choices=publishers, help="who published the weights")
    parser.add_argument(
        "--prefix", help="what the backbone's names in a state dict begin with; default: the only prefix that fits"
    )
    parser.add_argument("--weights", required=True, type=existing_path, help="the file of the weights")
    parser.add_argument("--recipe", required=True, help="a name in workflow/recipes: the network, and its evaluation")
    parser.add_argument("--output", required=True, type=Path, help="ends in .safetensors")
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    publisher, prefix = arguments.publisher, arguments.prefix
    if prefix is not None and publisher not in LIBRARIES:
        raise UserError(f"--prefix is for {', '.join(LIBRARIES)}, not for {publisher}: leave it out")
    encoder, published = imported_backbone(arguments.weights, publisher, recipe, prefix)
    source = {"publisher": publisher, "file": arguments.weights.name}
    if publisher in LIBRARIES:  # what they were trained by is nobody's recipe here
        network, source["method"] = f"backbone, published ({publisher} {recipe.model.backbone})", None
    else:
        network = f"{'online backbone' if recipe.method == 'byol' else 'backbone'}, published ({publisher})"
    card = encoder_card(network, recipe, seed=None)
    card["imported"] = {**source, "sha256": provenance.sha256(arguments.weights), **published.facts}
    checksum = save_encoder(arguments.output, encoder, card)
    check_same_features(arguments.output, encoder, recipe)
    told = "".join(f", {value} {key}" for key, value in published.facts.items() if isinstance(value, int))
    if left_out := published.facts.get("left_out"):
        told += f", without {', '.join(left_out[:4])}{f' and {len(left_out) - 4} more' if left_out[4:] else ''}"
    logger.info(f"imported {arguments.weights}{told}: {arguments.output}, SHA-256 {checksum[:16]}")


if __name__ == "__main__":
    run_script(main)
