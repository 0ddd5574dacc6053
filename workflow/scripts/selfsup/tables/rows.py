"""The table: the paper's rows beside ours, and the same encoder untrained. A run that does not exist says so.

The headline is the last epoch's accuracy, mean over seeds; the best epoch's stands in a column that no verdict uses.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

from selfsup.errors import UserError
from selfsup.job.ledger import NUMBERS, begun, read_ledger
from selfsup.layout import LINEAR
from selfsup.recipe import RECIPES
from selfsup.settings.notes import Bounds, Count, Natural, NotNegative, Pattern
from selfsup.settings.typed import Settings, hints, read
from selfsup.tables.figure_keys import KEYS, TOP1, differences, plain
from selfsup.tables.frames import METRICS, read_metrics

REFERENCE = RECIPES.parent / "reference" / "published.csv"
PUBLISHED = {"implementation": "Published weights", "source": "trained by others, evaluated here"}
OURS = "This work"
RANDOM = "Random initialisation"
LIKE_LINEAR = {"online probe": LINEAR}  # figures that papers set beside those of a linear evaluation; a footnote tells
COMPARED_WITH = "Devillers & Lefort"  # the paper that is reproduced
# Points of top-1. The paper's authors report 91.92 there and 90.44 for the same configuration in EquiMod
# (Devillers & Lefort, ICLR 2023): single runs differ by 1.5.
TOLERANCE = 1.5
Percent = Annotated[float, Bounds(at_least=0, at_most=100)]


class Line(Settings):
    """A row of results/<table>.csv, its columns in their order. A blank cell is a key that is not there."""

    implementation: str
    """whose figure it is"""
    dataset: str
    """see `dataset_label`"""
    epochs: Natural | None = None
    """of pretraining; 0: an untrained encoder"""
    global_batch: Count | None = None
    """of pretraining"""
    seeds: Annotated[str, Pattern(r"^[0-9]+( [0-9]+)*$", "list of seeds: numbers with a space between")] | None = None
    """of the runs"""
    top1: Percent | None = None
    """%, of the last epoch, mean over seeds"""
    top5: Percent | None = None
    """as top1"""
    n_test: Count | None = None
    """test images"""
    protocol: str
    """of the evaluation, in words"""
    encoder_sha256: str | None = None
    """one a seed"""
    top1_std: Percent | None = None
    """over seeds, n - 1; none for a single seed"""
    top5_std: Percent | None = None
    """as top1_std"""
    best_top1: Percent | None = None
    """of the best epoch on the test set, mean over seeds: no verdict uses it"""
    split: str | None = None
    """of the dataset, that was evaluated on"""
    gpu_hours: NotNegative | None = None
    """of one seed's pretraining, killed attempts included; 0 where it ran on a processor"""
    device_hours: NotNegative | None = None
    """the same, whatever the devices"""
    reference_top1: Percent | None = None
    """the published figure, by the dataset's measure"""
    difference: Annotated[float, Bounds(at_least=-100, at_most=100)] | None = None
    """figure - reference_top1"""
    tolerance: NotNegative | None = None
    """points of top-1"""
    verdict: Literal["agrees", "differs", "not comparable", "no reference", "untrained", "not run"] | None = None
    """of top1 beside the published figure"""
    verdict_reason: str | None = None
    """in words"""
    numerics_changes: Natural | None = None
    """how often a run continued under other numerics"""
    experiment: str | None = None
    """of config.yaml"""
    status: Literal["published", "run", "not run"]
    """whether there is a figure"""
    source: str | None = None
    """where the figure is from"""
    # What else a verdict rests on: tables/figure_keys.py. Blank: not known, as of evaluations of an older version.
    method: str | None = None
    """of pretraining"""
    backbone: str | None = None
    """the network"""
    width: Count | None = None
    """channels after the stem"""
    stem: str | None = None
    """in words"""
    task: str | None = None
    """of the evaluation"""
    settings: str | None = None
    """of the evaluation, beside its protocol"""
    labels: Percent | None = None
    """%, of the training images' labels, that the evaluation used"""
    n_train: Count | None = None
    """training images"""
    evaluation: str | None = None
    """of config.yaml, by which the figure was made; linear: the recipe's own"""
    head: str | None = None
    """the method's projector, in words"""
    measure: str | None = None
    """of the dataset, by which papers compare: top-1, mean per class or 11-point mAP"""
    figure: Percent | None = None
    """%, by that measure; top-1's is `top1`"""
    figure_std: Percent | None = None
    """as top1_std"""
    differs_in: str | None = None
    """keys of the recipe, with their values, in which the table's experiments of that recipe differ"""


COLUMNS = list(hints(Line))
WHOLE_NUMBERS = ("epochs", "global_batch", "n_test", "numerics_changes", "width", "n_train")


@dataclass(frozen=True)
class Row:
    """One of our lines: an experiment's trained encoders, or the untrained ones (random_init)."""

    experiment: str
    dataset: str  # see `dataset_label`; that was evaluated on
    epochs: int
    global_batch: int
    seeds: list[int]
    metrics: list[Path]  # one file a seed
    random_init: bool
    split: str = "test"
    evaluation: str = LINEAR
    task: str = LINEAR
    labels: float = 100  # %, of the training images, that the evaluation uses
    ledgers: tuple[Path, ...] = ()  # of the pretrainings, one a seed
    method: str | None = None  # of the experiment, see `method_in_words`; None: what the metrics say
    differs_in: str | None = None  # see the column of that name


def dataset_label(name: str, source: str) -> str:
    """Return a dataset's name in tables: its source where the paper has figures for it, else that of config.yaml.

    Images of another source that bear the name of the paper's are told apart: nobody has checked what they are.
    """
    known = set(pd.read_csv(REFERENCE)["dataset"])
    if source in known:
        return source
    return f"{name} ({source})" if name in known else name


def make_table(table: str, rows: list[Row]) -> pd.DataFrame:
    """Return the table's lines, published ones first within each dataset.

    Published rows come along for each dataset and method in the table, those of another task than the linear
    evaluation where ours has that, too; a table that a paper has gets all of its rows, and a dataset of its without an
    experiment here a line "not run". No figure is ever filled in.
    """
    published = read_published()
    ours = pd.DataFrame([_judged(_line(row), published) for row in rows], columns=COLUMNS)
    along = published.apply(_comes_along, axis=1, rows=rows) & _of_methods(published, rows, ours)
    wanted = published[(published["table"] == table) | along]
    lines = []
    for dataset in dict.fromkeys([*wanted["dataset"], *ours["dataset"]]):
        lines += wanted[wanted["dataset"] == dataset].assign(status="published").to_dict("records")
        here = ours[ours["dataset"] == dataset].to_dict("records")
        lines += here or [_judged(_not_run(dataset, wanted), published)]
    frame = pd.DataFrame(lines, columns=COLUMNS)
    return frame.astype({name: "Int64" for name in WHOLE_NUMBERS})


def _of_methods(published: pd.DataFrame, rows: list[Row], ours: pd.DataFrame) -> pd.Series:
    """Return which published rows are of a dataset and a method in the table, or stand beside such a method's.

    Where neither the experiment nor the metrics tell the method, those of all methods are.
    """
    methods = published["beside"].fillna(published["method"])
    found = pd.Series(False, published.index)
    for row, known in zip(rows, ours["method"], strict=True):
        method = row.method or plain(known)
        found |= (published["dataset"] == row.dataset) & (
            (methods == method) | (method is None and not row.random_init)
        )
    return found


def read_published() -> pd.DataFrame:
    """Return the published figures; of those without a measure, which are older than that column, it is top-1."""
    kinds = {"top1": float, "top5": float, "figure": float, **{name: "Int64" for name in WHOLE_NUMBERS}}
    published = pd.read_csv(REFERENCE, dtype=kinds)
    return _measured(published, published["measure"].fillna(TOP1))


def _measured(frame: pd.DataFrame, measure: pd.Series | str) -> pd.DataFrame:
    figure = frame["figure"] if "figure" in frame else pd.Series(float("nan"), frame.index)
    return frame.assign(measure=measure, figure=figure.fillna(frame["top1"]))


def _comes_along(published: Mapping, rows: list[Row]) -> bool:
    """Return whether a published figure belongs into a table of ours."""
    task = LIKE_LINEAR.get(published["task"], published["task"])
    here = [row for row in rows if row.dataset == published["dataset"]]
    return bool(here) and (task == LINEAR or any((row.task, row.labels) == (task, published["labels"]) for row in here))


def _not_run(dataset: str, wanted: pd.DataFrame) -> dict:
    """Return the line of a paper's dataset that nothing here is evaluated on."""
    theirs = wanted[wanted["dataset"] == dataset].iloc[0]
    return {"implementation": OURS, "dataset": dataset, "evaluation": evaluation_in_words(theirs), **NOT_RUN}


def evaluation_in_words(published: Mapping) -> str:
    """Return what stands for a published figure's evaluation where none of ours is like it."""
    share = (
        "" if pd.isna(published["labels"]) or published["labels"] == 100 else f", {published['labels']:g} % of labels"
    )
    return f"{LIKE_LINEAR.get(published['task'], published['task'])}{share}"


def to_csv(frame: pd.DataFrame) -> str:
    """Return the table as CSV, every figure in full. Raises UserError where a row is not as `Line` says."""
    text = frame.to_csv(index=False)
    read_table(text, "the table")
    return text


def read_table(text: str, thing: str) -> pd.DataFrame:
    """Return a table from its CSV. Raises UserError where a row is not as `Line` says."""
    kinds = {"seeds": str, "experiment": str, "encoder_sha256": str, **{name: "Int64" for name in WHOLE_NUMBERS}}
    frame = pd.read_csv(io.StringIO(text), dtype=kinds)
    read(list[Line], [_without_blanks(row) for row in frame.to_dict("records")], thing)
    return frame


NOT_RUN = {"protocol": "not run", "status": "not run", "experiment": ""}


def _line(row: Row) -> dict:
    line = {
        "implementation": RANDOM if row.random_init else OURS,
        "dataset": row.dataset,
        "epochs": 0 if row.random_init else row.epochs,
        "global_batch": None if row.random_init else row.global_batch,
        "seeds": " ".join(map(str, row.seeds)),
        "split": row.split,
        "evaluation": row.evaluation,
        "differs_in": row.differs_in,
    }
    missing = [path for path in row.metrics if not path.exists()]
    if missing:
        return {**line, **NOT_RUN, "experiment": row.experiment}
    metrics = pd.concat([_read_metrics(path) for path in row.metrics])
    return {
        **line,
        **_keys(metrics, row.experiment),
        "experiment": row.experiment,
        "top1": metrics["top1"].mean(),
        "top5": metrics["top5"].mean(),
        "top1_std": metrics["top1"].std(),
        "top5_std": metrics["top5"].std(),
        "figure": metrics["figure"].mean(),
        "figure_std": metrics["figure"].std(),
        "best_top1": metrics["best_top1"].mean() if "best_top1" in metrics else None,
        "encoder_sha256": " ".join(metrics["encoder_sha256"]),
        "numerics_changes": metrics["numerics_changes"].sum(),
        "gpu_hours": _hours(row.ledgers, "gpu_hours"),
        "device_hours": _hours(row.ledgers, "device_hours"),
        "status": "run",
        "source": "measured here",
        **(PUBLISHED if metrics.get("network", pd.Series("")).str.contains("published").all() else {}),
    }


def _keys(metrics: pd.DataFrame, experiment: str) -> dict:
    """Return those of `KEYS` that the metrics have a column for; None where some seed's file does not tell it."""
    keys = {}
    for key in filter(metrics.columns.__contains__, KEYS):
        values = [plain(value) for value in metrics[key]]
        known = sorted({value for value in values if value is not None}, key=str)
        if len(known) > 1:
            raise UserError(
                f"{experiment}: its seeds differ in {key}: {known}; evaluate them again, all in the same way"
            )
        keys[key] = None if None in values else known[0]
    return keys


def _judged(line: dict, published: pd.DataFrame) -> dict:
    """Return one of our lines with a verdict: does the last epoch's top-1 agree with the paper's?

    Only with a figure of its authors' for the same method that has the same keys; else the line says in which it
    differs from the nearest.
    """
    if line["implementation"] == RANDOM:
        return {**line, "verdict": "untrained"}
    if line["status"] == "not run":
        return {**line, "verdict": "not run"}
    method, here = line.get("method"), published[published["dataset"] == line["dataset"]]
    if method is None and line["implementation"] == PUBLISHED["implementation"]:
        return {**line, "verdict": "no reference", "verdict_reason": "trained by others, by a method that is not told"}
    theirs = here[here["implementation"].str.startswith(COMPARED_WITH) & here["beside"].isna()]
    found = theirs if method is None else theirs[theirs["method"] == method]
    if found.empty:
        reason = None if theirs.empty else f"{COMPARED_WITH} have no figure of {method} on {line['dataset']}"
        return {**line, "verdict": "no reference", "verdict_reason": reason}
    nearest = min(found.to_dict("records"), key=lambda reference: len(differences(line, reference)))
    difference = line["figure"] - nearest["figure"]
    line = {**line, "reference_top1": nearest["figure"], "difference": difference, "tolerance": TOLERANCE}
    if reasons := differences(line, nearest):
        return {**line, "verdict": "not comparable", "verdict_reason": "; ".join(reasons)}
    agrees = abs(difference) <= TOLERANCE
    where = f"{difference:+.2f} points from {nearest['implementation']}, tolerance {TOLERANCE:g}"
    return {**line, "verdict": "agrees" if agrees else "differs", "verdict_reason": where}


def _hours(ledgers: tuple[Path, ...], column: str) -> float | None:
    """Return the hours of a column, mean over seeds; None where a ledger is missing or tells of no attempt."""
    attempts = [begun(read_ledger(path, NUMBERS)) for path in ledgers]
    sums = [sum(float(row[column] or 0) for row in rows) for rows in attempts if rows]
    return sum(sums) / len(sums) if sums and len(sums) == len(ledgers) else None


def _read_metrics(path: Path) -> pd.DataFrame:
    metrics = read_metrics(path, METRICS)
    return _measured(metrics, metrics.get("measure", TOP1))


def _without_blanks(row: Mapping) -> dict:
    return {key: value.item() if hasattr(value, "item") else value for key, value in row.items() if not pd.isna(value)}
