"""What an attempt notes of itself while it lives: its row, its signs of life, the reasons to stop that it looks for."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest

from selfsup.errors import UserError
from selfsup.job import attempt as attempt_module
from selfsup.job import watchdog as watchdog_module
from selfsup.job.attempt import Attempt
from selfsup.job.ledger import Ledger, read_ledger
from selfsup.job.local_ranks import LAUNCHER
from selfsup.job.lock import Lock, living_holder, this_process
from selfsup.job.place import Place
from selfsup.job.stopping import LOOK_EVERY_S, StopRequest
from selfsup.signals import take_stop_signals

STARTED = {"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00"}


def make_attempt(folder: Path) -> Attempt:
    return Attempt(folder, stage="pretraining", goal="epoch 4", fingerprint="f")


def rows(folder: Path) -> list[dict]:
    return read_ledger(folder / "ledger.csv")


def until(what, patience_s: float = 120) -> None:
    end = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_steps_that_an_attempt_did_not_reach_again_are_not_redone(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.open(STARTED)
    ledger.update("killed", start_step=0, end_step=100, saved_step=20)
    for end, redone in ((60, 40), (150, 80)):
        ledger.open(STARTED)
        ledger.update("stopped", start_step=20, end_step=end, saved_step=20)
        assert rows(tmp_path)[-1]["steps_redone"] == str(redone)


def test_an_attempt_that_ended_by_itself_keeps_its_row(tmp_path):
    """It knows better than history.csv, whose rows may be of a killed one before it."""
    with make_attempt(tmp_path) as attempt:
        attempt.begin_steps(0, 8)
        attempt.step_done(10)
        attempt.step_saved(10)
        attempt.set_ending("stopped by SIGTERM")
    before = rows(tmp_path)[0]
    with make_attempt(tmp_path) as attempt:
        attempt.begin_steps(10, 8, reached=25)
    assert rows(tmp_path)[0] == before and before["steps_done"] == "10"


def test_all_progress_of_an_attempt_reaches_the_watchdog(tmp_path):
    told = []
    with make_attempt(tmp_path) as attempt:
        attempt._watchdog.beat = told.append
        attempt.heartbeat_before_work("waiting for the data")
        attempt.begin_steps(5, 8)
        attempt.step_done(6)
        attempt.heartbeat("health, image 256")
    assert told == ["waiting for the data", "continuing at step 5", "step 6", "health, image 256"]


def test_a_heartbeat_that_finds_the_lock_taken_asks_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt_module, "BEAT_S", 0.02)
    with make_attempt(tmp_path) as attempt:
        other = dataclasses.replace(this_process("pretraining to epoch 7"), host="node 7")
        (tmp_path / "lock.json").write_text(json.dumps(dataclasses.asdict(other)))
        until(lambda: attempt.stop.reason is not None)
        assert attempt.stop.reason == "another job, which has taken the run over"


def of_another_host(folder: Path, silent_s: float) -> None:
    other = dataclasses.replace(this_process("pretraining to epoch 7"), host="node 7")
    (folder / "lock.json").write_text(json.dumps(dataclasses.asdict(other)))
    os.utime(folder / "lock.json", times=(time.time() - silent_s,) * 2)


def test_who_has_lost_a_lock_neither_keeps_it_alive_nor_releases_it(tmp_path):
    lock = Lock(tmp_path, "pretraining to epoch 4")
    lock.acquire()
    assert lock.beat()
    of_another_host(tmp_path, silent_s=1000)
    assert not lock.beat() and (tmp_path / "lock.json").stat().st_mtime < time.time() - 900
    lock.release()
    assert json.loads((tmp_path / "lock.json").read_text())["host"] == "node 7"


@pytest.mark.parametrize(("silent_s", "lives"), [(0, True), (60, True), (180, False)])
def test_a_holder_on_another_host_lives_for_two_minutes_without_a_beat(tmp_path, silent_s, lives):
    of_another_host(tmp_path, silent_s)
    assert (living_holder(tmp_path) is not None) == lives


def test_a_job_that_was_asked_to_stop_is_to_be_submitted_again(tmp_path):
    """75 is EX_TEMPFAIL, which scripts around jobs know."""
    stop = StopRequest(tmp_path, None, {})
    stop.request("SIGTERM")
    assert stop.exit_status == 75


def test_a_job_stops_when_its_launcher_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt_module, "BEAT_S", 0.02)
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    with make_attempt(tmp_path) as attempt:
        time.sleep(0.2)
        assert attempt.stop.reason is None
    monkeypatch.setenv(LAUNCHER, str(os.getppid() + 1))  # another one has inherited it
    with make_attempt(tmp_path) as attempt:
        until(lambda: attempt.stop.reason is not None)
        assert attempt.stop.reason == "the end of its launcher"


def test_what_a_killed_process_has_left_half_written_goes(tmp_path):
    (tmp_path / "ledger.csv.1234.tmp").write_text("half")
    with make_attempt(tmp_path):
        assert not list(tmp_path.glob("*.tmp"))


def test_images_per_second_are_those_of_this_attempt(tmp_path, monkeypatch):
    now = [1000.0]
    with make_attempt(tmp_path) as attempt:
        monkeypatch.setattr(attempt_module.time, "monotonic", lambda: now[0])
        attempt.begin_steps(100, 8)
        attempt.step_done(150)
        now[0] += 10
        assert attempt._known_columns()["images_per_s"] == 50 * 8 / 10
        monkeypatch.undo()


def test_the_file_stop_is_looked_for_now_and_then(tmp_path, monkeypatch):
    """And not after every step: that would burden a network file system."""
    now, looks = [1000.0], []
    monkeypatch.setattr("selfsup.job.stopping.time.monotonic", lambda: now[0])
    monkeypatch.setattr("selfsup.job.stopping.stop_file", lambda folder: looks.append(now[0]))
    stop = StopRequest(tmp_path, None, {})
    for _ in range(100):
        now[0] += LOOK_EVERY_S / 20
        assert stop.reason is None
    assert 5 <= len(looks) <= 6


def test_nohup_keeps_sighup_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        take_stop_signals(print)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is print
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    take_stop_signals(print)
    assert signal.getsignal(signal.SIGHUP) is print


class Clock:
    """The watchdog's time, which each of its waits makes pass, by as much more as `suspended` says."""

    def __init__(self, monkeypatch, suspended: float = 0):
        self.now, self._suspended, self.waits = 1000.0, suspended, 0
        monkeypatch.setattr(watchdog_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watchdog_module.threading.Thread, "start", lambda _: None)
        monkeypatch.setattr(watchdog_module.faulthandler, "dump_traceback_later", lambda *_, **__: None)

    def watch(self, dog, waits: int, between=lambda: None) -> list[float]:
        """Let it wait so many times, and return after how much silence it has ended the process."""
        ended = []

        def wait(seconds: float) -> bool:
            self.waits += 1
            self.now += seconds + (self._suspended if self.waits == 2 else 0)
            between()
            return self.waits > waits

        dog._closed.wait, dog._end = wait, ended.append
        dog._watch()
        return ended


@pytest.mark.parametrize(("suspended", "waits", "ends"), [(0, 4, 0), (0, 5, 1), (100, 5, 0), (100, 7, 1)])
def test_a_suspension_is_no_hang(monkeypatch, suspended, waits, ends):
    """Of four seconds' patience, looked at every second."""
    clock = Clock(monkeypatch, suspended)
    assert len(clock.watch(watchdog_module.Watchdog(4.0), waits)) == ends


def test_progress_keeps_the_watchdog_quiet(monkeypatch):
    clock, dog = Clock(monkeypatch), watchdog_module.Watchdog(4.0)
    assert clock.watch(dog, 40, lambda: dog.beat("a step")) == []


def test_work_without_steps_has_a_row_without_steps(tmp_path):
    with make_attempt(tmp_path) as attempt:
        attempt.step_saved(1)
    (row,) = rows(tmp_path)
    assert [row[key] for key in ("start_step", "end_step", "saved_step", "steps_lost")] == ["", "", "", ""]


@pytest.mark.parametrize(("rank", "asked_to_stop"), [(0, False), (1, False), (1, True)])
def test_ranks_that_are_refused_leave_after_rank_0(tmp_path, monkeypatch, rank, asked_to_stop):
    """srun ends all ranks as soon as one has failed: one that is quicker than rank 0 would take its row along."""
    slept = []
    monkeypatch.setattr(attempt_module.time, "sleep", slept.append)
    monkeypatch.setattr(attempt_module.time, "monotonic", lambda: float(sum(slept)))
    (tmp_path / "STOP").touch()
    stop = StopRequest(None)
    if asked_to_stop:
        stop.request("SIGTERM")
    told = {"stage": "pretraining", "goal": "epoch 4", "fingerprint": "f", "place": Place(rank, 2), "stop": stop}
    with pytest.raises(UserError, match="stays stopped"), Attempt(tmp_path, **told):
        pass
    assert sum(slept) == pytest.approx(0 if rank == 0 or asked_to_stop else attempt_module.RANK_0_S, abs=0.06)
    assert [row["how_it_ended"].startswith("refused: ") for row in rows(tmp_path)] == [True] * (rank == 0)
