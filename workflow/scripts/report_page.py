"""Write a page of the report as HTML: a table of results, a ledger, or an experiment's provenance.

    python workflow/scripts/report_page.py --table results/demo.md --output results/report/demo.html
    python workflow/scripts/report_page.py --csv results/compute.csv --output results/report/compute.html
    python workflow/scripts/report_page.py --experiment digits --output results/report/digits.html

Reads the file named, or config.yaml, the recipe's file and the encoders' cards under --results. Writes --output.
"""

import argparse
from pathlib import Path

import pandas as pd

from selfsup.as_run import config_as_run
from selfsup.atomic_files import write_atomically
from selfsup.cards import read_card
from selfsup.config import Config
from selfsup.errors import UserError, run_script
from selfsup.layout import RunPaths
from selfsup.reports.explain import explained
from selfsup.reports.landing import cost_table, recipe_table
from selfsup.reports.pages import markdown_page, page, table
from selfsup.settings.typed import suggest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=Path, help="a Markdown table of results")
    what.add_argument("--csv", type=Path, help="a ledger: compute.csv")
    what.add_argument("--experiment", help="a name under `experiments` in config.yaml")
    parser.add_argument("--config", default="config.yaml", help="path, or content as JSON; default config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default results")
    parser.add_argument("--output", required=True, type=Path, help="the page")
    arguments = parser.parse_args()
    if arguments.table:
        text = markdown_page(arguments.table.read_text())
    elif arguments.csv:
        text = page(cost_table(pd.read_csv(arguments.csv, dtype=str).fillna("")))
    else:
        config = config_as_run(arguments.config, arguments.results)
        text = origin(config, arguments.experiment, arguments.results)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, text)


def origin(config: Config, name: str, results: Path) -> str:
    """Return the page of an experiment: encoders with code and software they were made with, and the recipe."""
    if name not in config.experiments:
        raise UserError(f"config.yaml has no experiment {name!r}{suggest(name, list(config.experiments))}")
    experiment = config.experiments[name]
    cards = {seed: RunPaths(results, name, seed).encoder.card for seed in experiment.seeds}
    rows = [{"seed": seed, **_card(read_card(path))} for seed, path in cards.items() if path.exists()]
    values = explained(experiment.recipe_name, experiment.overrides, overrides_from="config.yaml")
    return page(
        "<h2>Encoders</h2>",
        table(pd.DataFrame(rows).astype(str)) if rows else "<p>none exported yet</p>",
        f"<h2>The recipe {experiment.recipe_name}, each value with its source and the file it stands in</h2>",
        "<p>Numbers are sections of the report; authors: its authors' code; official: the JAX release.</p>",
        recipe_table(values),
    )


def _card(card: dict) -> dict[str, str]:
    training = card.get("training", {})
    numerics = ", ".join(f"{key} {value}" for key, value in training.get("numerics", {}).items())
    versions = ", ".join(f"{key} {value}" for key, value in card.get("versions", {}).items())
    return {
        "encoder SHA-256": card["encoder_sha256"][:16],
        "fingerprint": training.get("fingerprint", "")[:16],
        "dataset": training.get("dataset_fingerprint", "")[:16],
        "epochs": f"{training.get('epoch', 0):g}",
        "jobs": str(len(training.get("attempts", []))),
        "computed with": numerics,
        "code": card.get("code_revision", "unknown").replace("+", " + "),
        "software": versions,
    }


if __name__ == "__main__":
    run_script(main)
