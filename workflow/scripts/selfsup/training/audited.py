"""Which segment of a run is audited, and what it is trained again with. Imports no torch."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.cards import card_if_any
from selfsup.errors import UserError
from selfsup.jobs import SWITCHES
from selfsup.layout import AuditPaths, PretrainPaths, RunFolder, RunPaths, boundary_files, data_of
from selfsup.segments import finished_boundaries, recorded_cards


@dataclass(frozen=True)
class Audited:
    """A segment of a run, whose folder is `run`. number: from 1; start, end: epochs; start is 0 for the first."""

    run: Path
    number: int
    start: int
    end: int

    @property
    def pretrain(self) -> PretrainPaths:
        return RunFolder(self.run).pretrain

    @property
    def card(self) -> dict[str, Any]:
        """The card of the boundary at its end, by the run's record, or by the file."""
        return recorded_cards(self.pretrain.folder).get(str(self.end)) or card_if_any(self.pretrain.card(self.end))

    @property
    def own_folder(self) -> Path:
        """Where it is audited, unless told otherwise."""
        return AuditPaths.of(self.run.parent.name, self.run.name, self.end).folder

    def __str__(self) -> str:
        return f"segment {self.number} of {self.run}, epochs {self.start} to {self.end}"


def run_folder(text: str) -> Path:
    """Read the folder of a run; its folder of checkpoints is taken for it too."""
    path = Path(text)
    return path.parent if path.name == RunFolder(path).pretrain.folder.name else path


def choose_segment(run: Path, number: int | None = None, end: int | None = None) -> Audited:
    """Return a segment by its number or the epoch of its end, by default the last that can be audited.

    Raises UserError where there is none such, or where a checkpoint that it needs is missing.
    """
    known = segments(run)
    possible = [one for one in known if can_be_audited(one)]
    can = f"can be audited: {', '.join(f'{one.number} (to epoch {one.end})' for one in possible) or 'none'}"
    if not known:
        raise UserError(
            f"{run} has no finished segment: wanted the folder of a run, such as results/digits/seed0, whose "
            f"{RunFolder(run).pretrain.record.relative_to(run)} names its boundaries"
        )
    if number is None and end is None:
        if not possible:
            raise UserError(f"{run}: no segment {can}; restore a boundary's checkpoint and the one before it")
        return possible[-1]
    wanted = [one for one in known if number in (None, one.number) and end in (None, one.end)]
    if not wanted:
        raise UserError(f"{run} has segments 1 to {len(known)}, wanted {number or f'the one to epoch {end}'}; {can}")
    missing = [path for path in _needed(wanted[0]) if not path.exists()]
    if missing:
        raise UserError(
            f"{wanted[0]}: {' and '.join(path.name for path in missing)} is missing, deleted perhaps; {can}"
        )
    return wanted[0]


def check_output(segment: Audited, output: Path) -> None:
    """Raise UserError where an audit would work among files that are not an audit's: it deletes checkpoints there."""
    own, advice = AuditPaths(output), f"give --output a folder of its own, such as {segment.own_folder}"
    if output.resolve().is_relative_to(segment.run.resolve()):
        raise UserError(f"--output {output} is in the folder of the audited run, {segment.run}: {advice}")
    found = [path for path in (own.record, own.partial, *boundary_files(output), *own.cards()) if path.exists()]
    if found and not any(path.exists() for path in (own.begun, own.verdict, own.differing)):
        raise UserError(f"--output {output} holds {found[0].name}, which is not of an audit: {advice}")


def segments(run: Path) -> list[Audited]:
    """Return the finished segments of a run, in order."""
    ends = finished_boundaries(RunFolder(run).pretrain.folder)
    return [Audited(run, number, *pair) for number, pair in enumerate(zip([0, *ends], ends, strict=False), 1)]


def can_be_audited(segment: Audited) -> bool:
    return all(path.exists() for path in _needed(segment))


def _needed(segment: Audited) -> list[Path]:
    ends = [segment.start, segment.end] if segment.start else [segment.end]
    return [segment.pretrain.checkpoint(epoch) for epoch in ends]


def data_folder(run: Path) -> Path:
    """Return the packed dataset of a run, by what it was asked for. Raises UserError where that is not known."""
    asked_for = RunPaths(run.parents[1], run.parent.name, run.name.removeprefix("seed")).as_run
    config = card_if_any(asked_for).get("config") or {}
    try:
        return data_of(config["data_dir"], config["experiments"][run.parent.name]["dataset"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{asked_for} does not say which dataset {run} was trained on: give --data FOLDER") from error


def extensions_of(run: Path) -> list[str]:
    """Return the files of Python that the run's recipe may need."""
    asked_for = RunPaths(run.parents[1], run.parent.name, run.name.removeprefix("seed")).as_run
    return list((card_if_any(asked_for).get("config") or {}).get("extensions") or [])


def seed_in_name(run: Path) -> int | None:
    """Return the seed that a run's folder is named by; None for another name."""
    found = re.fullmatch(r"seed(\d+)", run.name)
    return int(found[1]) if found else None


def use_conditions_of(arguments: argparse.Namespace, numerics: Mapping[str, Any]) -> None:
    """Fill in what was not told of the machine: the conditions that a segment was trained under."""
    device = "cpu" if numerics.get("device") == "cpu" else "cuda" if "device" in numerics else "auto"
    own = {"device": device, "precision": numerics.get("precision", "auto"), "cpus": numerics.get("threads", 1)}
    own |= {"local_ranks": numerics.get("ranks", 1)}
    own |= {name: numerics.get(name, default) for name, (default, _) in SWITCHES.items()}
    for name, value in own.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


UNTOLD = dict.fromkeys(("device", "precision", "cpus", "local_ranks", *SWITCHES))
"""Defaults of the arguments that `use_conditions_of` fills in."""
