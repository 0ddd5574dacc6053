"""Where each run stands, read from what its jobs leave. Imports no torch and needs no job of its own."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from selfsup.as_run import runs_known
from selfsup.bands import collapsed
from selfsup.cards import card_if_any
from selfsup.config import Config, Experiment
from selfsup.csv_cells import Numbers, rows_of
from selfsup.errors import UserError
from selfsup.job.ledger import read_ledger
from selfsup.job.lock import Holder, living_holder, read_holder
from selfsup.job.slurm import ENDED, Waiting, job_states, waiting_jobs
from selfsup.job.stopping import stop_file
from selfsup.layout import LINEAR, PretrainPaths, RunFolder, RunPaths, boundary_files
from selfsup.reports.plan import steps_per_epoch
from selfsup.segments import boundaries, work_done

PATIENCE_S = 1.0  # for Slurm's answer: without it the states that files tell are shown
TAIL_BYTES = 64_000  # of a CSV: hundreds of rows, enough for a speed
ROWS_OF_SPEED = 20
HISTORY = {"step": int, "epoch": float, "loss": float, "images_per_s": float}
FIGURES = {"figure": float, "top1": float}
BARS, BARS_SHOWN = "▁▂▃▄▅▆▇█", 12
HEAD = ["experiment", "seed", "segment", "epoch", "loss", "k-NN", "images/s", "left", "checkpoint", "job", "state"]


@dataclass(frozen=True)
class Standing:
    """One run; what is None is not known yet. left_s: of the pretraining. age_s: of its newest checkpoint.

    knn: the k-NN accuracy in % at each milestone so far.
    """

    experiment: str
    seed: int
    segment: str
    epoch: float
    loss: float | None
    knn: Sequence[float]
    images_per_s: float | None
    left_s: float | None
    age_s: float | None
    job: str
    state: str


def standings(config: Config, results: Path) -> Iterator[Standing]:
    """Yield where each run stands, of `config` and of others that were run; Slurm is asked for all at once."""
    runs = [(one, RunPaths(results, one.experiment.name, one.seed)) for one in runs_known(config, results)]
    holders = [read_holder(job.folder) for _, run in runs for job in run.job_folders()]
    jobs = sorted({holder.job_id for holder in holders if holder and holder.job_id})
    with ThreadPoolExecutor() as side_by_side:
        queued = side_by_side.submit(waiting_jobs, results.resolve().parent, PATIENCE_S)
        states = job_states(jobs, PATIENCE_S) if jobs else {}
    for one, run in runs:
        try:
            yield _standing(one.config, one.experiment, one.seed, run, states, queued.result())
        except UserError as error:  # of a damaged file of this run
            yield _unknown(one.experiment.name, one.seed, "", str(error))


def to_text(lines: Sequence[Standing]) -> str:
    """Return the standings as a table for people."""
    rows = [HEAD, *map(_cells, lines)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _standing(
    config: Config,
    experiment: Experiment,
    seed: int,
    run: RunFolder,
    states: Mapping[str, str],
    queued: Sequence[Waiting],
) -> Standing:
    folder, epochs = run.pretrain.folder, experiment.recipe["epochs"]
    rows, steps = _tail(run.pretrain.history, HISTORY), steps_per_epoch(config, experiment)
    last, speed = (rows or [{}])[-1], _speed(rows)
    job, state = _job(run, states)
    if not job:
        job, state = _in_queue(experiment.name, seed, queued)
    try:
        done = work_done(folder, experiment.recipe, experiment.revision)
        ends = boundaries(epochs, experiment.segment_epochs, done.boundaries, done.reached)
    except UserError:
        return _unknown(experiment.name, seed, job, "of another recipe or revision")
    finished = len(done.boundaries)
    over = finished == len(ends)
    begun = max(done.reached, float(last.get("epoch") or 0))  # all that is known where the packed dataset is gone
    epoch = (int(last["step"]) + 1) / steps if last.get("step") and steps else begun
    left = (epochs - epoch) * steps * experiment.recipe["global_batch"] / speed if speed and steps else None
    return Standing(
        experiment=experiment.name,
        seed=seed,
        segment=f"{min(finished + 1, len(ends))} of {len(ends)}",
        epoch=epoch,
        loss=_number(last.get("loss")),
        knn=[float(row["knn_top1"]) for row in _tail(run.knn, {"knn_top1": float}) if row.get("knn_top1")],
        images_per_s=speed,
        left_s=0 if over else left,
        age_s=_age(folder),
        job=job,
        state=state or _rest(run, over, begun=bool(last)),
    )


def _unknown(experiment: str, seed: int, job: str, state: str) -> Standing:
    return Standing(experiment, seed, "", 0, None, (), None, None, None, job, state)


def _job(run: RunFolder, states: Mapping[str, str]) -> tuple[str, str]:
    """Return the job or process at work and its state; nothing for a run that no job holds."""
    doings = {run.pretrain.folder: "pretraining"}
    doings |= {one.folder: "extracting features" for one in run.encoder.extractions().values()}
    for folder in (one.folder for one in run.job_folders()):
        holder, doing = read_holder(folder), doings.get(folder, "evaluating")
        if holder is None:
            continue
        slurm = states.get(holder.job_id)
        if slurm is not None and slurm not in ENDED:
            return holder.job_id, doing if slurm == "RUNNING" else slurm.lower()
        if slurm is None and living_holder(folder):
            return _named(holder), doing
    return "", ""


def _in_queue(experiment: str, seed: int, queued: Sequence[Waiting]) -> tuple[str, str]:
    """Return the run's job that waits for its turn. The executor's comment has the rule's wildcards in their order."""
    run = rf"{re.escape(experiment)}_{seed}"
    rules = rf"(pretrain_segment|linear_eval)_wildcards_{run}(_\d+)?|(evaluate|extract_features)_wildcards_{run}_.+"
    wanted = re.compile(f"rule_({rules})")
    found = next((one.job_id for one in queued if wanted.fullmatch(one.comment)), "")
    return found, "pending" if found else ""


def _named(holder: Holder) -> str:
    return holder.job_id or f"process {holder.pid}"


def _rest(run: RunFolder, over: bool, *, begun: bool) -> str:
    """Return what files tell of a run that no job is at work on."""
    for job in run.job_folders():
        if job.failed.exists():
            return f"failed: see {job.failed}"
    stop = stop_file(run.pretrain.folder)
    if stop:
        return f"stopped: {stop} is there"
    judged = {one.folder.name: one.metrics for one in run.encoder.evaluations()}
    if judged:
        first = LINEAR if LINEAR in judged else min(judged)
        told = next(iter(_tail(judged[first], FIGURES)), {})
        row = {"measure": "top-1", "figure": told.get("top1"), **told}  # older ones have top1 alone
        if not row["figure"]:
            raise UserError(f"{judged[first]}: not the metrics of one evaluation: delete it and evaluate again")
        return f"evaluated: {row['measure']} {float(row['figure']):.2f} %" + ("" if first == LINEAR else f" ({first})")
    if over and not _verdict(run.pretrain):
        return "trained, not evaluated"
    verdict = _verdict(run.pretrain)
    if verdict:
        return verdict
    attempts = read_ledger(run.pretrain.ledger)
    if not attempts:
        return "not begun"
    ended = attempts[-1]["how_it_ended"]
    return f"waits: {'killed' if ended == 'running' else ended}" if begun else f"not begun: {ended}"


def _verdict(pretrain: PretrainPaths) -> str:
    """Return why the health gate stops a run at its newest boundary, as far as floors tell; "" for a healthy one."""
    card = next((card_if_any(path) for path in reversed(pretrain.cards())), {})
    found = collapsed(card.get("health") or {}, card.get("floors") or {})
    return f"collapsed: {'; '.join(map(str, found))}" if found else ""


def _speed(rows: Sequence[Mapping[str, str]]) -> float | None:
    """Return images per second over the newest rows of history.csv, each of equally many images."""
    rates = [float(row["images_per_s"]) for row in rows[-ROWS_OF_SPEED:] if row.get("images_per_s")]
    return len(rates) / sum(1 / max(rate, 1e-9) for rate in rates) if rates else None


def _tail(path: Path, numbers: Numbers) -> list[dict[str, str]]:
    """Return the last whole rows of a CSV; none where there is no file. Raises UserError for what is no number."""
    try:
        with open(path, "rb") as file:
            head = file.readline().decode()
            file.seek(max(path.stat().st_size - TAIL_BYTES, len(head)))
            text = file.read().decode()
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: no text ({error}): restore it") from error
    whole = text[: text.rfind("\n") + 1]
    if path.stat().st_size - len(head) > TAIL_BYTES:
        whole = whole[whole.find("\n") + 1 :]  # the first row may be cut
    return list(rows_of(path, head + whole, numbers, whole=False))


def _age(folder: Path) -> float | None:
    saved = [path.stat().st_mtime for path in [*boundary_files(folder), *PretrainPaths(folder).partial.glob("*.pt")]]
    return time.time() - max(saved) if saved else None


def _cells(line: Standing) -> list[str]:
    figures = ((line.loss, ".4g"), (line.images_per_s, ",.0f"))
    loss, speed = ("" if value is None else format(value, form) for value, form in figures)
    knn = f"{line.knn[-1]:.2f} {_sparkline(line.knn)}".strip() if line.knn else ""
    left, age = ("" if seconds is None else _duration(seconds) for seconds in (line.left_s, line.age_s))
    place = [line.experiment, str(line.seed), line.segment, f"{line.epoch:.2f}"]
    return [*place, loss, knn, speed, left, f"{age} ago" if age else "", line.job, line.state]


def _sparkline(values: Sequence[float]) -> str:
    """Return the newest values as bars, the lowest at the bottom; nothing for a single one."""
    shown = values[-BARS_SHOWN:]
    low, high = min(shown), max(shown)
    if len(shown) < 2 or low == high:
        return ""
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def _duration(seconds: float) -> str:
    """Return seconds as 45 s, 12 min, 3:05 h or 2.1 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"
    return f"{seconds / 86400:.1f} days"


def _number(text: str | None) -> float | None:
    return float(text) if text else None
