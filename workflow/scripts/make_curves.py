"""Draw the curves of an experiment's runs, finished or still going on.

    python workflow/scripts/make_curves.py --experiment digits --output results/figures/digits.svg

Reads config.yaml and history.csv, knn.csv and segments.json of all seeds under --results. Writes --output (SVG) and the
same path ending in .png.
"""

import argparse
from pathlib import Path

from selfsup.config import config_of
from selfsup.errors import UserError, run_script
from selfsup.figures import draw_curves, read_run, write_figure
from selfsup.plan import steps_per_epoch
from selfsup.schema import suggest
from selfsup.segments import finished_boundaries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, help="a name under `experiments` in config.yaml")
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="ends in .svg")
    arguments = parser.parse_args()
    config = config_of(arguments.config)
    name = arguments.experiment
    if name not in config.experiments:
        raise UserError(f"--experiment is {name!r}, which config.yaml lacks{suggest(name, list(config.experiments))}")
    experiment = config.experiments[name]
    folders = {seed: arguments.results / name / f"seed{seed}" for seed in experiment.seeds}
    runs = [read_run(run, seed, finished_boundaries(run / "pretrain")) for seed, run in folders.items()]
    runs = [run for run in runs if len(run.history)]
    if not runs:
        raise UserError(f"{arguments.results / name}: no seed has a history.csv yet: nothing to draw")
    steps = steps_per_epoch(config, experiment)
    recipe = experiment.recipe
    title = f"{name}: {recipe['method']}, {recipe['model']['backbone']}, batch {recipe['global_batch']}"
    figure = draw_curves(f"{title}; dashed: ends of segments", runs, steps)
    stem = arguments.output.with_name(arguments.output.name.removesuffix(".svg"))
    paths = write_figure(figure, stem, {"Title": title})
    print(f"drew {' and '.join(map(str, paths))}")


if __name__ == "__main__":
    run_script(main)
