"""Draw the curves of an experiment's runs, finished or still going on, or of several experiments in one figure.

    python workflow/scripts/make_curves.py --experiment digits --output results/figures/digits.svg
    python workflow/scripts/make_curves.py --experiment digits simclr_digits --output results/figures/both.svg

Reads config.yaml, the configurations of the runs, and what they have left under --results: history.csv, knn.csv,
segments.json, the evaluations. Writes --output (SVG) and the same path ending in .png.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from selfsup.as_run import Run, config_as_run, runs_known
from selfsup.config import Config, Experiment
from selfsup.errors import UserError, run_script
from selfsup.layout import RunPaths
from selfsup.logs import logger
from selfsup.reports.figures import RunCurves, draw_comparison, draw_curves, read_run, write_figure
from selfsup.reports.plan import steps_per_epoch
from selfsup.segments import finished_boundaries
from selfsup.settings.typed import suggest
from selfsup.tables.figure_keys import method_in_words
from selfsup.tables.rows import dataset_label, read_published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True, nargs="+", help="names under `experiments` in config.yaml")
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="ends in .svg")
    arguments = parser.parse_args()
    known: dict[str, list[Run]] = {}
    for run in runs_known(config_as_run(arguments.config, arguments.results), arguments.results):
        known.setdefault(run.experiment.name, []).append(run)
    for name in arguments.experiment:
        if name not in known:
            raise UserError(f"--experiment is {name!r}, which config.yaml lacks{suggest(name, list(known))}")
    title, figure = drawn([known[name] for name in arguments.experiment], arguments.results)
    stem = arguments.output.with_name(arguments.output.name.removesuffix(".svg"))
    paths = write_figure(figure, stem, {"Title": title})
    logger.info(f"drew {' and '.join(map(str, paths))}")


def drawn(experiments: Sequence[Sequence[Run]], results: Path) -> tuple[str, Figure]:
    """Return the title and the figure of one experiment's runs, or of several experiments'."""
    runs = [one for experiment in experiments for run in experiment if (one := curves(run, results)).begun]
    if not runs:
        names = ", ".join(str(results / experiment[0].experiment.name) for experiment in experiments)
        raise UserError(f"{names}: no seed has a history.csv yet: nothing to draw")
    if len(experiments) > 1:
        title = ", ".join(dict.fromkeys(run.experiment for run in runs))
        return title, draw_comparison(title, runs)
    experiment = next(run for run in experiments[0] if run.seed == runs[0].seed).experiment
    recipe = experiment.recipe
    title = f"{experiment.name}: {recipe['method']}, {recipe['model']['backbone']}, batch {recipe['global_batch']}"
    if not runs_by_recipe(experiments[0]):
        title = f"{experiment.name}: {recipe['model']['backbone']}, trained by others"
    alone = [replace(run, experiment="") for run in runs]
    return title, draw_curves(title, alone, runs[0].steps)


def runs_by_recipe(runs: Sequence[Run]) -> bool:
    return all(run.config.trained_by_recipe(run.experiment.name) for run in runs)


def curves(run: Run, results: Path) -> RunCurves:
    """Return what a run has left to be drawn."""
    paths = RunPaths(results, run.experiment.name, run.seed)
    found = read_run(paths.folder, run.seed, finished_boundaries(paths.pretrain.folder))
    references = {**found.references, **published(run.config, run.experiment)}
    steps = steps_per_epoch(run.config, run.experiment)
    return replace(found, experiment=run.experiment.name, references=references, steps=steps)


def published(config: Config, experiment: Experiment) -> dict[str, float]:
    """Return the published linear accuracies of an experiment's method and network on its dataset, by their authors."""
    if not config.trained_by_recipe(experiment.name):
        return {}
    rows, recipe = read_published(), experiment.recipe
    wanted = {
        "dataset": dataset_label(experiment.dataset, config.datasets[experiment.dataset]["source"]),
        "method": method_in_words(recipe),
        "backbone": recipe["model"]["backbone"],
        "task": "linear",
        "labels": 100,
        "epochs": recipe["epochs"],
    }
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return {f"published: {row['implementation']}": row["top1"] for row in rows.dropna(subset="top1").to_dict("records")}


if __name__ == "__main__":
    run_script(main)
