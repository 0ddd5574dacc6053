"""Checkpoints that describe themselves, appear whole or not at all, and are verified before use.

A checkpoint is `<name>.pt`, loaded with weights_only so that it cannot run code, and its card, `<name>.json`, with the
SHA-256. Rolling checkpoints are `partial/step_<N>.pt` in the run's folder. The boundaries of segments,
`epoch_<N>.pt`, lie in that folder itself; the run's record holds their cards too (`selfsup.segments`).
"""

import contextlib
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from selfsup import cards
from selfsup.atomic_files import put_in_place
from selfsup.errors import PermanentError, UserError, reason_of
from selfsup.layout import boundary_name, epoch_of, is_boundary, rolling_files
from selfsup.provenance import sha256
from selfsup.recipe import differences, pretraining_part
from selfsup.segments import recorded_cards, write_card

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT_ROLLING = 2


class DamagedCheckpointError(UserError):
    """A checkpoint file that cannot be read or fails its checksum."""


def find_card(path: Path) -> dict[str, Any]:
    """Return a checkpoint's card.

    For a boundary the record's copy comes first, because it is written first, then the file beside the checkpoint, then
    a card made from the checkpoint itself. Raises OSError, ValueError, KeyError or BadZipFile if there is none.
    """
    boundary = is_boundary(path)
    if boundary and (recorded := recorded_cards(path.parent).get(str(epoch_of(path.name)))):
        return recorded
    try:
        return cards.read_card(path.with_suffix(".json"))
    except (FileNotFoundError, ValueError):
        if not boundary:
            raise
        return _card_from(path)


def known_card(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint's card, or None if it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return find_card(path)
    return None


def _card_from(path: Path) -> dict[str, Any]:
    """Return a card made from a boundary's file, whose inner checksums must be right.

    Raises ValueError if they are not; OSError, or UserError where memory is short, which say nothing about the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        state = torch.load(path, map_location="cpu", weights_only=True) if whole else {}
    except OSError:
        raise
    except Exception as error:  # damaged archives and pickles raise whatever their readers come across
        if _is_short_of_memory(error):
            raise UserError(f"{path}: cannot be read now, memory is short: start again when there is more") from error
        raise ValueError(f"the file is damaged, {type(error).__name__}") from error
    if not whole:
        raise ValueError("the file is damaged")
    keys = ("revision", "seed", "dataset_fingerprint", "fingerprint", "step", "epoch", "numerics", "format")
    return {**{key: state[key] for key in keys}, "sha256": sha256(path)}


def _is_short_of_memory(error: Exception) -> bool:
    """Return whether a reader got no memory: torch tells a failed allocation as a RuntimeError that names it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in str(error).lower())


def save_checkpoint(
    path: Path, state: Mapping[str, Any], card: Mapping[str, Any], note: Callable[[Path, Mapping], None] = write_card
) -> None:
    """Write `state` to a temporary file, flush it, and rename it to `path`.

    note: called before the renaming with the path and the card, to which the file's checksum is added; by default it
    writes the JSON file beside the checkpoint.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        note(path, {**card, "format": FORMAT, "sha256": sha256(temporary)})
        put_in_place(temporary, path)
    except (OSError, RuntimeError) as error:  # a full disk raises one or the other
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: the checkpoint cannot be written ({reason_of(error)}): free space or fix permissions, "
            "then start again"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint.

    Raises DamagedCheckpointError if its content is wrong; PermanentError if its format is newer than this code;
    UserError if it cannot be read now (the file system is away, memory is short), which says nothing about the file.
    """
    try:
        card = find_card(path)
        version, checksum = int(card["format"]), card["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError, zipfile.BadZipFile) as error:
        raise DamagedCheckpointError(f"{path}: its card cannot be read ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read now ({error}): start again when it can") from error
    if version > FORMAT:
        raise PermanentError(f"{path}: format {version}, this code reads up to {FORMAT}: update the code")
    try:
        if sha256(path) != checksum:
            raise DamagedCheckpointError(
                f"{path}: its checksum is not the recorded one (segments.json, {path.with_suffix('.json').name})"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, MemoryError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}): start again when it can") from error


def newest_checkpoint(candidates: list[Path]) -> tuple[Path, dict[str, Any]] | None:
    """Return the valid checkpoint with the highest step, or None if no file exists.

    Damaged files are reported and renamed to `<name>.damaged`. Raises DamagedCheckpointError if all are damaged.
    """
    damaged = []
    # A file without a card has no step; it comes first, to be reported and set aside like a damaged one.
    existing = sorted((path for path in candidates if path.exists()), key=step_of, reverse=True)
    for path in sorted(existing, key=lambda path: step_of(path) >= 0):
        try:
            return path, load_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged.append(path)
            set_aside(path, error)
    if damaged:
        raise DamagedCheckpointError(
            f"{damaged[-1]}: no valid checkpoint is left here: restore one, or delete the run's folder to start over"
        )
    return None


def check_belongs(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError with the differences if a checkpoint is of another recipe, revision, seed or dataset."""
    lines = differences(pretraining_part(wanted["recipe"]), pretraining_part(found["recipe"]))
    keys = [key for key in ("revision", "seed", "dataset_fingerprint") if wanted[key] != found[key]]
    lines += [f"{key}: wanted {wanted[key]}, found {found[key]}" for key in keys]
    others = len(keys)
    if lines:
        # A wrong seed or dataset is a slip on the command line, which must not block the right command.
        kind = PermanentError if len(lines) > others or wanted["revision"] != found["revision"] else UserError
        raise kind(
            f"{path} belongs to another run; "
            + "; ".join(lines)
            + ". Restore the value, or raise `revision` in config.yaml to train anew"
        )


def take_over(rolling: Path, boundary: Path) -> None:
    """Copy a rolling checkpoint to the boundary at the same step, whole or not at all.

    Needed after the segments' boundaries have been changed, or when an older version of this software has left the
    newest boundary only in `partial/`.
    """
    temporary = boundary.with_suffix(".tmp")
    shutil.copy2(rolling, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    put_in_place(temporary, boundary)


def prune(partial: Path, keep: Path | None = None) -> None:
    """Delete what `keep`, just written, makes needless: earlier boundaries, and rolling ones except the newest two.

    Checkpoints newer than `keep` stay. Without `keep` the run is over, and all checkpoints in `partial` are deleted.
    """
    rolling, boundaries = rolling_files(partial), set(partial.glob(boundary_name("*")))
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
    for path in partial.glob("*.tmp"):  # of a process that was killed while writing
        path.unlink(missing_ok=True)


def newest_by_card(candidates: list[Path]) -> Path | None:
    """Return the existing checkpoint with the highest step by its card, not read or verified, for a message."""
    return max(filter(Path.exists, candidates), key=step_of, default=None)


def step_of(path: Path) -> int:
    """Return the step on a checkpoint's card, or -1 if there is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
        return int((known_card(path) or {})["step"])
    return -1


def set_aside(path: Path, problem: object, then: str = "looking for an older one") -> None:
    """Rename a damaged checkpoint, and report it."""
    aside = path.with_suffix(".damaged")
    path.rename(aside)
    logger.warning("%s; set aside as %s, %s", problem, aside.name, then)
