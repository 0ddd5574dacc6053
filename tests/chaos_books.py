"""What must hold of a disturbed run besides its bits: whole files, a ledger that adds up, one writer at a time."""

import csv
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from faults import Writing
from selfsup.engine.checkpoint import known_card
from selfsup.job.ledger import RUNNING, begun, read_ledger
from selfsup.job.lock import LOCK_FILE
from selfsup.layout import JobFolder
from selfsup.provenance import sha256

SAVED_FIRST = ("stopped by SIGTERM", "stopped by SIGUSR1", "stopped by the approaching time limit")
LEDGER = JobFolder(Path()).ledger.name
SLACK_S = 1.0  # the ledger has whole seconds
WRITE_S = 1.0  # the step after which a checkpoint is due, and the checkpoint's write, on a busy machine


def check_files(pretrain: Path, damaged: set[str]) -> None:
    """No checkpoint that stands under its name is damaged, but those that were damaged on purpose.

    A boundary's card may be in the run's record alone: Snakemake deletes the card of a job that fails.
    """
    for path in pretrain.rglob("*.pt"):
        try:
            whole = sha256(path) == (known_card(path) or {}).get("sha256")
        except FileNotFoundError:
            whole = False
        if not whole and path.exists() and path.stem not in damaged:  # else replaced by a newer one while we looked
            raise AssertionError(f"{path} is damaged, or has no card")
    found = {path.stem for path in pretrain.rglob("*.damaged")}
    if found - damaged:
        raise AssertionError(f"found damaged, and nobody had damaged them: {sorted(found - damaged)}")


def check_ledger(path: Path, total_steps: int, damaged: bool = False) -> list[dict]:
    """Each attempt has a closed row, and their steps and seconds add up. Returns the rows.

    damaged: whether checkpoints were damaged: then more is done again than the attempts had left unsaved.
    """
    rows = read_ledger(path)
    numbers = [int(row["attempt"]) for row in rows]
    if numbers != list(range(1, len(rows) + 1)):
        raise AssertionError(f"{path}: the attempts are numbered {numbers}")
    if any(row["how_it_ended"] == RUNNING for row in rows):
        raise AssertionError(f"{path}: a row is still open")
    done, redone, lost = (sum(int(row[f"steps_{key}"] or 0) for row in rows) for key in ("done", "redone", "lost"))
    if done - redone != total_steps or redone < lost or (redone > lost and not damaged):
        told = f"{done} steps done, {redone} of them again, {lost} lost"
        raise AssertionError(f"{path}: {told}, wanted {total_steps} new ones, and as many lost as done again")
    for row in rows:
        _check_row(path, row)
    return rows


def _check_row(path: Path, row: Mapping[str, str]) -> None:
    seconds = (datetime.fromisoformat(row["ended"]) - datetime.fromisoformat(row["started"])).total_seconds()
    computed = float(row["device_hours"] or 0) * 3600
    if seconds < 0 or abs(computed - int(row["devices"] or 0) * seconds) > SLACK_S:
        raise AssertionError(f"{path}: attempt {row['attempt']} took {seconds} s, its devices {computed} s")
    if row["how_it_ended"] in SAVED_FIRST and int(row["steps_lost"] or 0):
        raise AssertionError(f"{path}: attempt {row['attempt']} was asked to stop and lost {row['steps_lost']} steps")


def check_seconds(rows: Sequence[Mapping[str, str]], wall_s: float) -> None:
    """Attempts that one after the other held a run cannot have taken longer together than the clock on the wall."""
    used = sum(float(row["device_hours"] or 0) * 3600 / int(row["devices"]) for row in begun(rows) if row["devices"])
    if used > wall_s + SLACK_S * len(rows):
        raise AssertionError(f"{len(rows)} attempts took {used:.0f} s together, in {wall_s:.0f} s")


def quickest(history: Path) -> float:
    """Return the most images per second between two rows of a history.csv."""
    with open(history, newline="") as file:
        return max(float(row["images_per_s"]) for row in csv.DictReader(file))


def check_lost(
    rows: Sequence[Mapping[str, str]], interval_s: float, images_per_s: float, batch: int, damaged: Collection[int] = ()
) -> float:
    """No event has cost more work than is done between two checkpoints. Returns the seconds that one has cost at most.

    The work lies between the step at which an attempt goes on and the furthest that one had reached before it.
    interval_s: `checkpoint_minutes`. images_per_s: the quickest of a few steps, which never makes the work longer than
    it was. damaged: steps of the checkpoints that were damaged on purpose: each makes an event cost an interval more.
    """
    most, reached = 0.0, 0
    for row in rows:
        if not row["start_step"]:  # ended before its first step
            continue
        start = int(row["start_step"])
        seconds = (reached - start) * batch / images_per_s
        intervals = 1 + sum(start < step <= reached for step in damaged)
        allowed = intervals * max(interval_s + WRITE_S, 2 * interval_s + WRITE_S / 2)  # a save waits for the one before
        if seconds > allowed:
            raise AssertionError(
                f"attempt {row['attempt']} went on at step {start}, though one before it had reached step {reached}: "
                f"at least {seconds:.1f} s of work were lost, wanted at most {allowed:.1f} s: {intervals} times "
                f"{interval_s:g} s between checkpoints and {WRITE_S:g} s to write one"
            )
        most, reached = max(most, seconds), max(reached, int(row["end_step"]))
    return most


def check_saving(rows: Sequence[Mapping[str, str]], interval_s: float, batch: int) -> None:
    """Each attempt of an undisturbed run has written as many checkpoints as its time asks for.

    interval_s: `checkpoint_minutes`.
    """
    for row in rows:
        seconds = int(row["steps_done"]) * batch / float(row["images_per_s"]) - float(row["stall_s"])
        wanted = seconds / (interval_s + WRITE_S) / 2 - 1  # half of them: a busy machine's steps are slow
        if int(row["checkpoints"]) < wanted:
            raise AssertionError(
                f"attempt {row['attempt']} trained for {seconds:.1f} s and wrote {row['checkpoints']} checkpoints, "
                f"wanted {wanted:.0f}, one every {interval_s:g} s"
            )


def check_writers(writings: Sequence[Writing], rows: Sequence[Mapping[str, str]]) -> int:
    """Once another process has written a run, a former one never does again. Returns how many wrote.

    A process opens the ledger before it writes anything else: as many have written it as it has rows of attempts that
    were not refused.
    """
    order = []
    for one in writings:
        if one.path.name.startswith(LOCK_FILE):  # on a full disk a job ends after it has set a dead one's lock aside
            continue
        if one.appends and one.path.name == LEDGER:  # the row of an attempt that is refused, while another has the run
            continue
        if not order or order[-1] != one.pid:
            order.append(one.pid)
    again = {pid for pid in order if order.count(pid) > 1}
    if again:
        raise AssertionError(f"processes {sorted(again)} wrote a run that another had taken: {order}")
    admitted = [row for row in rows if not row["how_it_ended"].startswith("refused")]
    if len(admitted) != len(order):
        raise AssertionError(f"{len(order)} processes wrote the ledger, which has {len(admitted)} attempts")
    return len(order)
