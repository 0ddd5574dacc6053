"""pretrain.py as a process: signals end it with status 75 and all work saved; the same command finishes it."""

import contextlib
import csv
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from selfsup.data.store import PackedStore
from selfsup.job.ledger import read_ledger
from selfsup.recipe import canonical, load_recipe
from workflows import wait_until

# None of them comes to its end, however late a signal comes.
ENDLESS = {"epochs": 4000, "global_batch": 64, "model": {"width": 4}, "augment": {"size": 8}}
PATIENCE_S = 300


@pytest.fixture
def command(repository, tmp_path, packed_digits) -> list[str]:
    """What starts a training as users do."""
    scripts = repository / "workflow" / "scripts"
    shutil.copytree(packed_digits, tmp_path / "digits")
    recipe = canonical(load_recipe("digits", ENDLESS))
    arguments = [
        "--recipe",
        recipe,
        "--data",
        tmp_path / "digits",
        "--run-folder",
        tmp_path / "run",
        "--until-epoch",
        "4000",
    ]
    return [*map(str, [sys.executable, scripts / "pretrain.py", *arguments, "--device", "cpu", "--cpus", "1"])]


@pytest.fixture
def forked(command, starter) -> list[str]:
    """The same as a fork of a process that has torch: signals are passed on to it."""
    return [starter, *command[1:]]


def logged_steps(folder) -> list[int]:
    try:
        return [int(row["step"]) for row in csv.DictReader((folder / "history.csv").open())]
    except OSError:
        return []


ASKS_TO_STOP = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


@pytest.mark.parametrize("number", ASKS_TO_STOP)
def test_a_signal_saves_everything_and_the_next_call_continues_there(command, forked, tmp_path, number):
    """SIGTERM, which all clusters send, to a process as users start it."""
    process = start(command if number == signal.SIGTERM else forked)
    deadline = time.monotonic() + PATIENCE_S
    while len(logged_steps(tmp_path / "run")) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # a second one while it is leaving changes nothing
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, printed
    assert f"stopped by {signal.Signals(number).name}" in printed or "stopped by SIGTERM" in printed
    (card,) = (tmp_path / "run" / "partial").glob("step_*.json")
    step = json.loads(card.read_text())["step"]
    assert step > logged_steps(tmp_path / "run")[4]
    again = start(forked)
    begins = next(line for line in again.stdout if ": steps " in line)
    assert f"steps {step} to 88000 of 88000, continuing after" in begins
    again.kill()
    again.communicate()


def start(command: list[str], *more: str) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *more], env=environment, **pipes)


def test_the_approaching_time_limit_saves_everything_too(forked, tmp_path):
    """Under a limit of nine seconds, or a longer one where nine do not suffice for a step."""
    for minutes in (0.15, 0.6, 2.4, 9.6):
        process = start(forked, "--time-limit", str(minutes))
        printed, _ = process.communicate(timeout=2 * PATIENCE_S + 60 * minutes)
        if logged_steps(tmp_path / "run"):
            break
        shutil.rmtree(tmp_path / "run")
    assert process.returncode == 75 and "stopped by the approaching time limit after step" in printed, printed
    (row,) = read_ledger(tmp_path / "run" / "ledger.csv")
    assert row["how_it_ended"] == "stopped by the approaching time limit" and row["steps_lost"] == "0"
    assert row["saved_step"] == row["end_step"] != "0"


def trainer(folder: Path) -> int:
    """The process that has the run's lock, not one that passes signals on to it."""
    return json.loads((folder / "lock.json").read_text())["pid"]


@pytest.mark.long
def test_a_shower_of_signals_while_it_leaves_changes_nothing(command, tmp_path):
    """Slurm sends SIGTERM more than once, and SIGCONT; all of them arrive in the middle of saving and leaving.

    Cold: the interpreter gives signals back their default actions when it ends, and a fork leaves without that.
    """
    process = start(command)
    wait_until(lambda: len(logged_steps(tmp_path / "run")) >= 5, "some steps")
    pid = trainer(tmp_path / "run")
    with contextlib.suppress(ProcessLookupError):
        while process.poll() is None:
            for number in (*ASKS_TO_STOP, signal.SIGCONT):
                os.kill(pid, number)
            time.sleep(0.001)
    process.wait(PATIENCE_S)
    assert process.returncode == 75, process.stdout.read()
    (row,) = read_ledger(tmp_path / "run" / "ledger.csv")
    assert row["how_it_ended"].startswith("stopped by SIG") and row["steps_lost"] == "0"


SIGNALLED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import pretrain
from selfsup.errors import run_script
from selfsup.job.lock import Lock

def acquire(self, *told, honest=Lock.acquire):
    honest(self, *told)
    os.kill(os.getpid(), signal.SIGUSR1)

Lock.acquire = acquire
run_script(pretrain.main)
"""


def test_a_signal_before_the_first_step_is_no_crash(command, tmp_path):
    """As soon as it has its lock, and before it has loaded torch."""
    python, script, *words = command
    process = start([python, "-c", SIGNALLED, os.path.dirname(script), *words])
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and "stopped by SIGUSR1 after step 0" in printed, printed
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_a_closed_terminal_saves_everything_though_nothing_can_be_printed_any_more(command, tmp_path):
    """A terminal of its own, as ssh gives one: its end sends SIGHUP, and every line printed after that is an error."""
    ours, its = os.openpty()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    wait_until(lambda: len(logged_steps(tmp_path / "run")) >= 5, "some steps")
    os.close(ours)
    assert process.wait(timeout=PATIENCE_S) == 75
    (row,) = read_ledger(tmp_path / "run" / "ledger.csv")
    assert row["how_it_ended"] == "stopped by SIGHUP" and row["steps_lost"] == "0"
    assert len(list((tmp_path / "run" / "partial").glob("step_*.pt"))) == 1


def test_nohup_is_respected(forked, tmp_path):
    """Who has SIGHUP ignored wants the run to go on when the terminal is closed."""
    process = start(["nohup", *forked])
    wait_until(lambda: len(logged_steps(tmp_path / "run")) >= 5, "some steps")
    for pid in {process.pid, trainer(tmp_path / "run")}:
        os.kill(pid, signal.SIGHUP)
    steps = len(logged_steps(tmp_path / "run"))
    wait_until(lambda: len(logged_steps(tmp_path / "run")) >= steps + 5, "more steps")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and "stopped by SIGTERM" in printed, printed


def test_a_signal_ends_the_wait_for_another_process_of_the_node_that_copies_the_dataset(forked, tmp_path):
    store, local = PackedStore(tmp_path / "digits"), tmp_path / "local"
    local.mkdir()
    with open(local / f"digits-{store.fingerprint[:16]}.lock", "a") as copying:
        fcntl.flock(copying, fcntl.LOCK_EX)
        process, began = start(forked, "--local-copy", str(local)), time.monotonic()
        wait_until((tmp_path / "run/lock.json").exists, "its lock")
        files = Path(f"/proc/{trainer(tmp_path / 'run')}/fd")
        wait_until(lambda: any(_leads_to(one, copying.name) for one in files.iterdir()), "the opening of the file")
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and time.monotonic() - began < PATIENCE_S, printed
    assert "| stopped by SIGTERM before the first step (waiting for another process of this node" in printed
    (row,) = read_ledger(tmp_path / "run" / "ledger.csv")
    assert row["how_it_ended"].startswith("stopped by SIGTERM before the first step")
    assert not (tmp_path / "run" / "lock.json").exists()


def _leads_to(link: Path, file: str) -> bool:
    try:
        return os.readlink(link) == file
    except OSError:  # closed meanwhile
        return False


def test_what_writes_a_jobs_log_outlives_the_signals_that_the_trainer_takes(workflow):
    """Who signals a whole job, as a terminal does, signals `tee` too, which has the trainer's last lines to write."""
    planned = workflow.run("-n", "-p", "results/demo.csv")
    tee = re.search(r"\| (bash -c 'trap .*tee \"\$0\".*') logs/pretrain", planned)[1]
    log = workflow.path("log")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([*shlex.split(tee), log], **pipes)
    print("first", file=process.stdin, flush=True)
    assert process.stdout.readline() == "first\n"
    for number in ASKS_TO_STOP:
        os.killpg(process.pid, number)
    told = "20:15:03 . a detail | of it\n20:15:03 rank 3 node7 . another\nsaved, to be continued . all of it\n"
    shown, _ = process.communicate(told, timeout=PATIENCE_S)
    assert process.returncode == 0 and log.read_text() == f"first\n{told}"
    assert shown == "saved, to be continued . all of it\n"  # the details are in the log alone
