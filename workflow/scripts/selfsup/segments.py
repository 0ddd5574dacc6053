"""Cutting a pretraining into segments, each a bounded job. Imports no torch: Snakemake reads this in every job.

`segments.json` in a pretraining's folder records the run, its finished boundaries and their cards. It outlives the
checkpoints, so that deleting old ones to save space (the newest is needed), or changing `segment_epochs`, makes no
finished epoch run again. A boundary is a checkpoint and its card (names: `selfsup.layout`). Snakemake knows the card
alone: it deletes the outputs of jobs that it starts again or that fail, and a card can be written anew from the record.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.atomic_files import write_atomically
from selfsup.cards import card_if_any, read_card
from selfsup.errors import PermanentError, UserError
from selfsup.job.lock import living_holder
from selfsup.layout import PretrainPaths, RunFolder, boundary_files, epoch_of
from selfsup.recipe import differences, fingerprint, pretraining_part

DELETE_IT = "delete it; the checkpoints beside it stay as they are"
KINDS = {
    "revision": int,
    "fingerprint": str,
    "boundaries": list,
    "reached": int | float,
    "recipe": dict,
}  # of the record


def boundaries(epochs: int, segment_epochs: int, finished: Iterable[int] = (), reached: float = 0) -> list[int]:
    """Return the epochs at which segments end, in order; the last is `epochs`.

    `finished` boundaries stay; only the epochs after the last of them are cut into pieces of `segment_epochs`, and none
    ends before `reached`, the epoch of the newest rolling checkpoint: that work would be lost.
    """
    done = sorted(epoch for epoch in set(finished) if 0 < epoch <= epochs)
    start = done[-1] if done else 0
    ends = [end for end in range(start + segment_epochs, epochs, segment_epochs) if end >= reached]
    return done + ends + ([epochs] if start < epochs else [])


@dataclass(frozen=True)
class Done:
    """What a run has done: its finished boundaries, and the epoch of its newest checkpoint."""

    boundaries: list[int]
    reached: float


def work_done(folder: Path, recipe: Mapping, revision: int) -> Done:
    """Return what the run in `folder` has done.

    Raises UserError when the folder holds a run of another recipe or revision, with the differences and the ways on:
    saved work is never overwritten by surprise.
    """
    record = _read_record(folder)
    if record is None:
        return Done([], 0)
    if revision > record["revision"]:
        raise UserError(
            f"{folder} holds revision {record['revision']}, wanted {revision}. Set the old run aside: "
            f"python workflow/scripts/set_aside.py --run-folder {folder.parent} --revision {revision}"
        )
    if record["fingerprint"] != fingerprint(recipe, revision):
        lines = differences(pretraining_part(recipe), record["recipe"])
        if record["revision"] > revision:
            lines.append(f"revision: wanted {revision}, found {record['revision']}")
        raise PermanentError(
            f"{folder} holds a pretraining of another recipe; {'; '.join(lines)}. "
            "Restore the value, or raise the experiment's `revision` in config.yaml to train anew and keep this run"
        )
    return Done(record["boundaries"], record["reached"])


def is_finished(folder: Path, recipe: Mapping, revision: int, epoch: int) -> bool:
    """Return whether the segment that ends at `epoch` is finished, by the run's record."""
    return not holds_older(folder, revision) and epoch in work_done(folder, recipe, revision).boundaries


def finished_boundaries(folder: Path) -> list[int]:
    """Return the finished boundaries of the run in `folder`, of whatever recipe."""
    record = _read_record(folder)
    return record["boundaries"] if record else []


def recorded_cards(folder: Path) -> dict[str, dict]:
    """Return the cards of the boundaries, by their epochs as text. They outlive the files."""
    return (_read_record(folder) or {}).get("cards", {})


def restore_cards(folder: Path) -> None:
    """Make the record and the cards agree: a card without its record comes from an older version of this software, a
    record without its card from a job that Snakemake ended. Only while no job works there."""
    record = _read_record(folder)
    if record is None:
        return
    pretrain = PretrainPaths(folder)
    cards = {**{str(epoch): card for epoch, card in _found_cards(pretrain)}, **record.get("cards", {})}
    if cards != record.get("cards", {}):
        write_atomically(pretrain.record, json.dumps({**record, "cards": cards}, indent=1) + "\n")
    kept = [epoch_of(path.name) for path in boundary_files(folder)]
    for epoch in record["boundaries"]:
        card = pretrain.card(epoch)
        if str(epoch) in cards and not card.exists() and any(other >= epoch for other in kept):
            write_card(card, cards[str(epoch)])


def write_card(path: Path, card: Mapping) -> None:
    """Write the card of the checkpoint `path`, given by its own name or the checkpoint's."""
    write_atomically(path.with_suffix(".json"), json.dumps(dict(card), indent=1) + "\n")


def _found_cards(pretrain: PretrainPaths) -> Iterator[tuple[int, dict]]:
    for path in pretrain.cards():
        if card := card_if_any(path):
            yield epoch_of(path.name), card


def holds_older(folder: Path, revision: int) -> bool:
    """Return whether the run in `folder` is of an older revision."""
    record = _read_record(folder)
    return record is not None and record["revision"] < revision


def set_aside(run: Path, revision: int) -> Path | None:
    """Move what an older revision has left in `run` to a folder beside it; return that folder, or None without one.

    What does not depend on the training stays: the encoder at random initialisation and its evaluation. Raises
    UserError while a job works there, or where the folder beside it has such files already.
    """
    paths = RunFolder(run)
    if not holds_older(paths.pretrain.folder, revision):
        return None
    for folder in (one.folder for one in paths.job_folders()):
        holder = living_holder(folder)
        if holder:
            raise UserError(f"{folder} is in use by {holder}: wait until it has ended, or end it; then start again")
    aside = paths.aside(_read_record(paths.pretrain.folder)["revision"]).folder
    # The record goes last, with its folder: a move that was cut short is taken up again.
    parts = paths.of_a_revision()
    taken = [aside / path.name for path in parts if (aside / path.name).exists()]
    if taken:
        raise UserError(f"{taken[0]} is in the way of revision {revision}: move {aside} elsewhere, then start again")
    aside.mkdir(exist_ok=True)
    for path in parts:
        path.rename(aside / path.name)
    return aside


def record_run(
    folder: Path,
    recipe: Mapping,
    revision: int,
    *,
    boundary: int | None = None,
    reached: float = 0,
    card: Mapping | None = None,
) -> None:
    """Write the run into segments.json: a boundary it has finished, the epoch of a checkpoint it has saved, or the card
    of a boundary."""
    done = work_done(folder, recipe, revision)
    cards = {str(round(card["epoch"])): dict(card)} if card else {}
    record = {
        "revision": revision,
        "fingerprint": fingerprint(recipe, revision),
        "boundaries": sorted({*done.boundaries, *([boundary] if boundary else [])}),
        "reached": max(done.reached, reached, boundary or 0),
        "recipe": pretraining_part(recipe),
        "cards": {**recorded_cards(folder), **cards},
    }
    write_atomically(PretrainPaths(folder).record, json.dumps(record, indent=1) + "\n")


def _read_record(folder: Path) -> dict | None:
    path = PretrainPaths(folder).record
    try:
        record = read_card(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged, no JSON mapping: {DELETE_IT}") from error
    missing = [key for key in KINDS if key not in record]
    if missing:
        raise UserError(f"{path}: damaged, it lacks the key {missing[0]!r}: {DELETE_IT}")
    for key, value, kind in _values(record):
        if not isinstance(value, kind):
            raise UserError(f"{path}: damaged, {key} is {json.dumps(value)[:40]}: {DELETE_IT}")
    return record


def _values(record: Mapping) -> Iterator[tuple[str, Any, Any]]:
    """Yield what a record says with the type that it must have; parts after their whole."""
    yield from ((key, record[key], kind) for key, kind in KINDS.items())
    yield from ((f"boundaries[{place}]", epoch, int) for place, epoch in enumerate(record["boundaries"]))
    yield "cards", record.get("cards", {}), dict
    yield from ((f"cards.{epoch}", card, dict) for epoch, card in record.get("cards", {}).items())
