"""The table: the paper's rows beside ours, and the same encoder untrained. A run that does not exist says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from selfsup.errors import UserError
from selfsup.recipe import RECIPES

REFERENCE = RECIPES.parent / "reference" / "published.csv"
PUBLISHED = {"implementation": "Published weights", "source": "trained by others, evaluated here"}
OURS = "This work"
RANDOM = "Random initialisation"
COLUMNS = [
    "implementation",
    "dataset",
    "epochs",
    "global_batch",
    "seeds",
    "top1",
    "top5",
    "n_test",
    "protocol",
    "encoder_sha256",
    "top1_std",
    "top5_std",
    "numerics_changes",
    "experiment",
    "status",
    "source",
]
WHOLE_NUMBERS = ("epochs", "global_batch", "n_test", "numerics_changes")


@dataclass(frozen=True)
class Row:
    """One of our lines: an experiment's trained encoders, or the untrained ones (random_init)."""

    experiment: str
    dataset: str  # see `dataset_label`
    epochs: int
    global_batch: int
    seeds: list[int]
    metrics: list[Path]  # one file a seed
    random_init: bool


def dataset_label(name: str, source: str) -> str:
    """Return a dataset's name in tables: its source where the paper has figures for it, else that of config.yaml."""
    return source if source in set(pd.read_csv(REFERENCE)["dataset"]) else name


def make_table(table: str, rows: list[Row]) -> pd.DataFrame:
    """Return the table's lines, published ones first within each dataset.

    Published rows come along for each dataset in the table; a table that the paper has gets all of the paper's
    rows, and a dataset of the paper's without an experiment here a line "not run". No figure is ever filled in.
    """
    published = pd.read_csv(
        REFERENCE, dtype={"top1": float, "top5": float, "epochs": "Int64", "global_batch": "Int64", "n_test": "Int64"}
    )
    ours = pd.DataFrame([_line(row) for row in rows], columns=COLUMNS)
    wanted = published[(published["table"] == table) | published["dataset"].isin(ours["dataset"])]
    lines = []
    for dataset in dict.fromkeys([*wanted["dataset"], *ours["dataset"]]):
        lines += wanted[wanted["dataset"] == dataset].assign(status="published").to_dict("records")
        here = ours[ours["dataset"] == dataset].to_dict("records")
        lines += here or [
            {"experiment": "", "implementation": OURS, "dataset": dataset, "protocol": "not run", "status": "not run"}
        ]
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.astype({name: "Int64" for name in WHOLE_NUMBERS})


def to_markdown(frame: pd.DataFrame) -> str:
    """Return the table for people: a Markdown table of the columns that matter, notes and hashes below it."""
    several = frame.loc[frame["status"] == "run", ["implementation", "dataset"]].duplicated().any()
    head = [
        "Implementation",
        "Dataset",
        "Epochs",
        "Batch",
        "Seeds",
        "Top-1 (%)",
        "Top-5 (%)",
        "Test images",
        "Protocol",
    ]
    lines = []
    for row in frame.to_dict("records"):
        name = (
            f"{row['implementation']} ({row['experiment']})"
            if several and row["status"] != "published"
            else row["implementation"]
        )
        cells = [
            name,
            row["dataset"],
            row["epochs"],
            row["global_batch"],
            row["seeds"],
            _percent(row, "top1"),
            _percent(row, "top5"),
            row["n_test"],
            row["protocol"],
        ]
        lines.append([_text(cell) for cell in cells])
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]

    def joined(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return (
        "\n".join([joined(head), joined(["-" * width for width in widths]), *map(joined, lines), *_notes(frame)]) + "\n"
    )


def _line(row: Row) -> dict:
    line = {
        "implementation": RANDOM if row.random_init else OURS,
        "dataset": row.dataset,
        "epochs": 0 if row.random_init else row.epochs,
        "global_batch": None if row.random_init else row.global_batch,
        "seeds": " ".join(map(str, row.seeds)),
        "experiment": row.experiment,
    }
    missing = [path for path in row.metrics if not path.exists()]
    if missing:
        return {**line, "protocol": "not run", "status": "not run"}
    metrics = pd.concat([_read_metrics(path) for path in row.metrics])
    for key in ("n_test", "protocol"):
        if metrics[key].nunique() > 1:
            raise UserError(
                f"{row.experiment}: its seeds differ in {key}: {sorted(metrics[key].unique())}; evaluate them "
                "again, all in one way"
            )
    return {
        **line,
        "top1": metrics["top1"].mean(),
        "top5": metrics["top5"].mean(),
        "top1_std": metrics["top1"].std(),
        "top5_std": metrics["top5"].std(),
        "n_test": metrics["n_test"].iloc[0],
        "protocol": metrics["protocol"].iloc[0],
        "encoder_sha256": " ".join(metrics["encoder_sha256"]),
        "numerics_changes": metrics["numerics_changes"].sum(),
        "status": "run",
        "source": "measured here",
        **(PUBLISHED if metrics.get("network", pd.Series("")).str.contains("published").all() else {}),
    }


def _read_metrics(path: Path) -> pd.DataFrame:
    metrics = pd.read_csv(path)
    missing = {"top1", "top5", "n_test", "protocol", "encoder_sha256", "numerics_changes"} - set(metrics.columns)
    if missing or len(metrics) != 1:
        raise UserError(
            f"{path}: no metrics of one evaluation (lacks {', '.join(sorted(missing)) or 'a line'}): delete it "
            "and evaluate again"
        )
    return metrics


def _percent(row: Mapping, key: str) -> str:
    if pd.isna(row[key]):
        return row["status"]
    spread = row[f"{key}_std"]
    return f"{row[key]:.2f}" + ("" if pd.isna(spread) else f" ± {spread:.2f}")


def _text(cell) -> str:
    return "" if cell is None or pd.isna(cell) else str(cell)


def _notes(frame: pd.DataFrame) -> list[str]:
    notes = [
        f"- {row['implementation']}, {row['dataset']}: {row['source']}"
        for row in frame.to_dict("records")
        if row["status"] == "published"
    ]
    for row in frame[frame["status"] == "run"].to_dict("records"):
        notes.append(f"- {row['implementation']} ({row['experiment']}): encoder SHA-256 {row['encoder_sha256']}")
    return ["", *notes] if notes else []
