"""pretrain.py as a process: signals end it with status 75 and all work saved; the same command finishes it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from selfsup.job.ledger import read_ledger
from selfsup.recipe import canonical, load_recipe
from workflows import wait_until

LONG = {"epochs": 40, "global_batch": 64, "model": {"width": 4}, "augment": {"size": 8}}
PATIENCE_S = 120


@pytest.fixture
def command(repository, tmp_path) -> list[str]:
    scripts = repository / "workflow" / "scripts"
    prepare = [sys.executable, scripts / "prepare_dataset.py", "--source", "digits", "--output", tmp_path / "digits"]
    subprocess.run(prepare, check=True, capture_output=True)
    recipe = canonical(load_recipe("digits", LONG))
    arguments = [
        "--recipe",
        recipe,
        "--data",
        tmp_path / "digits",
        "--run-folder",
        tmp_path / "run",
        "--until-epoch",
        "40",
    ]
    return [*map(str, [sys.executable, scripts / "pretrain.py", *arguments, "--device", "cpu", "--cpus", "2"])]


def logged_steps(folder) -> list[int]:
    try:
        return [int(row["step"]) for row in csv.DictReader((folder / "history.csv").open())]
    except OSError:
        return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_everything_and_the_next_call_continues_there(command, tmp_path, number):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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
    again = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert f"steps {step} to 880 of 880, continuing after" in again.stdout.readline()
    again.kill()
    again.communicate()


def start(command: list[str], *more: str) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *more], env=environment, **pipes)


def test_the_approaching_time_limit_saves_everything_too(command, tmp_path):
    process = start(command, "--time-limit", "0.15")
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and "stopped by the approaching time limit after step" in printed, printed
    (row,) = read_ledger(tmp_path / "run" / "ledger.csv")
    assert row["how_it_ended"] == "stopped by the approaching time limit" and row["steps_lost"] == "0"
    assert row["saved_step"] == row["end_step"] != "0"


def test_a_shower_of_signals_while_it_leaves_changes_nothing(command, tmp_path):
    """Slurm sends SIGTERM more than once, and SIGCONT; all of them arrive in the middle of saving and leaving."""
    process = start(command)
    wait_until(lambda: len(logged_steps(tmp_path / "run")) >= 5, "some steps")
    while process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGINT):
            process.send_signal(number)
        time.sleep(0.001)
    assert process.returncode == 75, process.stdout.read()
    (row,) = read_ledger(tmp_path / "run" / "ledger.csv")
    assert row["how_it_ended"].startswith("stopped by SIG") and row["steps_lost"] == "0"


def test_a_signal_before_the_first_step_is_no_crash(command, tmp_path):
    process = start(command)
    wait_until((tmp_path / "run" / "lock.json").exists, "the lock")
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75 and "stopped by SIGUSR1 after step 0" in printed, printed
    assert not list((tmp_path / "run").rglob("*.pt"))
