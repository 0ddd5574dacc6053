"""pretrain.py on two ranks of this machine: elsewhere than planned, one of them fails, dies or stands still."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfsup.job.ledger import read_ledger
from selfsup.recipe import canonical

# Rank 1 does at step 3 what `trouble` says; LINGER_S is what a watchdog waits for the others' stacks.
SCRIPT = """
import os, signal, sys, time
trouble = os.environ["TROUBLE"]
import selfsup.job.attempt, selfsup.job.watchdog
selfsup.job.watchdog.LINGER_S = 2.0
selfsup.job.attempt.BEAT_S = 0.5
import pretrain
from selfsup.errors import PermanentError, run_script
from selfsup.training.pretraining import Pretraining

honest = Pretraining.train_step

def stuck_at_step_3():
    time.sleep(600)

def train_step(self, batch):
    if self.step == 3 and os.environ.get("RANK") == "1":
        if trouble == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "fails":
            raise PermanentError("image 17 is damaged")
        if trouble == "hangs":
            stuck_at_step_3()
    if trouble == "slow":
        time.sleep(1)
    return honest(self, batch)

Pretraining.train_step = train_step
run_script(pretrain.main)
"""


@pytest.fixture
def two_ranks(tmp_path, repository, tiny_store, tiny_recipe):
    (tmp_path / "script.py").write_text(SCRIPT)
    scripts, data, run = repository / "workflow" / "scripts", tiny_store.folder, tmp_path / "run"

    def start(trouble: str, *more: str) -> subprocess.Popen:
        told = [sys.executable, tmp_path / "script.py", "--recipe", canonical(tiny_recipe)]
        told += ["--data", data, "--run-folder", run, "--until-epoch", "4", "--device", "cpu", "--local-ranks", "2"]
        outer = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        environment = {**outer, "PYTHONPATH": str(scripts), "TROUBLE": trouble}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [*told, "--checkpoint-minutes", "1e-9", *more]
        return subprocess.Popen([*map(str, command)], env=environment, **pipes)

    start.run = run
    return start


def rows(run: Path) -> list[str]:
    return [row["how_it_ended"] for row in read_ledger(run / "ledger.csv")]


def test_a_rank_that_fails_speaks_first_and_takes_the_other_along(two_ranks):
    process, began = two_ranks("fails"), time.monotonic()
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and time.monotonic() - began < 60
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: image 17 is damaged"
    assert len(errors) == 2 and "the connection to another rank broke" in errors[1]
    assert "Traceback" not in told
    assert json.loads((two_ranks.run / "failed.json").read_text())["message"] == "image 17 is damaged"
    assert rows(two_ranks.run)[0].startswith("failed: the connection to another rank broke")
    began = time.monotonic()
    told, _ = two_ranks("nothing").communicate(timeout=60)
    assert told.count("failed for good") == 2 and "image 17 is damaged" in told


def test_a_rank_that_is_killed_takes_the_other_along_and_the_run_goes_on_later(two_ranks):
    process, began = two_ranks("dies"), time.monotonic()
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL and time.monotonic() - began < 60
    assert "the connection to another rank broke" in told and "Traceback" not in told
    assert not (two_ranks.run / "failed.json").exists()
    again = two_ranks("nothing")
    told, _ = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert "steps 3 to 20 of 20, continuing after" in told
    assert rows(two_ranks.run)[1] == "reached its goal"


def test_a_collective_that_hangs_ends_the_job_with_the_stacks_of_all_ranks(two_ranks):
    process = two_ranks("hangs", "--hang-minutes", "0.4")
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 70, told
    assert "stuck_at_step_3" in told  # of the rank at fault
    assert "all_reduce" in told or "all_gather" in told  # of the one that waits for it
    for rank in (0, 1):
        assert f"rank {rank} of 2" in told
    again = two_ranks("nothing")
    assert again.communicate(timeout=120) and again.returncode == 0
    assert rows(two_ranks.run) == ["killed", "reached its goal"]


def test_ranks_that_lost_their_launcher_save_and_leave(two_ranks, tmp_path):
    """SIGKILL of the launcher alone: its ranks would go on unseen, and block the next attempt."""
    process = two_ranks("slow", "--checkpoint-minutes", "60")
    for line in process.stdout:
        if line.startswith("pretraining "):
            break
    process.kill()
    told, _ = process.communicate(timeout=60)  # its ranks hold the pipe: they have left
    assert "stopped by the end of its launcher" in told and "of 20" not in told.split("saved, to be continued")[1]
    assert rows(two_ranks.run) == ["stopped by the end of its launcher"]
    assert not (two_ranks.run / "lock.json").exists()
