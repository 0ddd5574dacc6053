"""Figures of each evaluation on the tests' tiny dataset: what golden_values.py records.

A change of code that changes one has to raise the task's version, so that finished evaluations run again.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from test_recipe_keys import BUSY

from frozen import judged_of, run
from runs import evaluate, evaluation, fine_tuning
from selfsup.data.store import PackedStore
from selfsup.models import initial_backbone
from selfsup.recipe import load_recipe, merge
from selfsup.settings.registries import TASKS
from tiny import TINY

# Relative. Processors sum in different orders, and each step of fine-tuning carries on what came of it.
TOLERANCES = {"linear": 1e-4, "fine_tune": 1e-3, "knn": 1e-5, "logistic": 1e-5}


def figures(store: PackedStore, folder: Path) -> dict[str, list[float]]:
    """Return the figures of each task, by its name and version."""
    return {name_of(task): figures_of(task, store, folder / task) for task in TOLERANCES}


def name_of(task: str) -> str:
    """Return a task's name and version, as they are recorded."""
    return f"{task}, version {TASKS[task].version}"


def figures_of(task: str, store: PackedStore, folder: Path) -> list[float]:
    """Return the figures of one task: losses and accuracies of its rows and of metrics.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    of: Callable = {"linear": _linear, "fine_tune": _fine_tune}.get(task, _frozen)
    return [float(value) for value in of(task, store, folder)]


def close(task: str, found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Say whether figures are equal but for what processors round differently."""
    tolerance = TOLERANCES[task]
    return len(found) == len(wanted) and all(
        math.isclose(*pair, rel_tol=tolerance) for pair in zip(found, wanted, strict=True)
    )


def _linear(task: str, store: PackedStore, folder: Path) -> list[float]:
    """Every operation of a view takes part."""
    recipe = merge(load_recipe("digits", TINY), {"linear": {"train_view": BUSY}})
    encoder = initial_backbone(recipe, 0).eval().requires_grad_(False)
    return _of_rows(evaluate(evaluation(encoder, store, recipe), folder))


def _fine_tune(task: str, store: PackedStore, folder: Path) -> list[float]:
    recipe = load_recipe("digits", TINY)
    encoder = initial_backbone(recipe, 0).eval().requires_grad_(False)
    changes = {
        "train_view": merge(recipe["linear"]["train_view"], BUSY),
        "lengths": [1],
        "peak_lrs": [0.005, 0.01],
        "weight_decays": [1e-3],
    }
    return _of_rows(evaluate(fine_tuning(encoder, store, recipe, changes), folder))


def _of_rows(rows: Sequence[dict]) -> list[float]:
    """Return the training loss of each row of history.csv, and top-1 and top-5 of the last."""
    return [*(row["train_loss"] for row in rows), rows[-1]["top1"], rows[-1]["top5"]]


def _frozen(task: str, store: PackedStore, folder: Path) -> list[float]:
    """All numbers of the rows and of metrics.csv, but iterations, which roundings change."""
    done = run(task, judged_of(load_recipe("digits", TINY), store), folder)
    return [value for line in (*done.rows, done.figures()) for key, value in line.items() if key != "iterations"]
