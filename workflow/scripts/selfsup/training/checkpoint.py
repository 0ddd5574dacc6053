"""Checkpoints that describe themselves, appear whole or not at all, and are checked before they are believed.

A checkpoint is `<name>.pt`, loaded without pickle's freedom (weights_only), and `<name>.json` beside it with its
SHA-256. In `partial/` of a run lie the rolling ones, `step_<N>.pt`, and the newest segment boundary, `epoch_<N>.pt`;
the boundary that Snakemake sees is a hard link to it, because Snakemake deletes the outputs of a job that fails.
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfsup.atomic_files import write_atomically
from selfsup.errors import PermanentError, UserError, reason_of
from selfsup.provenance import sha256
from selfsup.recipe import differences, pretraining_part

FORMAT = 1
KEPT_ROLLING = 2


class DamagedCheckpointError(UserError):
    """A checkpoint file that cannot be read or fails its checksum."""


def save_checkpoint(path: Path, state: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Write `state` to `path`, and `card` with the file's checksum to the JSON beside it; flushed, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        text = json.dumps({**card, "format": FORMAT, "sha256": sha256(temporary)}, indent=1)
        write_atomically(path.with_suffix(".json"), text + "\n")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # a full disk is either, by the moment it is met
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: the checkpoint cannot be written ({reason_of(error)}): free space or mend permissions, "
            "then start again"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint.

    Raises DamagedCheckpointError for a file whose content is wrong; PermanentError for one of a newer format; UserError
    where it cannot be read now (a file system that is away, no memory), which says nothing of the file.
    """
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        version, checksum = card["format"], card["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path}: its card cannot be read ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read now ({error}): start again when it can") from error
    if version > FORMAT:
        raise PermanentError(f"{path}: format {version}, this code reads up to {FORMAT}: update the code")
    try:
        if sha256(path) != checksum:
            raise DamagedCheckpointError(f"{path}: its checksum is not the one in {path.with_suffix('.json').name}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, MemoryError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}): start again when it can") from error


def newest_checkpoint(candidates: list[Path]) -> tuple[Path, dict[str, Any]] | None:
    """Return the valid checkpoint of the highest step, or None where no file exists.

    A damaged file is named and set aside as `<name>.damaged`. Raises DamagedCheckpointError when all are damaged.
    """
    damaged = []
    # One without a card has no step; it comes first, to be named and set aside like any damaged one.
    existing = sorted((path for path in candidates if path.exists()), key=step_of, reverse=True)
    for path in sorted(existing, key=lambda path: step_of(path) >= 0):
        try:
            return path, load_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged.append(path)
            path.rename(path.with_suffix(".damaged"))
            print(
                f"warning: {error}; set aside as {path.with_suffix('.damaged').name}, looking for an older one",
                flush=True,
            )
    if damaged:
        raise DamagedCheckpointError(
            f"{damaged[-1]}: no valid checkpoint is left here: restore one, or delete the run's folder to begin anew"
        )
    return None


def check_belongs(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError with a readable difference when a checkpoint is of another recipe, revision, seed or dataset."""
    lines = differences(pretraining_part(wanted["recipe"]), pretraining_part(found["recipe"]))
    keys = [key for key in ("revision", "seed", "dataset_fingerprint") if wanted[key] != found[key]]
    lines += [f"{key}: wanted {wanted[key]}, found {found[key]}" for key in keys]
    others = len(keys)
    if lines:
        # A seed or a dataset of another run is a slip on the command line: no reason to block the right command.
        kind = PermanentError if len(lines) > others or wanted["revision"] != found["revision"] else UserError
        raise kind(
            f"{path} belongs to another run; "
            + "; ".join(lines)
            + ". Restore the value, or raise `revision` in config.yaml to train anew"
        )


def link_boundary(boundary: Path, output: Path) -> None:
    """Make `output` and its JSON file the same files as the boundary kept in `partial/`; copies where links fail."""
    for suffix in (".json", ".pt"):
        source, target = boundary.with_suffix(suffix), output.with_suffix(suffix)
        temporary = output.with_suffix(f"{suffix}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            shutil.copy2(source, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # stays where both were the same file already


def prune(partial: Path, keep: Path | None = None) -> None:
    """Delete what `keep`, just written, makes needless: boundaries before it and rolling ones older than the last two.

    What is newer than `keep` stays. Without `keep` the run is over, and all that lies in `partial` goes.
    """
    rolling, boundaries = sorted(partial.glob("step_*.pt")), set(partial.glob("epoch_*.pt"))
    if keep is None:
        needless = {*rolling, *boundaries}
    else:
        older = [path for path in rolling if path != keep and step_of(path) <= step_of(keep)]
        spared = older[-(KEPT_ROLLING - 1) :] if keep in rolling else []
        passed = {path for path in boundaries if step_of(path) <= step_of(keep)}
        needless = {*older, *passed} - {keep, *spared}
    for path in needless:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    for path in partial.glob("*.tmp"):  # of a process that was killed while it wrote
        path.unlink(missing_ok=True)


def newest_by_card(candidates: list[Path]) -> Path | None:
    """Return the existing checkpoint of the highest step by their cards, unread, for a message."""
    return max(filter(Path.exists, candidates), key=step_of, default=None)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's JSON file states, or -1 where it says nothing."""
    try:
        return int(json.loads(path.with_suffix(".json").read_text())["step"])
    except (OSError, ValueError, KeyError):
        return -1
