"""Which files tables, figures and the report are made from, and which part of config.yaml. Imports no torch."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfsup.cards import card_if_any
from selfsup.config import Config, Experiment
from selfsup.errors import UserError
from selfsup.layout import LINEAR, RESULTS, RunPaths

TABLE_KINDS = ("csv", "md", "tex")
FIGURE_KINDS = ("svg", "png")
LANDING_PAGE = RESULTS / "report.html"


def runs_of(config: Config, experiment: str) -> list[RunPaths]:
    """Return the runs of an experiment, one for each of its seeds."""
    return [RunPaths(RESULTS, experiment, seed) for seed in config.experiments[experiment].seeds]


def metrics_of_experiment(config: Config, experiment: str) -> list[Path]:
    """Return the evaluations of an experiment's trained encoders; the encoders where there are none on labels."""
    names = evaluations_with_labels(config, experiment)
    runs = runs_of(config, experiment)
    metrics = [run.encoder.evaluation(name).metrics for run in runs for name in names]
    return metrics or [run.encoder.weights for run in runs]


def evaluations_with_labels(config: Config, experiment: str) -> list[str]:
    """Return the evaluations of an experiment that are on a dataset with labels."""
    known = config.experiments[experiment].evaluations
    return [name for name, one in known.items() if config.datasets[one.dataset].labels]


def evaluations_over_training(config: Config, experiment: str) -> list[str]:
    """Return the evaluations of an experiment that are asked for at every boundary; none of an imported encoder's."""
    known = {} if experiment in config.published else config.experiments[experiment].evaluations
    return [name for name, one in known.items() if one.at_every_boundary]


def metrics_of_table(config: Config, table: str) -> list[Path]:
    """Return the evaluations that a table shows: of trained encoders, and of the same ones untrained."""
    return [
        encoder.evaluation(name).metrics
        for experiment in config.tables[table]
        for run in runs_of(config, experiment)
        for encoder in (run.encoder, run.random_init)
        for name in config.experiments[experiment].evaluations
    ]


def tables_asked_for(config: Config, targets: Iterable[str]) -> list[str]:
    """Return the tables among the targets of a call."""
    asked = {Path(target) for target in targets}
    return [table for table in config.tables if not asked.isdisjoint(files_of_table(table))]


def metrics_asked_for(config: Config, targets: Iterable[str]) -> list[Path]:
    """Return the metrics that a call makes for its targets: those of tables, and those that are targets themselves."""
    asked = {Path(target) for target in targets}
    known = [
        encoder.evaluation(name).metrics
        for experiment in config.experiments
        for run in runs_of(config, experiment)
        for encoder in (run.encoder, run.random_init)
        for name in config.experiments[experiment].evaluations
    ]
    of_tables = [one for table in tables_asked_for(config, targets) for one in metrics_of_table(config, table)]
    return list(dict.fromkeys([*of_tables, *(one for one in known if one in asked)]))


def verdict(config: Config, card: Path, results: Path = RESULTS) -> str:
    """Return the verdict of a table's row on the linear evaluation of an encoder; "none yet" where no table has it.

    card: the encoder's.
    """
    checksum = card_if_any(card).get("encoder_sha256")
    for path in (results / f"{table}.csv" for table in config.tables):
        for row in _rows(path) if isinstance(checksum, str) else ():
            if row.get("task") == LINEAR and checksum in row.get("encoder_sha256", "") and "verdict" in row:
                return row["verdict"] + (f" ({row['verdict_reason']})" if row.get("verdict_reason") else "")
    return "none yet"


def _rows(table: Path) -> list[dict[str, str]]:
    """Return a table's rows; none of one that is not there or cannot be read, because its rule makes it anew."""
    try:
        with open(table, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def files_of_table(table: str) -> list[Path]:
    """Return the files of a table, which are made together."""
    return [RESULTS / f"{table}.{kind}" for kind in TABLE_KINDS]


def curves_of(experiment: str) -> list[Path]:
    """Return the files of an experiment's curves, which are made together."""
    return [RESULTS / "figures" / f"{experiment}.{kind}" for kind in FIGURE_KINDS]


def ledgers(config: Config) -> list[Path]:
    """Return the ledgers that are there: jobs keep them up, and they are no rule's output."""
    runs = [run for name in config.experiments for run in runs_of(config, name)]
    others = [one for run in runs for one in (*run.encoders_at_boundaries(), run.random_init)]
    folders = [job for one in (*runs, *others) for job in one.job_folders()]
    return [job.ledger for job in folders if job.ledger.exists()]


def finished_metrics(config: Config) -> list[Path]:
    """Return the metrics that are there, of all encoders of all runs."""
    runs = [run for name in config.experiments for run in runs_of(config, name)]
    encoders = [one for run in runs for one in (*run.encoders_at_boundaries(), run.encoder, run.random_init)]
    return [one.metrics for encoder in encoders for one in encoder.evaluations()]


def shown_in_report(config: Config) -> tuple[list[str], list[str]]:
    """Return the tables and the experiments that the report shows: those whose evaluations are there.

    Of experiments on pictures without labels, which no table needs, those whose encoders are there. Raises UserError
    where there is neither.
    """
    tables = [one for one in config.tables if all(path.exists() for path in metrics_of_table(config, one))]
    unlabelled = [one for one in config.experiments if not evaluations_with_labels(config, one)]
    alone = [one for one in unlabelled if all(path.exists() for path in metrics_of_experiment(config, one))]
    if not tables and not alone:
        raise UserError(
            "no table is finished yet, so there is nothing to report: snakemake --cores all results/demo.csv first"
        )
    return tables, list(dict.fromkeys([*(name for table in tables for name in config.tables[table]), *alone]))


def parts_of_landing_page(config: Config) -> list[Path]:
    """Return the files that the report's first page shows; nothing is trained for it."""
    tables, experiments = shown_in_report(config)
    figures = RESULTS / "figures"
    return [
        *(RESULTS / f"{table}.md" for table in tables),
        *(curves_of(name)[0] for name in experiments),
        *(figures / f"views_{name}.png" for name in experiments),
        RESULTS / "compute.csv",
    ]


def parts_of_report(config: Config) -> list[Path]:
    """Return the files that the report is made of: its first page, and what Snakemake's own report shows."""
    tables, experiments = shown_in_report(config)
    pages, figures = RESULTS / "report", RESULTS / "figures"
    return [
        LANDING_PAGE,
        *(pages / f"{table}.html" for table in tables),
        *(curves_of(name)[0] for name in experiments),
        *(pages / f"{name}_recipe.html" for name in experiments),
        *(figures / f"views_{name}.png" for name in experiments),
        pages / "compute.html",
    ]


def rows_of_table(config: Config, table: str) -> list[str]:
    """Return what a table says of its experiments beside their metrics; a change of it makes the table anew."""
    experiments = [config.experiments[name] for name in config.tables[table]]
    return [
        f"{one.name} {one.recipe['epochs']} {one.recipe['global_batch']} {one.seeds}{_further(one)}"
        for one in experiments
    ]


def _further(experiment: Experiment) -> str:
    """Return an experiment's evaluations as a part of text; nothing for the linear one alone."""
    names = list(experiment.evaluations)
    return "" if names == [LINEAR] else f" {names}"


def config_of_experiment(raw: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """Return the part of config.yaml that an experiment's figures and pages are made from. raw: as it was read."""
    return {**_of_all(raw), "tables": {}, "experiments": {experiment: raw["experiments"][experiment]}}


def config_of_table(raw: Mapping[str, Any], table: str) -> dict[str, Any]:
    """Return the part of config.yaml that a table is made from. raw: as it was read."""
    names = raw["tables"][table]
    experiments = {name: raw["experiments"][name] for name in names}
    return {**_of_all(raw), "tables": {table: names}, "experiments": experiments}


def _of_all(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: raw[key] for key in ("data_dir", "cluster", "datasets", "evaluations", "extensions") if key in raw}
