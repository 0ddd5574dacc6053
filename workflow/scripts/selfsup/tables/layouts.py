"""The table for people: Markdown, and LaTeX in the paper's layout (its table 1), with footnotes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from selfsup.tables.figure_keys import TOP1
from selfsup.tables.rows import COMPARED_WITH, TOLERANCE, evaluation_in_words

DATASETS = {"cifar10": "CIFAR10", "imagenet": "ImageNet"}  # as the paper writes them
WIDEST = 6  # datasets that stand side by side
DETAILS = {
    "Implementation": "implementation",
    "Dataset": "dataset",
    "Evaluation": "evaluation",
    "Differs in": "differs_in",
    "Method": "method",
    "Backbone": "backbone",
    "Width": "width",
    "Epochs": "epochs",
    "Batch": "global_batch",
    "Seeds": "seeds",
    "Best epoch (%)": "best_top1",
    "Split": "split",
    "Training images": "n_train",
    "Labels (%)": "labels",
    "Test images": "n_test",
    "GPU-hours": "gpu_hours",
    "Verdict": "verdict",
    "Protocol": "protocol",
}


@dataclass
class Notes:
    """Footnotes, lettered in the order of their first mention: a to z, then aa to az, ba and so on."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str | None) -> str:
        """Return the letter of a footnote, added if it is new; nothing for no text."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return _letters(self.texts.index(text))

    def lettered(self) -> list[tuple[str, str]]:
        """Return all footnotes, each behind its letter."""
        return [(_letters(number), text) for number, text in enumerate(self.texts)]


def to_markdown(frame: pd.DataFrame) -> str:
    """Return the table in the paper's layout, below it what each row rests on, then the footnotes."""
    notes = Notes()
    grid = _grid(frame)
    head = ["Top-1 / Top-5 (%)", *grid.across.values()]
    accuracies = [
        [title, *(_pair(grid.cells.get((one, other)), notes) for other in grid.across)]
        for one, title in grid.down.items()
    ]
    needed = {"evaluation": _several(frame), "differs_in": frame["differs_in"].notna().any()}
    shown = {title: key for title, key in DETAILS.items() if needed.get(key, True)}
    details = [[_detail(row, key) for key in shown.values()] for row in _named(frame)]
    lines = [*_columns(head, accuracies), "", *_columns(list(shown), details), "", *_remarks(frame)]
    lines += [f"- [{letter}] {text}" for letter, text in notes.lettered()]
    return "\n".join(lines) + "\n"


def to_latex(frame: pd.DataFrame) -> str:
    """Return the table in the paper's layout: implementations down, datasets across; needs no package."""
    notes = Notes()
    grid = _grid(frame)
    spans = " & ".join(rf"\multicolumn{{2}}{{c}}{{{_tex(title)}}}" for title in grid.across.values())
    lines = [
        rf"\begin{{tabular}}{{l{'cc' * len(grid.across)}}}",
        r"\hline",
        rf"{grid.corner} & {spans} \\",
        " & ".join(["", *(["Top-1", "Top-5"] * len(grid.across))]).strip() + r" \\",
        r"\hline",
    ]
    for one, title in grid.down.items():
        figures = []
        for other in grid.across:
            row = grid.cells.get((one, other))
            mark = notes.mark(_footnote(row)) if row is not None else ""
            figure = _tex(_percent(row, "figure")) + (f"$^{{{mark}}}$" if mark else "")
            figures += [figure, _tex(_percent(row, "top5")) if _has_top5(row) else ""]
        lines.append(" & ".join([_tex(title), *figures]) + r" \\")
    lines += [r"\hline", r"\end{tabular}"]
    lines += [rf"\par\footnotesize $^{{{letter}}}$ {_tex(text)}" for letter, text in notes.lettered()]
    return "\n".join(lines) + "\n"


def _letters(number: int) -> str:
    """Return the letters of a footnote: a for 0, z for 25, aa for 26."""
    before, place = divmod(number, 26)
    return (_letters(before - 1) if before else "") + chr(ord("a") + place)


Column = tuple[str, str]  # a dataset and, on it, an evaluation


class Grid(NamedTuple):
    """What stands down and across, titles by what they stand for, and the lines by both. corner: what stands down."""

    corner: str
    down: dict
    across: dict
    cells: dict[tuple, Mapping]


def _grid(frame: pd.DataFrame) -> Grid:
    """Return implementations by datasets, as the paper has them, or turned where a page has no room for so many."""
    rows = _named(frame)
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    ours = [
        name for name in names if any(row["implementation"] == name and row["status"] != "published" for row in rows)
    ]
    names = [name for name in names if name not in ours] + ours
    placed = [(row, _column(row, rows)) for row in rows]
    cells = {(row["implementation"], column): row for row, column in placed}
    measures = {column: row["measure"] for row, column in placed if not pd.isna(row["measure"])}
    down, across = dict(zip(names, names, strict=True)), _titles(dict.fromkeys(one for _, one in placed), measures)
    if len(across) <= WIDEST:
        return Grid("Implementations", down, across, cells)
    return Grid("Datasets", across, down, {(column, name): row for (name, column), row in cells.items()})


def _column(row: Mapping, rows: Sequence[Mapping]) -> Column:
    """Return the column of a line: a published figure's is that of our evaluation which is done like it."""
    if not pd.isna(row["evaluation"]):
        return row["dataset"], row["evaluation"]
    alike = ("dataset", "task", "labels")
    ours = (one for one in rows if not pd.isna(one["evaluation"]) and not pd.isna(one["task"]))
    same = (one["evaluation"] for one in ours if all(one[key] == row[key] for key in alike))
    return row["dataset"], next(same, evaluation_in_words(row))


def _titles(columns: Iterable[Column], measures: Mapping[Column, str]) -> dict[Column, str]:
    """Return the columns' titles: a dataset's name, an evaluation's where it has several, a measure unlike top-1."""
    columns = list(columns)
    several = {dataset for dataset, _ in columns if sum(dataset == one for one, _ in columns) > 1}
    names = {column: DATASETS.get(column[0], column[0]) for column in columns}
    evaluations = {column: f", {column[1]}" if column[0] in several else "" for column in columns}
    told = {column: f", {measure}" for column, measure in measures.items() if measure != TOP1}
    return {column: names[column] + evaluations[column] + told.get(column, "") for column in columns}


def _several(frame: pd.DataFrame) -> bool:
    return frame["evaluation"].nunique() > 1


def _named(frame: pd.DataFrame) -> list[dict]:
    """Return the lines; where several experiments share a column, ours carry the experiment's name."""
    ours = frame["status"] != "published"
    several = frame.loc[ours, ["implementation", "dataset", "evaluation"]].duplicated().any()
    rows = frame.to_dict("records")
    for row in rows:
        if several and row["status"] != "published":
            row["implementation"] += f" ({row['experiment']})"
    return rows


def _pair(row: Mapping | None, notes: Notes) -> str:
    if row is None:
        return ""
    if pd.isna(row["figure"]):
        return row["status"]
    mark = notes.mark(_footnote(row))
    top5 = f" / {_percent(row, 'top5')}" if _has_top5(row) else ""
    return _percent(row, "figure") + top5 + (f" [{mark}]" if mark else "")


def _has_top5(row: Mapping | None) -> bool:
    """Return whether a top-5 accuracy belongs beside the headline: papers do not always tell it."""
    if row is None or row["status"] == "not run":
        return row is not None
    return row["measure"] == TOP1 and not pd.isna(row["top5"])


def _percent(row: Mapping | None, key: str) -> str:
    if row is None:
        return ""
    if pd.isna(row[key]):
        return "-" if row["status"] == "published" else row["status"]
    spread = row[f"{key}_std"]
    return f"{row[key]:.2f}" + ("" if pd.isna(spread) else f" ± {spread:.2f}")


def _footnote(row: Mapping) -> str | None:
    """Return where a published figure comes from, or why one of ours cannot be compared."""
    if row["status"] == "published":
        return row["source"]
    changes = row["numerics_changes"]
    texts = [f"not comparable: {row['verdict_reason']}" if row["verdict"] == "not comparable" else ""]
    if not pd.isna(changes) and changes:
        texts.append(f"{changes} changes of devices, precision or versions during the pretraining")
    return "; ".join(filter(None, texts)) or None


def _detail(row: Mapping, key: str) -> str:
    value = row[key]
    if key == "gpu_hours":
        on_cpu = not pd.isna(row["device_hours"]) and not value
        return f"none: {row['device_hours']:.2f} h of CPU" if on_cpu else _text(value, ",.4g")
    if key == "best_top1":
        return _text(value, ".2f")
    if key == "labels":
        return _text(value, "g")
    if key == "verdict" and row["verdict"] in ("agrees", "differs"):
        return f"{row['verdict']} ({row['difference']:+.2f})"
    return _text(value, "")


def _text(value, form: str) -> str:
    return "" if value is None or pd.isna(value) else format(value, form)


def _remarks(frame: pd.DataFrame) -> list[str]:
    """Return how the figures are to be read, and the encoders they belong to."""
    remarks = ["Last epoch, mean ± standard deviation over seeds. The best epoch is chosen on the test set: no claim."]
    if frame["verdict"].isin(["agrees", "differs"]).any():
        remarks.append(
            f"Verdict: last epoch's top-1 against {COMPARED_WITH}, tolerance {TOLERANCE:g} points, by which single "
            "runs of the paper's authors differ."
        )
    run = frame[frame["status"] == "run"].to_dict("records")
    encoders = [
        f"{row['implementation']} ({row['experiment']}): encoder SHA-256 {row['encoder_sha256']}" for row in run
    ]
    return [f"- {remark}" for remark in dict.fromkeys([*remarks, *encoders])]


def _columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]

    def joined(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [joined(head), joined(["-" * width for width in widths]), *map(joined, lines)]


def _tex(text: str) -> str:
    for plain in "&%_#":
        text = text.replace(plain, rf"\{plain}")
    return text.replace("±", r"$\pm$")
