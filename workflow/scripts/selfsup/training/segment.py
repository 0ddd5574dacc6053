"""One segment of a pretraining: where it continues, what it must not undo or repeat, and how it is finished."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from selfsup import provenance
from selfsup.atomic_files import flush
from selfsup.engine import checkpoint
from selfsup.errors import UserError
from selfsup.job.attempt import Attempt
from selfsup.layout import boundary_name
from selfsup.optim import treatment_table
from selfsup.segments import record_run, work_done, write_card
from selfsup.training.health import Health
from selfsup.training.history import steps_logged
from selfsup.training.loop import train_until
from selfsup.training.pretraining import Pretraining
from selfsup.training.run import Run

IDENTITY = ("revision", "seed", "dataset_fingerprint", "fingerprint")  # equal on all cards of a run

logger = logging.getLogger(__name__)


def train_segment(run: Run, attempt: Attempt, *, until_epoch: int, previous: int = 0) -> bool:
    """Train to the end of `until_epoch` and leave its checkpoint and card in the run's folder.

    Continues from the newest of the run's checkpoints. previous: the epoch of the boundary before; its checkpoint or a
    later one must exist; 0 for the first segment. Returns False if asked to stop before the boundary; all work is then
    in a rolling checkpoint. A segment that was finished before is not trained again: its card is written again.
    """
    ranks, boundary = run.compute.ranks, run.folder / boundary_name(until_epoch)
    finished = ranks.is_main and _card_of_finished(run, until_epoch)
    if ranks.from_main(bool(finished)):
        if finished:
            logger.info("%s was finished before: its card is written again", boundary)
            _finish(run, finished)
        return True
    training = Pretraining(run)
    end = until_epoch * training.steps_per_epoch
    source = _continue_from(training, run.checkpoints(), end)
    _check_source(run, training, source, until_epoch, previous)
    logged = steps_logged(run.paths.history) if ranks.is_main else 0
    attempt.begin_steps(training.step, run.recipe["global_batch"], logged)
    if training.step < end:
        _announce(training, end, source)
        training.attempts.append(
            {**training.numerics, "start_step": training.step, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        )
        if not train_until(training, end, boundary, attempt):
            return False
    if not ranks.from_main(boundary.exists()):
        _take_over(training, attempt, source, boundary)
    if ranks.is_main:
        _finish(run, checkpoint.find_card(boundary))
    ranks.barrier()
    return True


def _take_over(training: Pretraining, attempt: Attempt, source: Path, boundary: Path) -> None:
    """Make the checkpoint at the boundary's step the boundary. A rolling checkpoint has no health figures yet."""
    run, is_main = training.run, training.ranks.is_main
    card = checkpoint.find_card(source) if is_main else {}
    if training.ranks.from_main("health" not in card):
        card |= {"health": _health_now(training, attempt), "floors": dict(training.method.floors)}
    if is_main:
        for rows in run.rows:
            flush(rows)
        record_run(run.folder, run.recipe, run.revision, card=card)
        checkpoint.take_over(source, boundary)


def _health_now(training: Pretraining, attempt: Attempt) -> dict[str, float]:
    """Return the figures that the loop measures at a segment's end. Collective."""
    step, settings = training.step, {"steps_per_epoch": training.steps_per_epoch, "row_interval": training.row_interval}
    health = Health(training.method, training.run, attempt, start=step - 1, **settings)
    return health.figures(step, last=True) | health.milestone(step)


def _finish(run: Run, card: Mapping) -> None:
    """Record that a segment is finished, and write its card, for which Snakemake waits."""
    epoch = round(card["epoch"])
    record_run(run.folder, run.recipe, run.revision, boundary=epoch, card=card)
    write_card(run.folder / boundary_name(epoch), card)


def _card_of_finished(run: Run, epoch: int) -> dict | None:
    """Return the card of a segment that was finished before, by the run's record; None if it has to be trained.

    If there is a later checkpoint, its own may be damaged, or deleted to save space.
    """
    done = work_done(run.folder, run.recipe, run.revision)  # refuses a folder of another recipe
    boundary = run.folder / boundary_name(epoch)
    card, mine = checkpoint.known_card(boundary), {key: run.identity[key] for key in IDENTITY}
    if card and any(card.get(key) != value for key, value in mine.items()):
        return None  # of another seed or dataset, which is reported when the checkpoint is restored
    if boundary.exists() and card and provenance.sha256(boundary) == card.get("sha256"):
        return card
    later = any((checkpoint.known_card(path) or {}).get("epoch", 0) > epoch for path in run.checkpoints())
    if epoch not in done.boundaries or not later:
        return None
    if boundary.exists() and card:
        checkpoint.set_aside(boundary, f"{boundary}: its checksum is not the recorded one", "there are later ones")
    return card or {**mine, "epoch": float(epoch), "note": "its checkpoint and card were deleted"}


def _check_source(run: Run, training: Pretraining, source: Path | None, until_epoch: int, previous: int) -> None:
    """Raise UserError if training from `source` to `until_epoch` would undo work, or repeat work that is lost."""
    done = work_done(run.folder, run.recipe, run.revision)
    end, spe = until_epoch * training.steps_per_epoch, training.steps_per_epoch
    if any(checkpoint.step_of(path) > end for path in run.checkpoints()):
        raise UserError(
            f"{run.folder} has already reached epoch {done.reached:g}; training up to {until_epoch} again would undo "
            "that: ask for a later epoch, or raise `revision`"
        )
    if previous and training.step < previous * spe:
        wanted = run.folder / boundary_name(previous)
        raise UserError(
            f"{wanted} is missing, and there is no later checkpoint: restore it, or train its segment again: "
            f"snakemake --cores all --force {wanted.with_suffix('.json')}"
        )
    if source is None and done.reached > 0:
        raise UserError(
            f"{run.folder} has reached epoch {done.reached:g}, but has no checkpoint left: restore one (*.damaged have "
            "failed their checksum), or delete the folder to start over"
        )


def _continue_from(training: Pretraining, candidates: list[Path], end: int) -> Path | None:
    """Restore the newest checkpoint at or before step `end`. Rank 0 chooses; the others read the same file."""
    ranks, found = training.ranks, None
    if ranks.is_main:
        found = checkpoint.newest_checkpoint([path for path in candidates if checkpoint.step_of(path) <= end])
    path = ranks.from_main(found and found[0])
    if path is None:
        return None
    state = found[1] if found else checkpoint.load_checkpoint(path)
    changed = provenance.numerics_differences(training.numerics, state["numerics"])
    if ranks.is_main and changed:
        logger.info(
            "note: the run continues under other numerics; its bits may differ from here on: %s", "; ".join(changed)
        )
    training.restore(path, state)
    return path


def _announce(training: Pretraining, end: int, source: Path | None) -> None:
    run, recipe = training.run, training.run.recipe
    if not training.ranks.is_main:
        return
    where = f"continuing after {source}" if source else "from the beginning"
    logger.info(
        f"pretraining {recipe['method']} with {recipe['model']['backbone']}, {len(run.store.train):,} images, "
        f"seed {run.seed}: steps {training.step} to {end} of {training.total_steps}, {where}"
    )
    logger.debug(
        f"global batch {recipe['global_batch']} over {training.ranks.size} ranks on {training.numerics['device']}, "
        f"{run.compute.precision}, {run.compute.threads} threads each"
    )
    if not run.store.labelled:
        logger.info("%s has no labels: k-NN accuracy is left out of knn.csv", run.store.folder)
    if source is None:
        logger.debug("the parameters and how they are trained:\n%s", treatment_table(training.treatments))
