"""Judge the health figures of a segment's end against the bands of its recipe, before the next segment begins.

    python workflow/scripts/health_gate.py --recipe digits --card results/digits/seed0/pretrain/epoch_0010.json \\
        --output results/digits/seed0/pretrain/health_0010.json

Reads the boundary's JSON file and a file of bands: --bands, or workflow/bands/<name>.yaml if that was recorded for this
very recipe. Writes --output, a verdict. Exit status 1, and no verdict, when a figure has left its band; nothing else is
touched then. Without bands it reports and never stops.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from selfsup.arguments import existing_path
from selfsup.atomic_files import write_atomically
from selfsup.bands import BANDS, has_epoch, outside, read_bands, recorded_for
from selfsup.errors import UserError, run_script
from selfsup.recipe import parse_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", required=True, help="a name in workflow/recipes, or a whole one: a .json file, JSON"
    )
    parser.add_argument("--name", help="the recipe's name, where --recipe is a whole one")
    parser.add_argument("--card", required=True, type=existing_path, help="the boundary's JSON file")
    parser.add_argument("--bands", type=existing_path, help="bands to use, whatever recipe they were recorded for")
    parser.add_argument("--experiment", default="<name>", help="its name in config.yaml, for the message")
    parser.add_argument("--continue-after-collapse", action="store_true", help="report and go on")
    parser.add_argument("--output", required=True, type=Path, help="the verdict")
    arguments = parser.parse_args()
    card = json.loads(arguments.card.read_text())
    verdict = judge(arguments, card)
    left = verdict["outside"]
    if left and not arguments.continue_after_collapse:
        raise UserError(
            f"{arguments.card}: the run has left its band at epoch {verdict['epoch']}: {'; '.join(left)}. Band: "
            f"{verdict['bands']}. Its checkpoint is kept, and history.csv beside it shows since when. To go on all the "
            f"same: experiments.{arguments.experiment}.continue_after_collapse: true in config.yaml; to train anew: "
            "raise its revision"
        )
    write_atomically(arguments.output, json.dumps(verdict, indent=1) + "\n")
    figures = "  ".join(f"{name} {value:.4g}" for name, value in verdict["figures"].items())
    print(f"epoch {verdict['epoch']}: {verdict['verdict']}  {figures}".rstrip())


def judge(arguments: argparse.Namespace, card: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict in words, the figures, and those outside their band, each with it."""
    epoch, figures = round(card["epoch"]), card.get("health", {})
    path, bands, reason = wanted_bands(arguments)
    verdict = {"epoch": epoch, "figures": figures, "bands": str(path), "outside": []}
    if not figures:
        return {**verdict, "verdict": "not judged: no figures were measured"}
    if bands is None:
        return {**verdict, "verdict": f"not judged: {reason}"}
    if not has_epoch(bands, epoch):
        return {**verdict, "verdict": f"not judged: {path} says nothing of epoch {epoch}"}
    left = [str(one) for one in outside(figures, bands, epoch)]
    words = f"left its band, and goes on as told: {'; '.join(left)}" if left else "within its band"
    return {**verdict, "outside": left, "verdict": words}


def wanted_bands(arguments: argparse.Namespace) -> tuple[Path, dict | None, str]:
    """Return the file of bands, its content if it is to be used, and else why not."""
    if arguments.bands:
        return arguments.bands, read_bands(arguments.bands), ""
    path = BANDS / f"{arguments.name or arguments.recipe}.yaml"
    if not path.exists():
        return path, None, f"no bands are recorded in {path}"
    bands = read_bands(path)
    changed = recorded_for(bands, parse_recipe(arguments.recipe))
    return path, None if changed else bands, f"{path} was recorded for another recipe ({'; '.join(changed)})"


if __name__ == "__main__":
    run_script(main)
