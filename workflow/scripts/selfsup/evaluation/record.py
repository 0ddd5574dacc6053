"""What an evaluation was made from, and its results, in a file of its own beside them: record.json.

Snakemake knows metrics.csv alone, and deletes it before it starts the job again; the job then writes it anew from the
record. Imports no torch: Snakemake reads this in every job.
"""

import contextlib
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsup.atomic_files import write_atomically
from selfsup.cards import card_if_any
from selfsup.layout import EncoderPaths, EvaluationPaths, store_in, untrained_twins
from selfsup.protocols import Evaluation
from selfsup.recipe import evaluation_part

# Of the metrics, in the encoder's card.
IN_THE_CARD = {"top1": float, "top5": float, "n_test": int, "seed": int, "protocol": str, "dataset_fingerprint": str}


def identity(
    evaluation: Evaluation, recipe: Mapping, seed: int, encoder: Path, data: Path, folder: Path
) -> dict[str, Any]:
    """Return all that the figures depend on. encoder: the weights, their card beside them; data: the store's folder;
    folder: of the results."""
    store = card_if_any(store_in(data))
    measure = store.get("measure", "") if store else _measure_of(folder)  # a dataset may have been deleted since
    return {
        "evaluation": evaluation_part(recipe, evaluation.task, evaluation.settings),
        "seed": seed,
        "encoder": card_if_any(encoder.with_suffix(".json")).get("encoder_sha256"),
        "data": store.get("fingerprint") or _data_of(folder),
        "version": evaluation.settings.version,
        **evaluation.settings.made_from(measure),
    }


def _data_of(folder: Path) -> str | None:
    """Return the data that finished results were made from, for where it has been deleted since."""
    return _recorded(folder, "identity").get("data") or _metrics(folder).get("dataset_fingerprint")


def _measure_of(folder: Path) -> str:
    """Return the measure of the data that finished results were made from; "" where they do not tell."""
    chosen_by = _recorded(folder, "identity").get("chosen_by")
    files = _recorded(folder, "files")
    rows = (_row(files.get(EvaluationPaths(folder).metrics.name, "")), _metrics(folder))
    return chosen_by or next((row["measure"] for row in rows if row.get("measure")), "")


def recorded(folder: Path, wanted: Mapping) -> dict[str, str] | None:
    """Return the result files, by name, if they were made from just what is wanted."""
    same = _recorded(folder, "identity") == dict(wanted)
    return (_recorded(folder, "files") or None) if same else None


def _recorded(folder: Path, part: str) -> dict[str, Any]:
    """Return a part of the record; nothing of a damaged one, so that the evaluation is done again."""
    paths = EvaluationPaths(folder)
    found = card_if_any(paths.record).get(part)
    if not isinstance(found, dict):
        return {}
    if part == "files":
        texts = all(isinstance(text, str) for text in found.values())
        return found if texts and _row(found.get(paths.metrics.name, "")) else {}
    return found


def recorded_elsewhere(folder: Path, wanted: Mapping, experiment: str) -> dict[str, str] | None:
    """Return the result files of another experiment's untrained encoder that were made from just what is wanted.

    Experiments of one recipe share it. experiment: the one that the results are for.
    """
    for paths in untrained_twins(EvaluationPaths(folder)):
        if files := recorded(paths.folder, wanted):
            return {
                name: _renamed(text, experiment) if name == paths.metrics.name else text for name, text in files.items()
            }
    return None


def _renamed(metrics: str, experiment: str) -> str:
    row = next(csv.DictReader(metrics.splitlines()))
    text = io.StringIO()
    told = {**row, "experiment": experiment} if "experiment" in row else row
    csv.writer(text, lineterminator="\n").writerows([list(told), list(told.values())])
    return text.getvalue()


def keep(folder: Path, made_from: Mapping, files: Mapping[str, str]) -> None:
    """Record results, and write them: metrics.csv last, since Snakemake waits for it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"identity": dict(made_from), "files": dict(files)}
    write_atomically(EvaluationPaths(folder).record, json.dumps(content, indent=1) + "\n")
    restore(folder, files)


def restore(folder: Path, files: Mapping[str, str]) -> None:
    """Write recorded results again. Files of other results, which these do not have, go."""
    for path in EvaluationPaths(folder).results:
        if path.name in files:
            write_atomically(path, files[path.name])
        else:
            path.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Have the evaluation run again, as who names it with --force wants."""
    EvaluationPaths(folder).record.unlink(missing_ok=True)


def older_results(
    folder: Path, evaluation: Evaluation, wanted: Mapping, encoder: Path, data: Path
) -> dict[str, str] | None:
    """Return the result files of an older version of this software, which kept no record, if all that they tell of what
    they were made from is what is wanted. Columns that it did not have yet are added to the metrics."""
    if EvaluationPaths(folder).record.exists() or wanted["version"] != 1:
        return None
    row, card = _metrics(folder), card_if_any(encoder.with_suffix(".json"))
    told = tuple(row.get(key) for key in ("encoder_sha256", "dataset_fingerprint", "seed"))
    same = told == (wanted["encoder"], wanted["data"], str(wanted["seed"]))
    # Its protocol in words, and the recipe that the encoder was exported with, stand for what was not written down.
    same = same and row.get("protocol", "").startswith(card.get("protocol", "?"))
    if not same or evaluation_part(card["recipe"]) != wanted["evaluation"]:
        return None
    paths = EvaluationPaths(folder)
    files = {path.name: path.read_text() for path in paths.results if path.exists()}
    return {**files, paths.metrics.name: _with_keys(row, evaluation, card, data)}


def _with_keys(row: Mapping, evaluation: Evaluation, card: Mapping, data: Path) -> str:
    from selfsup.evaluation.metrics import keys_of  # pandas is slow to load, and needed this once

    store = card_if_any(store_in(data))  # deleted since, perhaps: its number of images is then not known
    train = store["splits"]["train"]["images"] if store else None
    missing = {key: value for key, value in keys_of(evaluation, card, card["recipe"], train).items() if key not in row}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[*row, *missing], [*row.values(), *missing.values()]])
    return text.getvalue()


def figures(encoder: Path, checksum: str) -> dict[str, dict[str, Any]]:
    """Return the main figures of the encoder's finished evaluations, by the names of their folders beside it.

    Without those of an evaluation whose metrics.csv has a cell that is no number.
    """
    found = {}
    for paths in EncoderPaths(encoder.parent).evaluations():
        row = _metrics(paths.folder)
        if row.get("encoder_sha256") != checksum:
            continue
        with contextlib.suppress(ValueError):
            found[paths.folder.name] = {key: kind(row[key]) for key, kind in IN_THE_CARD.items() if row.get(key)}
    return found


def collect(encoder: Path) -> None:
    """Write the figures into the encoder's card. Evaluations that end at once all do this: each looks again after it
    has written, so that the last one leaves everybody's."""
    path = encoder.with_suffix(".json")
    for _ in range(100):
        card = card_if_any(path)
        found = figures(encoder, card.get("encoder_sha256", ""))
        if not card or card.get("evaluations", {}) == found:
            return
        write_atomically(path, json.dumps({**card, "evaluations": found}, indent=1) + "\n")


def _metrics(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        return _row(EvaluationPaths(folder).metrics.read_text(encoding="utf-8"))
    return {}


def _row(metrics: str) -> dict[str, str]:
    """Return the row of a metrics.csv, given as its text; empty where it has none."""
    with contextlib.suppress(csv.Error):
        return next(csv.DictReader(metrics.splitlines()), {})
    return {}
