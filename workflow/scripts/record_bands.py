"""Record the bands of a recipe's health figures from finished runs with several seeds.

    python workflow/scripts/record_bands.py --experiment digits --output workflow/bands/digits.yaml

Reads config.yaml and the boundaries' JSON files of all the experiment's seeds, three at least, under --results. Writes
--output: what was measured, and for each figure the band in which a further seed is expected.
"""

import argparse
from pathlib import Path

import yaml

from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.bands import CONFIDENCE, record
from selfsup.cards import read_card
from selfsup.config import Experiment
from selfsup.errors import UserError, run_script
from selfsup.layout import RunPaths
from selfsup.logs import logger
from selfsup.recipe import fingerprint, pretraining_part
from selfsup.segments import boundaries
from selfsup.settings.typed import suggest

HEADER = f"""# Where a further seed's health figures are expected at segments' ends: {CONFIDENCE:.1%} prediction
# intervals from the seeds below (selfsup/bands.py). The rule health_gate stops a run that leaves them. Written by
#   python workflow/scripts/record_bands.py --experiment {{experiment}} --output {{output}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, help="a name under `experiments` in config.yaml")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    arguments = parser.parse_args()
    config = config_as_run(str(arguments.config), arguments.results)
    if arguments.experiment not in config.experiments:
        raise UserError(
            f"--experiment is {arguments.experiment!r}, which config.yaml does not "
            f"define{suggest(arguments.experiment, list(config.experiments))}"
        )
    experiment = config.experiments[arguments.experiment]
    ends = boundaries(experiment.recipe["epochs"], experiment.segment_epochs)
    runs = [RunPaths(arguments.results, experiment.name, seed) for seed in experiment.seeds]
    cards = {end: [card_of(run.pretrain.card(end), experiment) for run in runs] for end in ends}
    bands = record(cards, experiment.seeds, pretraining_part(experiment.recipe))
    text = yaml.safe_dump(bands, sort_keys=False, width=120, default_flow_style=None)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    header = HEADER.format(experiment=experiment.name, output=arguments.output)
    write_atomically(arguments.output, header + text)
    logger.info(f"wrote {arguments.output}: epochs {', '.join(map(str, ends))}, seeds {experiment.seeds}")


def card_of(path: Path, experiment: Experiment) -> dict:
    """Return what a boundary's JSON file holds. Raises UserError where it is missing, or of another recipe."""
    try:
        card = read_card(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): train this seed to its end first") from error
    if card["fingerprint"] != fingerprint(experiment.recipe, card["revision"]):
        raise UserError(f"{path}: of another recipe than config.yaml's {experiment.name}: train this seed anew")
    return card


if __name__ == "__main__":
    run_script(main)
