"""A segment of a finished run, trained again from the boundary before it and compared to the bit.

Only exact segments allow this: what a run of 1000 epochs claims is checked for the price of one of its segments.
"""

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from selfsup import provenance
from selfsup.atomic_files import write_atomically
from selfsup.engine import checkpoint
from selfsup.engine.compute import Compute
from selfsup.errors import PermanentError, UserError
from selfsup.job.attempt import Attempt
from selfsup.job.ledger import now
from selfsup.layout import AuditPaths, PretrainPaths, boundary_files
from selfsup.methods import Method, build_method
from selfsup.optim.parameter_groups import optimizer_groups
from selfsup.recipe import fingerprint
from selfsup.segments import write_card
from selfsup.training.audited import Audited, seed_in_name
from selfsup.training.history import COUNTED
from selfsup.training.run import Run
from selfsup.training.segment import IDENTITY, train_segment

CLOCK = ("images_per_s", "data_wait")  # columns of history.csv that tell of the clock
LISTED = 20  # tensors that differ, at most
SAME = "the same bits"
UNFINISHED = "{}\n"  # what begun.json says while checkpoints are deleted or copied: nothing to go on with


def train_again(run: Run, segment: Audited, attempt: Attempt) -> bool:
    """Train the segment in the folder `run.folder`; False if asked to stop before its end: the same call goes on."""
    if run.compute.ranks.is_main:
        _prepare(AuditPaths(run.folder), segment)
    return train_segment(run, attempt, until_epoch=segment.end, previous=segment.start)


def _prepare(own: AuditPaths, segment: Audited) -> None:
    """Begin with the segment's first checkpoint, unless an audit of the same files was stopped and goes on."""
    ends = [segment.pretrain.checkpoint(epoch) for epoch in (segment.start, segment.end) if epoch]
    content = json.dumps({"of": [str(segment.run), *(checkpoint.find_card(path)["sha256"] for path in ends)]}) + "\n"
    if own.begun.exists() and own.begun.read_text() == content:
        return
    clear(own)
    write_atomically(own.begun, UNFINISHED)
    own.verdict.unlink(missing_ok=True)
    own.differing.unlink(missing_ok=True)
    own.kept.unlink(missing_ok=True)
    if segment.start:
        copy = own.checkpoint(segment.start)
        write_card(copy, checkpoint.find_card(ends[0]))
        checkpoint.take_over(ends[0], copy)
    write_atomically(own.begun, content)


def clear(own: AuditPaths) -> None:
    """Delete the checkpoints of an audit and their records."""
    write_atomically(own.begun, UNFINISHED)  # the folder stays known as an audit's, whenever this is killed
    for path in [*boundary_files(own.folder), *own.cards(), own.record]:
        path.unlink(missing_ok=True)
    shutil.rmtree(own.partial, ignore_errors=True)
    own.begun.unlink()


def read_ends(segment: Audited) -> dict[str, Any]:
    """Return the state at the segment's end, after the checksums of both ends and whose they are have been examined.

    Raises UserError for a file that is not the recorded one, and for ends of different runs.
    """
    paths = [segment.pretrain.checkpoint(epoch) for epoch in (segment.start, segment.end) if epoch]
    states = [checkpoint.load_checkpoint(path) for path in paths]
    end, named = states[-1], seed_in_name(segment.run)
    for key in IDENTITY:
        if states[0][key] != end[key]:
            raise UserError(
                f"{segment}: {key} is {states[0][key]} in {paths[0].name} and {end[key]} in {paths[1].name}: they are "
                "not of one run, so there is nothing to audit"
            )
    if named is not None and named != end["seed"]:
        raise UserError(
            f"{paths[-1]} is of seed {end['seed']}, and its folder is named seed{named}: another seed's files"
        )
    if fingerprint(end["recipe"], end["revision"]) != end["fingerprint"]:
        raise UserError(f"{paths[-1]}: its recipe does not have the fingerprint that it names: it was changed")
    return end


def check_dataset(run: Run, state: Mapping[str, Any], data: Path) -> None:
    """Raise PermanentError where the packed dataset is not the one that the run was trained on."""
    if run.store.fingerprint != state["dataset_fingerprint"]:
        raise PermanentError(
            f"{data} has the fingerprint {run.store.fingerprint[:16]}, and the run was trained on "
            f"{state['dataset_fingerprint'][:16]}: give --data FOLDER of the same images, packed anew if need be"
        )


def verdict(segment: Audited, claimed: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return what the comparison has found. claimed: the state that the run has at the segment's end."""
    own, pretrain = PretrainPaths(run.folder), segment.pretrain
    found = checkpoint.load_checkpoint(own.checkpoint(segment.end))
    method = build_method(run.recipe, seed=run.seed, total_steps=max(found["step"], 1))
    states = {"run": dict(_named(claimed, method)), "audit": dict(_named(found, method))}
    start = round(segment.start * found["step"] / found["epoch"])
    rows = {"run": _rows(pretrain.history, start, claimed["step"]), "audit": _rows(own.history, start, found["step"])}
    sums = {
        part: {whose: _digest(state.get(part, {})) for whose, state in states.items()}
        for part in states["run"] | states["audit"]
    }
    sums["history"] = {whose: _digest_of_rows(several, _compared_columns(rows)) for whose, several in rows.items()}
    differing = [part for part, pair in sums.items() if pair["run"] != pair["audit"]]
    conditions = _conditions(claimed, found, start)
    return {
        "verdict": _in_words(differing, conditions),
        "audited": now(),
        "segment": {"number": segment.number, "epochs": [segment.start, segment.end], "steps": [start, found["step"]]},
        "run": {"folder": str(segment.run), **{key: claimed[key] for key in IDENTITY}},
        "checkpoint_sha256": provenance.sha256(pretrain.checkpoint(segment.end)),
        "sha256": sums,
        "differing": differing,
        "first_difference": _first_difference(rows),
        "tensors": _differing_tensors(states)[:LISTED],
        "rows": len(rows["audit"]),
        "conditions": conditions,
        "numerics": {"run": claimed["numerics"], "audit": found["numerics"]},
        "code_revision": {"run": claimed["code_revision"], "audit": found["code_revision"]},
        "versions": {"run": claimed["versions"], "audit": found["versions"]},
    }


def _in_words(differing: list[str], conditions: list[str]) -> str:
    under = f", under other conditions: {'; '.join(conditions)}" if conditions else ""
    if not differing:
        return SAME + under
    if differing == ["history"]:
        return f"the same bits, but another history{under}"
    return f"other bits in {', '.join(differing)}{under}"


def _conditions(claimed: Mapping[str, Any], found: Mapping[str, Any], start: int) -> list[str]:
    """Return a line for each condition of equal bits in which an attempt of the run and one of the audit differ."""
    pairs = itertools.product(_attempts_since(start, claimed), _attempts_since(start, found))
    lines = [line for pair in pairs for line in provenance.numerics_differences(*pair)]
    return [line.replace("wanted", "run").replace("found", "audit") for line in dict.fromkeys(lines)]


def _attempts_since(start: int, state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the conditions of each attempt that has trained a step from `start` on."""
    attempts = state["attempts"]
    ends = [*(one["start_step"] for one in attempts[1:]), state["step"]]
    involved = [one for one, end in zip(attempts, ends, strict=True) if end > max(start, one["start_step"])]
    when = ("start_step", "started")  # no conditions
    return [{key: one[key] for key in one if key not in when} for one in involved] or [state["numerics"]]


def _named(state: Mapping[str, Any], method: Method) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the parts of a checkpoint that decide all that follows: {name of a tensor or number: it}."""
    known = {tensor.data_ptr() for tensor in method.networks.parameters()}
    parameters = {name for name, value in method.state_dict().items() if value.data_ptr() in known}
    yield "weights", {name: value for name, value in state["method"].items() if name in parameters}
    yield "buffers", {name: value for name, value in state["method"].items() if name not in parameters}
    treated = {id(one.parameter): one.name for one in method.parameter_groups()}
    names = [treated[id(one)] for group in optimizer_groups(method.parameter_groups()) for one in group["params"]]
    yield (
        "momenta",
        {
            f"{names[place]}: {kind}": value
            for place, kept in state["optimizer"]["state"].items()
            for kind, value in kept.items()
        },
    )
    counted = {key: state[key] for key in ("step", "skipped", "last_skipped", "scaler") if key in state}
    yield "counters", {key: json.dumps(value, sort_keys=True) for key, value in counted.items()}


def _digest(part: Mapping[str, Any]) -> str:
    """Return the SHA-256 of named tensors and numbers: names, types, shapes and bits, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(part):
        digest.update(_bits(name, part[name]))
    return digest.hexdigest()


def _bits(name: str, value: Any) -> bytes:
    if not isinstance(value, torch.Tensor):
        return f"{name} {value!r}\n".encode()
    shape = "x".join(map(str, value.shape))
    whole = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{name} {value.dtype} {shape}\n".encode() + whole.numpy().tobytes()


def _differing_tensors(states: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the names of what differs, each with its part."""
    found = []
    for part, claimed in states["run"].items():
        mine = states["audit"][part]
        for name in sorted({*claimed, *mine}):
            if (name in claimed) != (name in mine) or _bits(name, claimed[name]) != _bits(name, mine[name]):
                found.append(f"{part}: {name}")
    return found


def _rows(path: Path, start: int, end: int) -> dict[int, dict[str, str]]:
    """Return the rows of a history.csv from step `start` to before `end`, as text, by their steps."""
    try:
        with open(path, newline="") as file:
            rows = [{key: value for key, value in row.items() if key not in CLOCK} for row in csv.DictReader(file)]
        return {int(row["step"]): row for row in rows if start <= int(row["step"]) < end}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: no history of a pretraining ({error}): restore it") from error


def _compared_columns(rows: Mapping[str, Mapping[int, Mapping[str, str]]]) -> set[str]:
    """Return the columns of the audit's own rows, without those that the run's version did not know yet."""
    told, mine = ({key for row in several.values() for key in row} for several in (rows["run"], rows["audit"]))
    return mine - ({*COUNTED} - told)


def _digest_of_rows(rows: Mapping[int, Mapping[str, str]], columns: set[str]) -> str:
    text = [[step, *(rows[step].get(column) for column in sorted(columns))] for step in sorted(rows)]
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def _first_difference(rows: Mapping[str, Mapping[int, Mapping[str, str]]]) -> dict[str, Any] | None:
    """Return the first step whose rows differ, with the first column; None where all are equal."""
    columns = sorted(_compared_columns(rows))
    for step in sorted({*rows["run"], *rows["audit"]}):
        pair = {whose: several.get(step) for whose, several in rows.items()}
        if not all(pair.values()):
            return {"step": step, "column": None, **{whose: "a row" if row else "none" for whose, row in pair.items()}}
        for column in columns:
            told = {whose: row.get(column) for whose, row in pair.items()}
            if told["run"] != told["audit"]:
                return {"step": step, "column": column, **told}
    return None


def leave(own: AuditPaths, segment: Audited, found: Mapping[str, Any]) -> None:
    """Write the verdict, and delete the checkpoints, of which one with other bits is kept to be looked at.

    Raises UserError unless the bits and the rows are the same.
    """
    same, text = not found["differing"], json.dumps(found, indent=1) + "\n"
    write_atomically(own.verdict if same else own.differing, text)
    if not same:
        own.checkpoint(segment.end).replace(own.kept)
    clear(own)
    if not same:
        raise UserError(f"{segment}: {found['verdict']}{_since(found)}; see {own.differing}")


def _since(found: Mapping[str, Any]) -> str:
    first, tensors = found["first_difference"], found["tensors"]
    words = f"; first tensor: {tensors[0]}" if tensors else ""
    if first is None:
        return f"; all rows of history up to step {found['segment']['steps'][1]} are the same{words}"
    run, mine = ("missing" if first[whose] is None else first[whose] for whose in ("run", "audit"))
    what = f"{first['column'] or 'history'} is {run} in the run, {mine} here"
    return f"; from step {first['step']} on: {what}{words}"


def audited_run(state: Mapping[str, Any], recipe: Mapping, *, store, folder: Path, compute: Compute) -> Run:
    """Return the run that trains the segment again, in a folder of its own."""
    minutes = 60.0  # between checkpoints, which change no bit
    known = {key: state[key] for key in ("seed", "revision")}
    knn = AuditPaths(folder).knn
    return Run(recipe, store=store, folder=folder, compute=compute, checkpoint_minutes=minutes, knn=knn, **known)
