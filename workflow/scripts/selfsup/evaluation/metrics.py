"""The result files of an evaluation: metrics.csv with all that its figures depend on. Imports no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selfsup.layout import LINEAR, EvaluationPaths
from selfsup.protocols import Evaluation
from selfsup.tables.figure_keys import MEASURES, figure_keys


def result_files(
    evaluation: Evaluation,
    figures: Mapping[str, Any],
    rows: Sequence[Mapping],
    further_rows: Sequence[Mapping],
    card: Mapping,
    recipe: Mapping,
    store: Any,
    seed: int,
) -> dict[str, str]:
    """Return the result files' texts by name.

    figures, rows, further_rows: a task's. card: the encoder's. store: the PackedStore that was evaluated on.
    """
    own = {key: figures.get(key) for key in ("top1", "top5")}
    rest = {key: value for key, value in figures.items() if key not in own and value != ""}
    metrics = {
        **own,
        "measure": store.measure,
        "figure": figures[MEASURES[store.measure]],
        "n_test": len(store.test),
        **rest,
        "seed": seed,
        "network": card["network"],
        "protocol": ", ".join([evaluation.settings.protocol(recipe), *store.remarks()]),
        "dataset_fingerprint": store.fingerprint,
        "encoder_sha256": card["encoder_sha256"],
        "numerics_changes": card.get("training", {}).get("numerics_changes", 0),
        **keys_of(evaluation, card, recipe, len(store.train)),
    }
    paths = EvaluationPaths(Path())
    files = {paths.metrics: [metrics], paths.history: rows, paths.further: further_rows}
    return {path.name: pd.DataFrame(lines).to_csv(index=False) for path, lines in files.items() if lines}


def keys_of(evaluation: Evaluation, card: Mapping, recipe: Mapping, n_train: int | None) -> dict[str, Any]:
    """Return the keys of an evaluation's figures that metrics.csv does not have by other names."""
    settings = evaluation.settings
    words = {"task": evaluation.task, "settings": settings.in_words(recipe), "labels": settings.label_share}
    # Of another dataset than the pretraining's the number of images tells nothing of that.
    trained_on = n_train if evaluation.name == LINEAR else None
    return figure_keys(card, trained_on) | words | {"n_train": n_train}
