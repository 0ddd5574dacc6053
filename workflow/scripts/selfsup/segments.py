"""Cutting a pretraining into segments, each a bounded job. Imports no torch: Snakemake reads this in every job.

`segments.json` in a run's folder records the run and its finished boundaries. It outlives the checkpoints, so that
deleting old ones to save space, or changing `segment_epochs`, never makes finished epochs run again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from selfsup.atomic_files import write_atomically
from selfsup.errors import UserError
from selfsup.recipe import differences, fingerprint, pretraining_part

RECORD = "segments.json"


def boundaries(epochs: int, segment_epochs: int, finished: Iterable[int] = ()) -> list[int]:
    """Return the epochs at which segments end, in order; the last is `epochs`.

    `finished` boundaries stay; only the epochs after the last of them are cut into pieces of `segment_epochs`.
    """
    done = sorted(epoch for epoch in set(finished) if 0 < epoch <= epochs)
    start = done[-1] if done else 0
    return done + list(range(start + segment_epochs, epochs, segment_epochs)) + ([epochs] if start < epochs else [])


def boundary_name(epoch: int) -> str:
    """Return the file name of the checkpoint after `epoch` epochs."""
    return f"epoch_{epoch:04d}.pt"


def finished_boundaries(folder: Path, recipe: Mapping, revision: int) -> list[int]:
    """Return the boundaries, in epochs, that the run in `folder` has finished.

    Raises UserError when the folder holds a run of another recipe or revision, with the differences and the ways on:
    saved work is never overwritten by surprise.
    """
    record = _read_record(folder)
    if record is None:
        return []
    if revision > record["revision"]:
        run = folder.parent
        raise UserError(
            f"{run} holds revision {record['revision']}, config.yaml asks for {revision}. "
            f"Keep the old run and begin the new: mv {run} {run}_revision{record['revision']}"
        )
    if record["fingerprint"] != fingerprint(recipe, revision):
        lines = differences(pretraining_part(recipe), record["recipe"])
        if record["revision"] > revision:
            lines.append(f"revision: wanted {revision}, found {record['revision']}")
        raise UserError(
            f"{folder} holds a pretraining of another recipe; {'; '.join(lines)}. "
            "Restore the value, or raise the experiment's `revision` in config.yaml to train anew and keep this run"
        )
    return record["boundaries"]


def record_run(folder: Path, recipe: Mapping, revision: int, boundary: int | None = None) -> None:
    """Write the run into segments.json, once it has saved something, and `boundary`, an epoch it has reached."""
    finished = {*finished_boundaries(folder, recipe, revision), *([boundary] if boundary else [])}
    record = {
        "revision": revision,
        "fingerprint": fingerprint(recipe, revision),
        "boundaries": sorted(finished),
        "recipe": pretraining_part(recipe),
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _read_record(folder: Path) -> dict | None:
    path = folder / RECORD
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): delete it; the checkpoints beside it stay as they are") from error
