"""Make a folder with a finished run's encoder that is ready for a model hub. Nothing is sent anywhere.

    python workflow/scripts/publish.py --experiment digits --output results/published/digits_seed0
    hf upload YOUR_NAME/digits results/published/digits_seed0

Reads config.yaml, the run's configuration, the encoder with its card, and under --results its figures and tables.
Writes --output: model.safetensors under torchvision's or timm's names, README.md (the model card), model.json, figures
and, if timm has the network, the config.json from which timm.create_model("hf-hub:YOUR_NAME/digits") makes it.
"""

import argparse
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from selfsup import parts
from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.cards import read_card
from selfsup.errors import UserError, run_script
from selfsup.layout import RunPaths
from selfsup.logs import logger
from selfsup.recipe import Recipe
from selfsup.reports.audits import audits_in_words
from selfsup.reports.model_card import CARD, WEIGHTS, model_card
from selfsup.settings.typed import suggest

PICTURES = {"curves.png": "{}.png", "views.png": "views_{}.png"}  # there: below results/figures


def main() -> None:
    arguments = parse_arguments()
    config = config_as_run(arguments.config, arguments.results)
    name, results, output = arguments.experiment, arguments.results, arguments.output
    if name not in config.experiments:
        raise UserError(f"--experiment is {name!r}, which config.yaml lacks{suggest(name, list(config.experiments))}")
    encoder = RunPaths(results, name, arguments.seed).encoder
    card = card_of(encoder.card, encoder.weights)
    output.mkdir(parents=True, exist_ok=True)
    found = {here: results / "figures" / there.format(name) for here, there in PICTURES.items()}
    copied = {WEIGHTS: encoder.weights, CARD: encoder.card}
    copied |= {here: there for here, there in found.items() if there.exists()}
    for here, there in copied.items():
        shutil.copyfile(there, output / here)
    known_to_timm = write_timm_config(output, Recipe.of(card["recipe"]))
    told = {
        "name": f"{name}_seed{arguments.seed}",
        "source": config.datasets[config.experiments[name].dataset]["source"],
        "license_name": arguments.license,
        "verdict": parts.verdict(config, encoder.card, results),
        "audits": audits_in_words(results, name, arguments.seed, card),
        "library": "timm" if known_to_timm else "torchvision",
        "pictures": [one for one in PICTURES if one in copied],
    }
    write_atomically(output / "README.md", model_card(card, **told))
    logger.info(f"{output} is ready. To send it: hf upload YOUR_NAME/{told['name']} {output}")


def card_of(path: Path, weights: Path) -> dict:
    """Return the card of a trained encoder. Raises UserError where there is none, or it was trained by others."""
    if not path.exists() or not weights.exists():
        raise UserError(f"{weights} with its card is not there: snakemake --cores all {weights} makes both")
    card = read_card(path)
    if "training" not in card:
        raise UserError(f"{path}: the encoder was not trained here, so there is nothing of yours to publish")
    return card


def write_timm_config(folder: Path, recipe: Recipe) -> bool:
    """Write the config.json that timm reads, and return whether timm then has the encoder: its features, to the bit.

    Where timm is not installed, has no such network or makes another one of it, there is no such file.
    """
    path, told = folder / "config.json", timm_config(recipe)
    path.unlink(missing_ok=True)
    if told is None or find_spec("timm") is None:
        return False
    import timm
    import torch

    from selfsup.evaluation.encoder import load_encoder

    if timm.is_model(told["architecture"]) and timm.models.get_pretrained_cfg(told["architecture"]).fixed_input_size:
        told["model_args"] = {"img_size": recipe.augment.size} | told.get("model_args", {})
    write_atomically(path, json.dumps(told, indent=1) + "\n")
    pictures = torch.linspace(-2, 2, 2 * 3 * recipe.augment.size**2).view(2, 3, recipe.augment.size, -1)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        same = torch.equal(theirs(pictures), load_encoder(folder / WEIGHTS, recipe)[0](pictures))
    if not same:
        path.unlink()
    return same


def timm_config(recipe: Recipe) -> dict | None:
    """Return the config.json by which timm makes the network, and knows how it is fed; None where timm has none of it.

    timm's ResNets have torchvision's names of parameters, and the standard stem.
    """
    from selfsup.models.resnet_settings import ResNetSettings
    from selfsup.models.torchvision_network import STANDARD_STEM, WIDTH

    model, test = recipe.model, recipe.linear.test
    arguments = dict(getattr(model, "arguments", {}))
    if isinstance(model, ResNetSettings):
        if (model.width, model.stem, model.padding) != (WIDTH, STANDARD_STEM, "symmetric"):
            return None
    elif not model.backbone.startswith("timm/"):
        return None
    fed = {
        "input_size": [3, test.crop, test.crop],
        "crop_pct": test.crop / test.resize,
        "interpolation": test.interpolation,
        "num_classes": 0,
    }
    fed |= {key: recipe.augment[key] for key in ("mean", "std") if recipe.augment[key] != "dataset"}
    told = {"architecture": model.backbone.removeprefix("timm/"), "num_classes": 0, "pretrained_cfg": fed}
    return told | ({"model_args": arguments} if arguments else {})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, help="a name under `experiments` in config.yaml")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--license", default="mit", help="of the weights, as the hub calls it; default mit")
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="the folder")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
