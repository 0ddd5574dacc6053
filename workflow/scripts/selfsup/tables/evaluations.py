"""All figures of all evaluations as one tidy table: a row for each evaluation of each encoder that is finished."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from selfsup.config import Config, Experiment
from selfsup.layout import EncoderPaths, RunPaths
from selfsup.tables.frames import read_metrics

# The columns that every row has, in their order; a task's own follow. docs/results.md has them too.
COLUMNS = {
    "experiment": "of config.yaml",
    "seed": "of the run",
    "encoder": "trained, untrained (at random initialisation) or published (trained by others)",
    "epoch": "of the pretraining after which the encoder was exported; 0: untrained",
    "evaluation": "of config.yaml; linear: the recipe's own",
    "task": "the kind of evaluation",
    "dataset": "of config.yaml, on which the encoder was evaluated",
    "top1": "top-1 accuracy on the test images, %",
    "top5": "top-5 accuracy, %",
    "measure": "of the dataset, by which papers compare: top-1, mean per class or 11-point mAP",
    "figure": "by that measure, %",
    "n_test": "test images",
    "n_train": "training images of that dataset",
    "labels": "share of the training images' labels that was used, %",
    "protocol": "of the evaluation, in words",
    "settings": "what else the figures depend on, in words",
    "method": "of the pretraining",
    "backbone": "the network",
    "width": "channels after the stem; blank for timm's models",
    "stem": "in words; blank for timm's models",
    "epochs": "of the pretraining; 0: untrained",
    "global_batch": "of the pretraining",
    "network": "the part of the method that was exported",
    "numerics_changes": "how often the pretraining continued under other numerics",
    "dataset_fingerprint": "of the packed dataset",
    "encoder_sha256": "of the weights",
}


def all_evaluations(config: Config, results: Path) -> pd.DataFrame:
    """Return the rows, in the order of config.yaml; blank cells where a metrics.csv does not tell."""
    rows = [row for experiment in config.experiments.values() for row in _of_experiment(config, experiment, results)]
    own = [name for row in rows for name in row if name not in COLUMNS]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*COLUMNS, *own])))


def _of_experiment(config: Config, experiment: Experiment, results: Path) -> Iterator[dict]:
    kind = "published" if experiment.name in config.published else "trained"
    for seed in experiment.seeds:
        run = RunPaths(results, experiment.name, seed)
        at_boundaries = ((kind, encoder) for encoder in run.encoders_at_boundaries())
        for name, encoder in (*at_boundaries, (kind, run.encoder), ("untrained", run.random_init)):
            yield from _of_encoder(experiment, seed, name, encoder)


def _of_encoder(experiment: Experiment, seed: int, kind: str, encoder: EncoderPaths) -> Iterator[dict]:
    for paths in encoder.evaluations():
        name = paths.folder.name
        known = experiment.evaluations.get(name)
        told = read_metrics(paths.metrics).iloc[0].to_dict()
        epoch = 0 if kind == "untrained" else told.get("epochs")
        where = {"experiment": experiment.name, "seed": seed, "encoder": kind, "epoch": epoch, "evaluation": name}
        yield {**told, **where, "dataset": known.dataset if known else None}
