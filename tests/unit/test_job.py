"""Attempts at a stage: lock, ledger, stops, failures, watchdog, and several ranks on one machine."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfsup.errors import PermanentError, UserError
from selfsup.job import attempt as attempt_module
from selfsup.job import lock as lock_module
from selfsup.job.attempt import Attempt
from selfsup.job.ledger import Ledger, note_refused, read_ledger
from selfsup.job.lock import STALE_S, Lock, living_holder, this_process
from selfsup.job.slurm import holder_at_work
from selfsup.job.stopping import StopRequest, stop_file

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"


def python(code: str, *arguments, **options) -> subprocess.Popen:
    """Start a process that imports selfsup; what it prints is read by the caller."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), **options.pop("environment", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


HOLD = """
import sys, time
from pathlib import Path
from selfsup.job.lock import Lock
Lock(Path(sys.argv[1]), "pretraining to epoch 7").acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process of this host that holds the lock of tmp_path."""
    process = python(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def of_another_host(folder: Path, *, silent_s: float) -> None:
    """Leave a lock as a job on another node would, its last beat so long ago. No machine has a name with a space."""
    holder = dataclasses.replace(this_process("pretraining to epoch 7"), host="node 7", pid=12, job_id="4711")
    path = folder / "lock.json"
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    os.utime(path, (time.time() - silent_s, time.time() - silent_s))


def test_a_second_job_on_this_host_is_refused_with_the_first_ones_name(tmp_path, holder):
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on {socket.gethostname()}.*to epoch 7"):
        Lock(tmp_path, "another").acquire()
    assert living_holder(tmp_path).pid == holder.pid


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, holder, monkeypatch):
    holder.kill()
    holder.wait()
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: pytest.fail("it has waited"))
    lock = Lock(tmp_path, "the next")
    lock.acquire()
    assert lock.is_mine()
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
    lock.release()
    assert not list(tmp_path.iterdir()) and living_holder(tmp_path) is None


def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch):
    def refused(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first = Lock(tmp_path, "first")
    first.acquire()
    with pytest.raises(UserError, match="in use by process"):
        Lock(tmp_path, "second").acquire()
    first.release()
    assert not list(tmp_path.iterdir())


def test_a_process_number_used_again_is_not_taken_for_the_holder(tmp_path):
    me = dataclasses.replace(this_process("gone"), process_started="1")
    (tmp_path / "lock.json").write_text(json.dumps(dataclasses.asdict(me)))
    assert living_holder(tmp_path) is None
    Lock(tmp_path, "the next").acquire()


def test_a_job_on_another_host_is_refused_when_the_first_shows_a_sign_of_life(tmp_path, monkeypatch):
    of_another_host(tmp_path, silent_s=5)

    def beat_of_the_other(seconds):
        os.utime(tmp_path / "lock.json")

    monkeypatch.setattr(lock_module.time, "sleep", beat_of_the_other)
    with pytest.raises(UserError, match=r"in use by Slurm job 4711 on node 7 \(pretraining to epoch 7, since"):
        Lock(tmp_path, "another").acquire()


def test_a_silent_job_on_another_host_is_dead_after_a_while(tmp_path, monkeypatch):
    honest = time.sleep
    monkeypatch.setattr(lock_module, "WATCHED_S", 1.0)
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: honest(0.1))
    for silent_s in (STALE_S + 100, STALE_S - 2):  # however old its beat is, none must be seen for a while
        began = time.monotonic()
        of_another_host(tmp_path, silent_s=silent_s)
        lock = Lock(tmp_path, "after waiting")
        lock.acquire()
        assert lock.is_mine() and time.monotonic() - began >= (1.0 if silent_s > STALE_S else 1.5)
        lock.release()


def test_a_beat_that_comes_while_one_asks_saves_the_holder(tmp_path, monkeypatch):
    """The file system stood still while the second job asked for its time: the beat it had read before is old news."""
    of_another_host(tmp_path, silent_s=STALE_S + 100)
    monkeypatch.setattr(lock_module, "WATCHED_S", 0.0)
    honest = Lock._now

    def stalled(self):
        os.utime(tmp_path / "lock.json")
        return honest(self)

    monkeypatch.setattr(Lock, "_now", stalled)
    with pytest.raises(UserError, match="in use by Slurm job 4711"):
        Lock(tmp_path, "another").acquire()


@pytest.mark.parametrize(("state", "at_work"), [("RUNNING", True), ("PENDING", True), ("NODE_FAIL", False)])
def test_slurm_is_asked_for_the_job_of_a_silent_lock(tmp_path, monkeypatch, state, at_work):
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f'#!/bin/sh\ncase "$*" in *--jobs=4711*) echo "4711 {state}";; esac\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    of_another_host(tmp_path, silent_s=STALE_S + 100)
    found = holder_at_work(tmp_path)
    assert (found is not None) == at_work
    if at_work:
        assert "Slurm job 4711 on node 7" in found and f"which Slurm says is {state}" in found


def test_a_dead_process_of_this_host_is_dead_though_its_allocation_lives(tmp_path, monkeypatch):
    monkeypatch.setattr("selfsup.job.slurm.job_state", lambda job_id: "RUNNING")
    dead = dataclasses.replace(this_process("gone"), process_started="1", job_id="4711")
    (tmp_path / "lock.json").write_text(json.dumps(dataclasses.asdict(dead)))
    assert holder_at_work(tmp_path) is None
    alive = dataclasses.replace(this_process("here"), job_id="4711")
    (tmp_path / "lock.json").write_text(json.dumps(dataclasses.asdict(alive)))
    assert "Slurm job 4711" in holder_at_work(tmp_path)


def test_a_lock_that_was_taken_over_meanwhile_is_left_alone(tmp_path):
    """Two jobs found the same dead holder; the other was quicker and holds the lock now."""
    of_another_host(tmp_path, silent_s=STALE_S + 1)
    dead, beat = lock_module._read(tmp_path / "lock.json")
    (tmp_path / "lock.json").unlink()
    quicker = Lock(tmp_path, "quicker")
    quicker.acquire()
    Lock(tmp_path, "slower")._set_aside(dead, beat)
    assert quicker.is_mine() and quicker.beat()


def test_an_empty_lock_file_counts_by_its_age(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "WATCHED_S", 0.0)
    (tmp_path / "lock.json").touch()
    os.utime(tmp_path / "lock.json", (0, 0))
    Lock(tmp_path, "next").acquire()


def make_attempt(folder: Path, **changes) -> Attempt:
    return Attempt(folder, **{"stage": "pretraining", "goal": "epoch 4", "fingerprint": "f", **changes})


def rows(folder: Path) -> list[dict]:
    return read_ledger(folder / "ledger.csv")


def test_a_holder_that_lost_its_lock_writes_nothing_more(tmp_path):
    with make_attempt(tmp_path) as attempt:
        attempt.begin_steps(0, 8)
        attempt.check_lock()
        of_another_host(tmp_path, silent_s=0)
        with pytest.raises(UserError, match="taken over by another job"):
            attempt.check_lock()
    assert rows(tmp_path)[-1]["how_it_ended"] == "running"  # the row is the other's to close
    assert json.loads((tmp_path / "lock.json").read_text())["host"] == "node 7"


def test_the_ledger_reckons_steps_done_lost_and_redone(tmp_path, monkeypatch):
    with make_attempt(tmp_path) as attempt:
        attempt.set_columns(devices=4, device="NVIDIA H100", ranks=4)
        attempt.begin_steps(0, 512)
        attempt.step_done(50)
        attempt.add_stall(0.25)
        attempt.step_saved(50)
        attempt.set_ending("stopped by SIGTERM")
    # The next one is killed at step 120, its newest checkpoint that of step 90.
    with monkeypatch.context() as still:
        still.setattr("selfsup.job.ledger.time.monotonic", lambda: 9000.0)
        ledger = Ledger(tmp_path, began=1800.0)
        ledger.open({"stage": "pretraining", "goal": "epoch 4", "started": "2026-01-01T00:00:00+00:00"})
        ledger.update(devices=4, device="NVIDIA H100", start_step=50, end_step=120, saved_step=90)
    assert rows(tmp_path)[1]["how_it_ended"] == "running"
    with pytest.raises(UserError), make_attempt(tmp_path):
        raise UserError("no GPU")  # one that did not come to its first step
    with make_attempt(tmp_path) as attempt:
        attempt.begin_steps(90, 512, reached=125)  # history.csv knows of five steps after the last heartbeat
        attempt.step_done(200)
        attempt.step_saved(200)
        attempt.set_ending("reached its goal")
    first, killed, last = (row for row in rows(tmp_path) if row["start_step"])
    figures = ("how_it_ended", "steps_done", "steps_lost", "steps_redone")
    assert [first[key] for key in figures] == ["stopped by SIGTERM", "50", "0", "0"]
    assert [killed[key] for key in figures] == ["killed", "75", "35", "0"]
    assert [last[key] for key in figures] == ["reached its goal", "110", "0", "35"]
    assert (first["checkpoints"], first["stall_s"], first["ranks"]) == ("1", "0.25", "4")
    assert float(killed["gpu_hours"]) == float(killed["device_hours"]) == 8  # four devices for two hours
    assert float(last["gpu_hours"]) == 0  # devices unknown: none


def test_a_killed_attempt_has_done_at_least_what_it_saved(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.open({"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00"})
    ledger.update(start_step=0, end_step=0, saved_step=0)
    with make_attempt(tmp_path) as attempt:
        attempt.begin_steps(47, 8, reached=46)  # history.csv has a row for every other step
    assert [rows(tmp_path)[0][key] for key in ("steps_done", "steps_lost")] == ["47", "0"]


def test_a_clock_that_is_set_changes_no_attempts_length(tmp_path, monkeypatch):
    monkeypatch.setattr("selfsup.job.ledger.now", lambda: "2020-01-01T00:00:00+00:00")  # set back after the start
    monkeypatch.setattr("selfsup.job.ledger.time.monotonic", lambda: 1090.0)
    ledger = Ledger(tmp_path, began=1000.0)
    ledger.open({"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00", "devices": 4})
    ledger.update("reached its goal")
    note_refused(tmp_path, {"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00"}, "refused")
    assert [row["ended"] for row in rows(tmp_path)] == ["2026-01-01T00:01:30+00:00", "2026-01-01T00:00:00+00:00"]
    assert float(rows(tmp_path)[0]["device_hours"]) == 0.1


def test_a_processors_hours_are_no_gpu_hours(tmp_path):
    ledger = Ledger(tmp_path, began=time.monotonic() - 60)
    ledger.open({"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00", "device": "cpu", "devices": 2})
    ledger.update("reached its goal")
    assert float(rows(tmp_path)[0]["gpu_hours"]) == 0 < float(rows(tmp_path)[0]["device_hours"])


def test_a_refused_attempt_leaves_a_row_too(tmp_path, holder):
    with pytest.raises(UserError, match="in use"), make_attempt(tmp_path):
        raise AssertionError("must not be reached")
    with pytest.raises(UserError) as refusal, make_attempt(tmp_path):
        raise AssertionError
    assert [row["how_it_ended"] for row in rows(tmp_path)] == ["refused: " + str(refusal.value)[:200]] * 2
    assert [row["attempt"] for row in rows(tmp_path)] == ["1", "2"]


def test_a_row_refused_meanwhile_survives_the_holders_updates(tmp_path):
    with make_attempt(tmp_path) as attempt:
        attempt.begin_steps(0, 8)
        note_refused(tmp_path, {"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00"}, "refused")
        attempt.set_ending("reached its goal")
    assert [row["how_it_ended"] for row in rows(tmp_path)] == ["reached its goal", "refused"]


def test_the_heartbeat_keeps_the_row_and_the_lock_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt_module, "BEAT_S", 0.05)
    with make_attempt(tmp_path) as attempt:
        os.utime(tmp_path / "lock.json", (0, 0))
        attempt.begin_steps(0, 8)
        attempt.step_done(7)
        deadline = time.monotonic() + 120
        while rows(tmp_path)[0]["end_step"] != "7" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert rows(tmp_path)[0]["how_it_ended"] == "running" and rows(tmp_path)[0]["steps_lost"] == "7"
        assert (tmp_path / "lock.json").stat().st_mtime > time.time() - 60


@pytest.mark.parametrize(
    ("error", "wanted", "for_good"),
    [
        (PermanentError("the loss is not finite"), "failed: the loss is not finite", True),
        (UserError("the disk is full"), "failed: the disk is full", False),
        (ValueError("surprise\nin two lines"), "crashed: ValueError: surprise", False),
    ],
)
def test_how_an_attempt_ended_stands_in_the_ledger(tmp_path, error, wanted, for_good):
    with pytest.raises(type(error)), make_attempt(tmp_path):
        raise error
    assert rows(tmp_path)[0]["how_it_ended"] == wanted
    assert (tmp_path / "failed.json").exists() == for_good
    assert not (tmp_path / "lock.json").exists()


def test_a_failure_of_another_fingerprint_does_not_count(tmp_path):
    with pytest.raises(PermanentError), make_attempt(tmp_path):
        raise PermanentError("no good")
    with pytest.raises(UserError, match=r"failed for good .*no good.*delete .*failed\.json"), make_attempt(tmp_path):
        raise AssertionError
    with make_attempt(tmp_path, fingerprint="another recipe"):
        pass


@pytest.mark.parametrize("where", ["pretrain/STOP", "STOP", "random_init/linear/STOP", "of random_init/STOP"])
def test_a_stop_file_stops_the_run_and_keeps_it_stopped(tmp_path, where):
    folder = tmp_path / ("random_init/linear" if "random_init" in where else "pretrain")
    where = where.removeprefix("of random_init/")
    with make_attempt(folder) as attempt:
        assert attempt.stop.reason is None
        (tmp_path / where).touch()
        attempt.stop._next_look = 0
        assert attempt.stop.reason == f"the file {tmp_path / where}, for good" and attempt.stop.exit_status == 1
    with pytest.raises(UserError, match="STOP is there, so the run stays stopped: delete it"), make_attempt(folder):
        raise AssertionError
    stop_file(folder).unlink()
    with make_attempt(folder):
        pass


def test_the_time_limit_is_a_reason_to_stop(tmp_path):
    assert StopRequest(tmp_path, 0.0, {}).reason == "the approaching time limit"
    assert StopRequest(tmp_path, 3600.0, {}).reason is None
    ends = {"SLURM_JOB_END_TIME": str(int(time.time()) + 100)}
    assert StopRequest(tmp_path, None, ends).reason is None  # 90 s to go: the margin of a short limit is a tenth
    assert StopRequest(tmp_path, 3600.0, {"SLURM_JOB_END_TIME": str(int(time.time()))}).reason is not None
    later = StopRequest(tmp_path, 3600.0, {})
    later._end -= 3600 - 119
    assert later.reason == "the approaching time limit"  # two minutes ahead of a long one


def test_sigcont_is_no_reason_to_stop(tmp_path):
    stop = StopRequest(tmp_path, None, {})
    os.kill(os.getpid(), signal.SIGCONT)
    assert stop.reason is None


HANG = """
import sys, time
from selfsup.job.watchdog import Watchdog
from selfsup.logs import start_logging
import selfsup.job.watchdog as module
module.LINGER_S = 0.2
start_logging(3, 8, "node7")
watchdog = Watchdog(float(sys.argv[1]))
for step in range(4):
    time.sleep(0.05)
    watchdog.beat(f"step {step}")
def waiting_for_the_others():
    if sys.argv[2] == "lock":
        import ctypes
        ctypes.PyDLL(None).sleep(600)   # C code that keeps Python's lock for longer than anyone waits
    time.sleep(600)
waiting_for_the_others()
"""


@pytest.mark.parametrize("kind", ["sleep", "lock"])
def test_a_job_that_stands_still_ends_with_its_stacks(kind):
    began = time.monotonic()
    process = python(HANG, 3.0, kind)
    _, told = process.communicate(timeout=300)
    assert process.returncode != 0 and time.monotonic() - began < 300  # it would sleep for 600
    assert "waiting_for_the_others" in told
    if kind == "sleep":
        assert process.returncode == 70
        assert re.match(r"error: rank 3 of 8 on node7 at \d\d:\d\d:\d\d: no progress for .* after step 3", told)


WAIT = """
import os, signal, sys, threading, time
from selfsup.job import waiting
from selfsup.job.stopping import StopRequest
waiting.PATIENCE_S, waiting.POLL_S = 2.0, 0.05

leaving, others_come_s = threading.Event(), {"before it began": 120, "while it computed": 1}.get(sys.argv[1], 3)
now = [1000.0]
if sys.argv[1] == "while it computed":  # by a clock of its own, which stands still while it waits
    time.monotonic = lambda: now[0]

def leave(seconds):
    leaving.set()
    time.sleep(2)  # its last writings; meanwhile the others come
    os._exit(75)

listener = waiting.Listener(StopRequest(), leave, is_main=True)
if sys.argv[1] == "before it settled":
    listener.close()
if sys.argv[1] != "before it began":
    os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[1] == "while it computed":
    time.sleep(1)
    now[0] += 3
with waiting.waiting_for_ranks():
    if sys.argv[1] == "before it began":
        os.kill(os.getpid(), signal.SIGTERM)
    leaving.wait(others_come_s)
print("went on", flush=True)
time.sleep(3)
"""


@pytest.mark.parametrize(
    ("asked", "leaves"), [("before it began", True), ("while it computed", False), ("before it settled", False)]
)
def test_who_leaves_because_others_do_not_come_is_not_let_out_of_the_wait_any_more(asked, leaves):
    """Else the main thread would begin to save what the other thread is just about to end."""
    process = python(WAIT, asked)
    told, problem = process.communicate(timeout=300)
    assert (process.returncode, told) == ((75, "") if leaves else (0, "went on\n")), problem


ATTEMPT = """
import sys, time
from pathlib import Path
from selfsup.errors import run_script
from selfsup.job.attempt import Attempt

def sleep(seconds, honest=time.sleep):
    print("waits", flush=True)
    honest(seconds)

time.sleep = sleep

def main():
    with Attempt(Path(sys.argv[1]), stage="pretraining", goal="epoch 4", fingerprint="f"):
        print("began")

run_script(main)
"""


def test_a_stop_is_heard_while_it_is_not_known_whether_another_job_lives(tmp_path):
    of_another_host(tmp_path, silent_s=5)
    process = python(ATTEMPT, tmp_path)
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGUSR2)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 75
    last = "stopped by SIGUSR2 before the first step (waiting for the lock of another job)"
    assert re.fullmatch(rf"(waits\n)*\d\d:\d\d:\d\d \| {re.escape(last)}\n", told)
    assert [row["how_it_ended"] for row in rows(tmp_path)] == [f"refused: {last}"]
    assert json.loads((tmp_path / "lock.json").read_text())["host"] == "node 7"


def test_a_refusal_takes_no_torch(tmp_path):
    """What a retry runs when there is nothing to do: well under a second of processor time."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    code = (
        "import sys; import pretrain; sys.argv = sys.argv[1:]\ntry: pretrain.main()\nexcept Exception as e: print(e)\n"
    )
    code += "print('torch' in sys.modules)"
    arguments = ["pretrain.py", "--recipe", "digits", "--data", "none", "--run-folder", tmp_path / "run"]
    told, _ = python(code, *arguments, "--until-epoch", "2").communicate(timeout=300)
    assert "STOP is there" in told and told.endswith("False\n")


# Where a rank does not end by itself, a second is waited for it; elsewhere as long as it takes.
RANK = """
import os, signal, subprocess, sys, time
from selfsup.job import local_ranks
class Slow(subprocess.Popen):  # a busy machine lets the launcher go on long after the last rank has begun
    def __init__(self, *arguments, env):
        super().__init__(*arguments, env=env)
        time.sleep(2 if env["RANK"] == "2" else 0)
if sys.argv[1] == "slow":
    subprocess.Popen = Slow
if sys.argv[1] == "early" and os.environ.get("RANK") == "2":  # it has not yet said what a signal is to do
    os.write(1, b"rank 2 of 3\\n")
    time.sleep(600)
local_ranks.GRACE_S = 1.0 if sys.argv[1] in ("fail", "die", "suspend") else 300.0
if "RANK" not in os.environ:
    sys.exit(local_ranks.run_local_ranks(3))
def stop(*_):
    os.write(1, f"rank {os.environ['RANK']} stops\\n".encode())
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
os.write(1, f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\\n".encode())  # at once: three write here
open(f"{sys.path[0]}/began_{os.environ['RANK']}", "w").close()
ready = 2 if sys.argv[1] == "early" else 3
while sum(name.startswith("began_") for name in os.listdir(sys.path[0])) < ready:  # however late they are started
    time.sleep(0.01)
if sys.argv[1] == "fail" and os.environ["RANK"] == "1":
    sys.exit(3)
if sys.argv[1] == "die" and os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "for good":  # rank 0 alone knows of the file STOP
    time.sleep(1 if os.environ["RANK"] == "0" else 0)
    sys.exit(1 if os.environ["RANK"] == "0" else 75)
if sys.argv[1] == "suspend":
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.exit(75)
if sys.argv[1] in ("fail", "die", "wait", "slow", "early"):
    time.sleep(600)
"""


@pytest.fixture
def rank_script(tmp_path):
    path = tmp_path / "ranks.py"
    path.write_text(RANK)

    def start(what: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
        return subprocess.Popen(
            [sys.executable, path, what], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.mark.parametrize(
    ("what", "status"), [("end", 0), ("fail", 3), ("die", 128 + signal.SIGKILL), ("for good", 1), ("suspend", 75)]
)
def test_local_ranks_end_together_with_the_status_of_the_one_that_failed(rank_script, what, status):
    process = rank_script(what)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == status
    assert sorted(told.splitlines()) == [f"rank {rank} of 3" for rank in range(3)]


@pytest.mark.parametrize(("what", "stopped"), [("wait", 3), ("slow", 3), ("early", 2)])
def test_a_signal_to_the_launcher_reaches_all_ranks_and_75_comes_back(rank_script, what, stopped):
    """Also while the launcher starts the last rank, and a rank that is not ready for it, which it ends."""
    process = rank_script(what)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 75
    assert sorted(told.splitlines()) == [f"rank {rank} stops" for rank in range(stopped)]
