"""Make a table of config.yaml: the paper's rows beside ours.

    python workflow/scripts/make_table.py --table table1 --output results/table1.csv

Reads config.yaml, workflow/reference/published.csv and the metrics.csv and ledger.csv files under --results; an
experiment that has none is shown as not run. Writes --output (CSV) and the same path ending in .md and .tex, and prints
the first of these.
"""

import argparse
from itertools import product
from pathlib import Path

from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.config import Config
from selfsup.errors import UserError, run_script
from selfsup.layout import RunPaths
from selfsup.settings.registries import SOURCES
from selfsup.settings.typed import suggest
from selfsup.tables.differs_in import differs_in
from selfsup.tables.figure_keys import method_in_words
from selfsup.tables.layouts import to_latex, to_markdown
from selfsup.tables.rows import Row, dataset_label, make_table, to_csv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="a name under `tables` in config.yaml")
    parser.add_argument(
        "--config", default="config.yaml", help="path of config.yaml, or its content as JSON; default config.yaml"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the experiments' results; default results"
    )
    parser.add_argument("--output", required=True, type=Path, help="ends in .csv")
    arguments = parser.parse_args()
    config = config_as_run(arguments.config, arguments.results)
    if arguments.table not in config.tables:
        raise UserError(
            f"--table is {arguments.table!r}, which config.yaml does not "
            f"define{suggest(arguments.table, list(config.tables))}"
        )
    if arguments.output.suffix != ".csv":
        raise UserError(f"--output is {arguments.output}, wanted a name that ends in .csv: .md and .tex go beside it")
    frame = make_table(arguments.table, rows_of(config, arguments.table, arguments.results))
    text = to_markdown(frame)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output.with_suffix(".md"), text)
    write_atomically(arguments.output.with_suffix(".tex"), to_latex(frame))
    write_atomically(arguments.output, to_csv(frame))
    print(text, end="")


def rows_of(config: Config, table: str, results: Path) -> list[Row]:
    """Return the table's own rows: for each experiment its encoders, then the same encoders untrained."""
    rows, swept = [], differs_in(config.experiments[name] for name in config.tables[table])
    for name in config.tables[table]:
        experiment = config.experiments[name]
        runs = [RunPaths(results, name, seed) for seed in experiment.seeds]
        ledgers = tuple(run.pretrain.ledger for run in runs)
        for evaluation, untrained in product(experiment.evaluations.values(), (False, True)):
            encoders = [run.random_init if untrained else run.encoder for run in runs]
            source = config.datasets[evaluation.dataset]["source"]
            rows.append(
                Row(
                    experiment=name,
                    dataset=dataset_label(evaluation.dataset, source),
                    evaluation=evaluation.name,
                    task=evaluation.task,
                    labels=evaluation.settings.label_share,
                    epochs=experiment.recipe["epochs"],
                    global_batch=experiment.recipe["global_batch"],
                    seeds=experiment.seeds,
                    metrics=[encoder.evaluation(evaluation.name).metrics for encoder in encoders],
                    random_init=untrained,
                    split=SOURCES[source].test_split,
                    ledgers=() if untrained else ledgers,
                    method=method_in_words(experiment.recipe) if config.trained_by_recipe(name) else None,
                    differs_in=swept[name],
                )
            )
    return rows


if __name__ == "__main__":
    run_script(main)
