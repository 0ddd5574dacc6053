"""Draw the curves of an experiment's runs, finished or still going on.

    python workflow/scripts/make_curves.py --experiment digits --output results/figures/digits.svg

Reads config.yaml, how the seeds were run, and what they have left under --results: history.csv, knn.csv, segments.json.
Writes --output (SVG) and the same path ending in .png.
"""

import argparse
from pathlib import Path

from selfsup.as_run import config_as_run, runs_known
from selfsup.errors import UserError, run_script
from selfsup.layout import RunPaths
from selfsup.logs import logger
from selfsup.reports.figures import draw_curves, read_run, write_figure
from selfsup.reports.plan import steps_per_epoch
from selfsup.segments import finished_boundaries
from selfsup.settings.typed import suggest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, help="a name under `experiments` in config.yaml")
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="ends in .svg")
    arguments = parser.parse_args()
    name, known = arguments.experiment, {}
    for run in runs_known(config_as_run(arguments.config, arguments.results), arguments.results):
        known.setdefault(run.experiment.name, []).append(run)
    if name not in known:
        raise UserError(f"--experiment is {name!r}, which config.yaml lacks{suggest(name, list(known))}")
    paths = {run.seed: RunPaths(arguments.results, name, run.seed) for run in known[name]}
    runs = [read_run(one.folder, seed, finished_boundaries(one.pretrain.folder)) for seed, one in paths.items()]
    runs = [run for run in runs if run.begun]
    if not runs:
        raise UserError(f"{arguments.results / name}: no seed has a history.csv yet: nothing to draw")
    first = next(run for run in known[name] if run.seed == runs[0].seed)
    steps = steps_per_epoch(first.config, first.experiment)
    recipe = first.experiment.recipe
    title = f"{name}: {recipe['method']}, {recipe['model']['backbone']}, batch {recipe['global_batch']}"
    figure = draw_curves(f"{title}; dashed: ends of segments", runs, steps)
    stem = arguments.output.with_name(arguments.output.name.removesuffix(".svg"))
    paths = write_figure(figure, stem, {"Title": title})
    logger.info(f"drew {' and '.join(map(str, paths))}")


if __name__ == "__main__":
    run_script(main)
