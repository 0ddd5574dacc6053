"""The report's first page, results/report.html: the tables, the curves, what was run and what it took, in one file.

Imports no torch.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from selfsup.cards import read_card
from selfsup.config import Config, Experiment
from selfsup.layout import RunPaths
from selfsup.reports.audits import audits_in_words
from selfsup.reports.explain import Value, explained
from selfsup.reports.pages import figure, folded, markdown_blocks, page, table

# Columns of compute.csv that are for people, by what they are called here; times in hours.
COST = {
    "experiment": "experiment",
    "seed": "seed",
    "stage": "work",
    "attempts": "jobs",
    "devices": "devices",
    "device": "device",
    "gpu_hours": "GPU-hours",
    "device_hours": "device-hours",
    "wasted_device_hours": "of these wasted",
    "images_per_s": "images/s",
    "paper_gpu_hours": "the paper's GPU-hours",
}
HOURS = ("gpu_hours", "device_hours", "wasted_device_hours", "paper_gpu_hours")
CURVES = (
    "Dashed lines are the ends of segments, each a job of its own; dotted lines: the same encoder untrained. A healthy "
    "run keeps its feature spread and effective rank; in a collapsed one they fall to 0 and to 1."
)
VIEWS = (
    "Training images and the views that the method gets of them. It learns to find the same in both views of an image."
)
WASTED = (
    "Wasted hours went to steps that were lost when a job was killed, and done again. Hours on a CPU are device-hours."
)


def landing_page(config: Config, results: Path, tables: Sequence[str], experiments: Sequence[str]) -> str:
    """Return the page. tables, experiments: those whose files of the report are there."""
    parts = ["<h1>Results</h1>"]
    for name in tables:
        parts += _table(name, (results / f"{name}.md").read_text())
    for name in experiments:
        parts += _pictures(name, results / "figures")
    parts += ["<h2>What was run</h2>", table(pd.DataFrame([_told(config, results, name) for name in experiments]))]
    parts += ["<h2>What it took</h2>", _cost(results / "compute.csv"), f'<p class="small">{WASTED}</p>']
    parts += ["<h2>How it was trained</h2>", *(_recipe(config.experiments[name]) for name in experiments)]
    return page(*parts, title=f"Results: {', '.join([*tables, *experiments])}")


def _table(name: str, text: str) -> Iterator[str]:
    accuracies, *rest = markdown_blocks(text)
    yield f"<h2>Table {name}: top-1 / top-5 accuracy on test images</h2>"
    yield accuracies
    yield folded("what each row is based on: method, epochs, seeds, protocol, verdict", *rest)


def _pictures(name: str, figures: Path) -> Iterator[str]:
    yield f"<h2>Curves of {name}</h2>"
    yield figure(figures / f"{name}.svg", f"curves of the pretraining of {name}", CURVES)
    views = figure(figures / f"views_{name}.png", f"images of {name} and their views", VIEWS)
    yield folded(f"what {name} is trained on", views)


def _told(config: Config, results: Path, name: str) -> dict[str, str]:
    """Return a row of what was run: of an experiment, with what the cards of its encoders tell."""
    experiment, recipe = config.experiments[name], config.experiments[name].recipe
    cards = [card for run in _runs(experiment, results) if (card := _card(run.encoder.card))]
    trainings = [card.get("training") or {} for card in cards]
    trained = {"method": recipe["method"], "epochs": f"{recipe['epochs']}", "batch": f"{recipe['global_batch']}"}
    if not config.trained_by_recipe(name):
        trained = dict.fromkeys(trained, "")
    return {
        "experiment": name,
        "recipe": experiment.recipe_name,
        "method": trained["method"],
        "backbone": recipe["model"]["backbone"],
        "dataset": experiment.dataset,
        "epochs": trained["epochs"],
        "batch": trained["batch"],
        "seeds": ", ".join(map(str, experiment.seeds)),
        "jobs": ", ".join(str(len(one.get("attempts", []))) for one in trainings),
        "device": ", ".join(dict.fromkeys(str(one.get("numerics", {}).get("device", "")) for one in trainings)),
        "overrides": json.dumps(experiment.overrides) if experiment.overrides else "",
        "code": ", ".join(dict.fromkeys(str(card.get("code_revision", ""))[:20] for card in cards)),
        "encoder SHA-256": ", ".join(card["encoder_sha256"][:16] for card in cards),
        "audits": "; ".join(_audits(experiment, results)),
    }


def _runs(experiment: Experiment, results: Path) -> list[RunPaths]:
    return [RunPaths(results, experiment.name, seed) for seed in experiment.seeds]


def _audits(experiment: Experiment, results: Path) -> Iterator[str]:
    for seed, run in zip(experiment.seeds, _runs(experiment, results), strict=True):
        card = _card(run.encoder.card)
        if "training" in card:
            found = audits_in_words(results, experiment.name, seed, card)
            yield from (f"seed {seed}, {line.partition('; SHA-256')[0]}" for line in found)


def _card(path: Path) -> dict:
    return read_card(path) if path.exists() else {}


def _cost(path: Path) -> str:
    return cost_table(pd.read_csv(path, dtype=str).fillna(""))


def cost_table(costs: pd.DataFrame) -> str:
    """Return compute.csv as a table that fits the screen: of what was begun, the columns that people ask for."""
    begun = costs.loc[costs["attempts"] != "0", list(COST)].copy()
    for name in HOURS:
        begun[name] = begun[name].map(lambda cell: cell and f"{float(cell) + 0:.4g}")  # + 0: no minus before a zero
    return table(begun.rename(columns=COST))


def _recipe(experiment: Experiment) -> str:
    values = explained(experiment.recipe_name, experiment.overrides, overrides_from="config.yaml")
    return folded(f"the recipe of {experiment.name}, each value with its source", recipe_table(values))


def recipe_table(values: Sequence[Value]) -> str:
    """Return a recipe's values with their sources as a table, whose cells are broken where the screen ends."""
    rows = [{"key": one.key, "value": f"{one.value}", "source": one.source, "set in": one.file} for one in values]
    return table(pd.DataFrame(rows))
