"""pretrain.py on two ranks of this machine: elsewhere than planned, one of them fails, dies or stands still."""

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

from runs import equal_states
from selfsup.engine.checkpoint import load_checkpoint
from selfsup.job.ledger import read_ledger
from selfsup.job.local_ranks import reserved_port
from selfsup.recipe import canonical
from workflows import wait_until

# A rank, 1 unless UNLUCKY is another, does at step 3 what `trouble` says; LINGER_S is what a watchdog waits for the
# others' stacks, at which they look every six seconds; the other constants are how long ranks wait for each other once
# they are asked to stop.
SCRIPT = """
import os, pathlib, signal, sys, time
sys.path.insert(0, os.environ["SCRIPTS"])
trouble, unlucky = os.environ["TROUBLE"], os.environ.get("UNLUCKY", "1")
import selfsup.job.attempt, selfsup.job.local_ranks, selfsup.job.waiting, selfsup.job.watchdog
selfsup.job.watchdog.LINGER_S = 12.0
selfsup.job.attempt.BEAT_S = 0.5
selfsup.job.waiting.PATIENCE_S, selfsup.job.waiting.MORE_OF_OTHERS_S = 3.0, 1.0
selfsup.job.local_ranks.GRACE_S = 10.0 if trouble == "is suspended" else 20.0
import pretrain
from selfsup.errors import PermanentError, run_script

if "RANK" in os.environ:  # their launcher needs no torch
    from selfsup.engine import saving
    from selfsup.training import static_step
    from selfsup.training.pretraining import Pretraining

    honest = Pretraining.train_step

    def stuck_at_step_3():
        time.sleep(600)

    def train_step(self, batch):
        if self.step == 3 and os.environ.get("RANK") == unlucky:
            if trouble == "is suspended":
                pathlib.Path(os.environ["SUSPENDED"]).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            if trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "fails":
                raise PermanentError("image 17 is damaged")
            if trouble == "hangs":
                stuck_at_step_3()
        if trouble == "slow":
            time.sleep(1)
        return honest(self, batch)

    def save_slowly(path, state, card, *more, honest=saving.save_checkpoint):
        if trouble == "is suspended" and card["step"] == 3:
            time.sleep(8)
        honest(path, state, card, *more)

    Pretraining.train_step, saving.save_checkpoint = train_step, save_slowly
    static_step.BACKEND = "aot_eager"  # no compiler for the processor

run_script(pretrain.main)
"""


@pytest.fixture
def two_ranks(tmp_path, repository, tiny_store, tiny_recipe, starter, program):
    scripts, data, run = repository / "workflow" / "scripts", tiny_store.folder, tmp_path / "run"

    def start(trouble: str, *more: str, python: str = starter, **variables: str) -> subprocess.Popen:
        told = [python, program(SCRIPT), "--recipe", canonical(tiny_recipe)]
        told += ["--data", data, "--run-folder", run, "--until-epoch", "4", "--device", "cpu", "--local-ranks", "2"]
        outer = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        own = {"SCRIPTS": str(scripts), "SUSPENDED": str(tmp_path / "suspended"), "TROUBLE": trouble}
        environment = {**outer, **own, **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [*told, "--checkpoint-minutes", "1e-9", *more]
        return subprocess.Popen([*map(str, command)], env=environment, **pipes)

    start.run = run
    return start


def rows(run: Path) -> list[str]:
    return [row["how_it_ended"] for row in read_ledger(run / "ledger.csv")]


def test_a_rank_that_fails_speaks_first_and_takes_the_other_along(two_ranks):
    process, began = two_ranks("fails"), time.monotonic()
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and time.monotonic() - began < 300
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: rank 1 of 2 at \d\d:\d\d:\d\d: image 17 is damaged", errors[0])
    assert len(errors) == 2 and re.match(r"error: rank 0 of 2 at .*the connection to another rank broke", errors[1])
    assert "Traceback" not in told
    assert json.loads((two_ranks.run / "failed.json").read_text())["message"] == "image 17 is damaged"
    assert rows(two_ranks.run)[0].startswith("failed: the connection to another rank broke")
    began = time.monotonic()
    told, _ = two_ranks("nothing").communicate(timeout=300)
    assert told.count("failed for good") == 2 and "image 17 is damaged" in told


@pytest.mark.parametrize(
    "switches", [[], pytest.param(["--one-graph"], marks=pytest.mark.long)], ids=["eager", "one graph"]
)
def test_a_rank_that_is_killed_takes_the_other_along_and_the_run_goes_on_later(two_ranks, switches):
    process, began = two_ranks("dies", *switches), time.monotonic()
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGKILL and time.monotonic() - began < 600
    assert "the connection to another rank broke" in told and "Traceback" not in told
    assert not (two_ranks.run / "failed.json").exists()
    again = two_ranks("nothing", *switches)
    told, _ = again.communicate(timeout=600)
    assert again.returncode == 0, told
    assert "steps 3 to 20 of 20, continuing after" in told
    assert rows(two_ranks.run)[1] == "reached its goal"


@pytest.mark.long
def test_a_collective_that_hangs_ends_the_job_with_the_stacks_of_all_ranks(two_ranks):
    process = two_ranks("hangs", "--hang-minutes", "0.4")
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 70, told
    assert "stuck_at_step_3" in told  # of the rank at fault
    assert "all_reduce" in told or "all_gather" in told  # of the one that waits for it
    for rank in (0, 1):
        assert f"rank {rank} of 2" in told
    again = two_ranks("nothing")
    assert again.communicate(timeout=300) and again.returncode == 0
    assert rows(two_ranks.run) == ["killed", "reached its goal"]


@pytest.mark.long
def test_ranks_that_lost_their_launcher_save_and_leave(two_ranks, tmp_path):
    """SIGKILL of the launcher alone: its ranks would go on unseen, and block the next attempt.

    Started as users do: a fork is told its parent by what forked it, not by the system.
    """
    process = two_ranks("slow", "--checkpoint-minutes", "60", python=sys.executable)
    for line in process.stdout:
        if " rank 0 | pretraining " in line:
            break
    process.kill()
    told, _ = process.communicate(timeout=300)  # its ranks hold the pipe: they have left
    assert "stopped by the end of its launcher" in told and "of 20" not in told.split("saved, to be continued")[1]
    assert rows(two_ranks.run) == ["stopped by the end of its launcher"]
    assert not (two_ranks.run / "lock.json").exists()


@pytest.fixture
def left_alone(two_ranks, made_once) -> dict:
    """The last checkpoint of a run without trouble."""

    def train(folder: Path) -> None:
        process = two_ranks("nothing", "--run-folder", folder)
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told

    return load_checkpoint(made_once("left_alone", train) / "epoch_0004.pt")


def is_suspended(process_file: Path) -> bool:
    try:
        return Path(f"/proc/{process_file.read_text()}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except (OSError, IndexError):
        return False


@pytest.mark.long
@pytest.mark.parametrize(("unlucky", "number"), [("0", signal.SIGHUP), ("1", signal.SIGTERM)])
def test_a_stop_asked_for_while_ranks_wait_for_one_that_is_suspended_ends_them_soon(
    two_ranks, tmp_path, unlucky, number, left_alone
):
    """What rank 0 is still writing then is kept; the same command goes on from it, to the bits of a run left alone."""
    process = two_ranks("is suspended", UNLUCKY=unlucky)
    wait_until(lambda: is_suspended(tmp_path / "suspended"), "the suspended rank")
    process.send_signal(number)
    began = time.monotonic()
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and time.monotonic() - began < 300, told
    other = "1" if unlucky == "0" else "0"
    assert f" rank {other} | stopped by {number.name}, waiting for another rank for" in told
    assert "Traceback" not in told and not list(two_ranks.run.rglob("failed.json"))
    assert two_ranks.run.joinpath("lock.json").exists() == (unlucky == "0")  # who is suspended gives nothing up
    again = two_ranks("nothing")
    told, _ = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert ("steps 3 to 20 of 20" if unlucky == "1" else "steps 2 to 20 of 20") in told
    how = "killed" if unlucky == "0" else f"stopped by {number.name}, waiting for another rank"
    assert rows(two_ranks.run) == [how, "reached its goal"]
    assert equal_states(load_checkpoint(two_ranks.run / "epoch_0004.pt"), left_alone)


def test_a_stop_asked_for_while_a_rank_waits_for_one_that_never_started_ends_it_soon(two_ranks):
    with reserved_port() as port:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        process = two_ranks("nothing", **place, MASTER_PORT=str(port))
        wait_until(lambda: listens(port), "rank 0 waiting for the other")
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 75 and time.monotonic() - began < 300, told
        assert " rank 0 | stopped by SIGTERM, waiting for another rank" in told
        assert rows(two_ranks.run) == ["stopped by SIGTERM, waiting for another rank"]
        assert sorted(path.name for path in two_ranks.run.iterdir()) == ["ledger.csv"]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
