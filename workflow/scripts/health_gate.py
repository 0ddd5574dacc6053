"""Judge the health figures at a segment's end by recorded bands, and by the method's floors for a collapse.

    python workflow/scripts/health_gate.py --recipe digits --card results/digits/seed0/pretrain/epoch_0010.json \\
        --output results/digits/seed0/pretrain/health_0010.json

Reads the boundary's JSON file, which has the floors too, and a file of bands: --bands, or workflow/bands/<name>.yaml
if that was recorded for this very recipe. Writes --output, a verdict. Exit status 1, and no verdict, if a figure is
below its floor, outside its band or not a number; nothing else is touched then. Figures that a card lacks are named and
stop nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from selfsup.arguments import existing_path
from selfsup.atomic_files import write_atomically
from selfsup.bands import BANDS, collapsed, has_epoch, outside, read_bands, recorded_for
from selfsup.cards import read_card
from selfsup.errors import UserError, run_script
from selfsup.logs import logger
from selfsup.recipe import parse_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", required=True, help="a name in workflow/recipes, or a whole recipe: a .json file, or JSON"
    )
    parser.add_argument("--name", help="the recipe's name, if --recipe is a whole recipe")
    parser.add_argument("--card", required=True, type=existing_path, help="the boundary's JSON file")
    parser.add_argument("--bands", type=existing_path, help="bands to use, whatever recipe they were recorded for")
    parser.add_argument("--experiment", default="<name>", help="its name in config.yaml, for the message")
    parser.add_argument("--continue-after-collapse", action="store_true", help="report a collapse, and go on")
    parser.add_argument("--output", required=True, type=Path, help="the verdict")
    arguments = parser.parse_args()
    card = read_card(arguments.card)
    verdict = judge(arguments, card)
    if (verdict["collapsed"] or verdict["outside"]) and not arguments.continue_after_collapse:
        raise UserError(
            f"{arguments.card}: the run {reasons(verdict)}. Its checkpoint is kept, and history.csv beside it shows "
            f"since when. To go on all the same: experiments.{arguments.experiment}.continue_after_collapse: true in "
            "config.yaml; to train anew: raise its revision"
        )
    write_atomically(arguments.output, json.dumps(verdict, indent=1) + "\n")
    figures = "  ".join(f"{name} {value:.4g}" for name, value in verdict["figures"].items())
    logger.info(f"epoch {verdict['epoch']}: {verdict['verdict']}  {figures}".rstrip())


def judge(arguments: argparse.Namespace, card: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict in words, the figures with their floors, and those below a floor or out of a band."""
    epoch, figures, floors = round(card["epoch"]), card.get("health", {}), card.get("floors", {})
    path, bands, unusable = wanted_bands(arguments)
    if bands is not None and not has_epoch(bands, epoch):
        bands, unusable = None, f"{path} says nothing of epoch {epoch}"
    verdict = {
        "epoch": epoch,
        "figures": figures,
        "floors": floors,
        "bands": str(path),
        "collapsed": [str(one) for one in collapsed(figures, floors)],
        "outside": [str(one) for one in outside(figures, bands, epoch)] if bands else [],
    }
    return {**verdict, "verdict": in_words(verdict, unusable)}


def in_words(verdict: dict[str, Any], unusable: str) -> str:
    """Return the verdict as a sentence. unusable: why there are no bands, empty where there are."""
    if not verdict["figures"]:
        return "not judged: no figures were measured"
    if verdict["collapsed"] or verdict["outside"]:
        return f"goes on as told: {reasons(verdict)}"
    above = "above its floors" if verdict["floors"] else "not judged by floors: its card is older than they are"
    within = f"not judged by bands: {unusable}" if unusable else "within its band"
    missing = [name for name in verdict["floors"] if name not in verdict["figures"]]
    return "; ".join([above, within, *([f"not measured: {', '.join(missing)}"] if missing else [])])


def reasons(verdict: dict[str, Any]) -> str:
    """Return what is wrong with a run: each figure with what it was to be."""
    words = {
        "collapsed": "has collapsed at epoch {epoch}, below its method's floor: {found}",
        "outside": "has left its band at epoch {epoch}: {found}. Band: {bands}",
    }
    return "; it ".join(
        text.format(**{**verdict, "found": "; ".join(verdict[key])}) for key, text in words.items() if verdict[key]
    )


def wanted_bands(arguments: argparse.Namespace) -> tuple[Path, dict | None, str]:
    """Return the file of bands, its content if it is to be used, and else why not."""
    if arguments.bands:
        return arguments.bands, read_bands(arguments.bands), ""
    path = BANDS / f"{arguments.name or arguments.recipe}.yaml"
    if not path.exists():
        return path, None, f"no bands are recorded in {path}"
    bands = read_bands(path)
    changed = recorded_for(bands, parse_recipe(arguments.recipe))
    return (
        (path, None, f"{path} was recorded for another recipe ({'; '.join(changed)})") if changed else (path, bands, "")
    )


if __name__ == "__main__":
    run_script(main)
