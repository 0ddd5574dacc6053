"""The books of runs that were disturbed: what an event may cost, by rows that the short chaos test has left.

A step of 64 images took 0.15 s as a rule, 0.077 s at the quickest, with a checkpoint every 0.3 s.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from chaos_books import WRITE_S, check_lost, check_saving, check_writers, quickest
from faults import COMPILER, Faults, Writing

INTERVAL_S, IMAGES_PER_S, BATCH = 0.3, 831.4, 64
WITHIN = int((INTERVAL_S + WRITE_S) * IMAGES_PER_S / BATCH)  # steps
# Start and end of attempts: a damaged checkpoint of step 14, kills, and three jobs that reached their goals.
RECORDED = [(0, 12), (12, 14), (12, 12), (12, 26), (26, 52), (52, 54), (52, 88), (88, 176), (176, 264)]
# The same kills of a trainer that writes checkpoints at the ends of its jobs alone.
AT_BOUNDARIES = [(0, 12), (0, 14), (0, 12), (0, 26), (0, 52), (0, 54), (0, 88), (88, 176), (176, 264)]


def rows(steps: list[tuple[int, int]], **columns: str) -> list[dict[str, str]]:
    return [
        {"attempt": str(number), "start_step": str(start), "end_step": str(end), "steps_done": str(end - start)}
        | columns
        for number, (start, end) in enumerate(steps, 1)
    ]


def lost(steps: list[tuple[int, int]], damaged: tuple[int, ...] = ()) -> float:
    return check_lost(rows(steps), INTERVAL_S, IMAGES_PER_S, BATCH, damaged)


def test_an_event_may_cost_what_lies_between_two_checkpoints():
    assert lost(RECORDED, damaged=(14,)) == pytest.approx(2 * BATCH / IMAGES_PER_S)
    assert lost([(0, 20), (20 - WITHIN, 60)]) == pytest.approx(WITHIN * BATCH / IMAGES_PER_S)
    with pytest.raises(
        AssertionError, match=rf"attempt 2 went on at step {19 - WITHIN}, though .* reached step 20: at"
    ):
        lost([(0, 20), (19 - WITHIN, 60)])


def test_checkpoints_at_boundaries_alone_cost_more():
    with pytest.raises(
        AssertionError, match=r"attempt 5 went on at step 0, .* reached step 26: at least 2.0 s of work"
    ):
        lost(AT_BOUNDARIES)


def test_a_damaged_checkpoint_costs_an_interval_more_and_only_where_it_would_have_been_taken_up():
    twice = 2 * WITHIN
    assert lost([(0, 40), (40 - twice, 60)], damaged=(35,)) == pytest.approx(twice * BATCH / IMAGES_PER_S)
    for step in (40 - twice, 41):
        with pytest.raises(AssertionError, match=r"1 times 0\.3 s between checkpoints"):
            lost([(0, 40), (40 - twice, 60)], damaged=(step,))


def test_an_attempt_that_ended_before_its_first_step_hides_no_loss():
    refused = {"attempt": "2", "start_step": "", "end_step": ""}
    first, last = rows([(0, 40), (0, 60)])
    with pytest.raises(AssertionError, match="went on at step 0"):
        check_lost([first, refused, last], INTERVAL_S, IMAGES_PER_S, BATCH)


def test_what_an_earlier_attempt_had_reached_counts():
    """The second attempt is killed before it has come as far as the first."""
    with pytest.raises(AssertionError, match="attempt 3 went on at step 10, though one before it had reached step 40"):
        lost([(0, 40), (40 - WITHIN, 41 - WITHIN), (10, 60)])


def test_an_undisturbed_run_has_as_many_checkpoints_as_its_time_asks_for():
    columns = {"images_per_s": "364.5", "stall_s": "0.609"}
    check_saving(rows([(0, 88)], checkpoints="39", **columns), INTERVAL_S, BATCH)
    with pytest.raises(AssertionError, match=r"trained for 14.8 s and wrote 1 checkpoints, wanted 5"):
        check_saving(rows([(0, 88)], checkpoints="1", **columns), INTERVAL_S, BATCH)


def test_the_pace_is_that_of_the_quickest_steps(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,images_per_s\n1,366.5\n3,831.4\n5,446.1\n")
    assert quickest(path) == 831.4


ENDED = [{"how_it_ended": "killed"}, {"how_it_ended": "refused: in use"}, {"how_it_ended": "reached its goal"}]
# Opens the ledger anew, then adds a line to the history for each line that it is sent. The record is kept of processes
# that have "selfsup" on their command line.
WRITER = """
import os, sys
new = f"selfsup{os.getpid()}"
open(new, "w").close()
os.rename(new, "ledger.csv")
for line in sys.stdin:
    with open("history.csv", "a") as file: file.write(line)
    print("added", flush=True)
"""


def writings(*told: tuple[int, str, bool]) -> list[Writing]:
    return [Writing(at, pid, "-", appends, Path(name)) for at, (pid, name, appends) in enumerate(told)]


def test_one_process_after_the_other_writes_a_run():
    first, second = [[(pid, "ledger.csv", False), (pid, "history.csv", True)] for pid in (1, 2)]
    refused = (3, "ledger.csv", True)
    assert check_writers(writings(first[0], refused, first[1], *second), ENDED) == 2
    with pytest.raises(AssertionError, match=r"processes \[1\] wrote a run that another had taken: \[1, 2, 1\]"):
        check_writers(writings(*first, *second, first[1]), ENDED)
    with pytest.raises(AssertionError, match="3 processes wrote the ledger, which has 2 attempts"):
        check_writers(writings(*first, *second, (3, "history.csv", True)), ENDED)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler for the shim that keeps the record")
def test_a_second_writer_is_seen_although_it_only_appends(tmp_path):
    faults = Faults(tmp_path / "faults", "selfsup")
    command = [sys.executable, "-S", "-c", WRITER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, cwd=tmp_path, env=faults.environment(), **pipes) as first,
        subprocess.Popen(command, cwd=tmp_path, env=faults.environment(), **pipes) as second,
    ):
        order = []
        for one in (first, second, second, first):
            one.stdin.write("a row\n")
            one.stdin.flush()
            assert one.stdout.readline() == "added\n"
            order += [one.pid]
        first.stdin.close()
        second.stdin.close()
    appended = [one for one in faults.writings() if one.appends]
    assert [(one.pid, one.path.name) for one in appended] == [(pid, "history.csv") for pid in order]
    with pytest.raises(AssertionError, match="wrote a run that another had taken"):
        check_writers(appended, ENDED)
