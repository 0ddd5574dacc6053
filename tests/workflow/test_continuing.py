"""What Snakemake does with a run that is not as planned: other segments, another revision, another job, a stop."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess

import pandas as pd
import pytest

from selfsup.job.ledger import read_ledger
from selfsup.recipe import canonical, load_recipe
from workflows import QUICK, Workflow, jobs, wait_until

RUN = "results/digits/seed0"

pytestmark = pytest.mark.slow


def quick(workflow: Workflow, **overrides) -> Workflow:
    workflow.digits.update(overrides={**copy.deepcopy(QUICK), **overrides}, segment_epochs=1)
    workflow.on_one_thread()
    return workflow


def planned(printed: str) -> list[int]:
    return sorted(map(int, re.findall(r"Pretrain digits, seed 0, to epoch 0*(\d+)", printed)))


def endings(workflow: Workflow, stage: str = "pretrain") -> list[str]:
    return [row["how_it_ended"] for row in read_ledger(workflow.path(f"{RUN}/{stage}/ledger.csv"))]


def test_another_segment_length_cuts_only_the_epochs_that_remain(workflow, finished_run):
    run = quick(workflow)
    run.run(f"{RUN}/pretrain/epoch_0001.json")
    run.digits["segment_epochs"] = 4
    assert planned(run.run("-n", f"{RUN}/encoder.safetensors")) == [3]
    run.digits["segment_epochs"] = 2
    printed = run.run(f"{RUN}/encoder.safetensors")
    assert planned(printed) == [3] and "steps 5 to 15 of 15" in printed
    run.digits["segment_epochs"] = 3
    assert planned(run.run(f"{RUN}/encoder.safetensors")) == []
    encoders = [one.path(f"{RUN}/encoder.safetensors").read_bytes() for one in (run, finished_run())]
    assert encoders[0] == encoders[1]


def test_a_raised_revision_sets_the_old_run_aside_and_trains_anew(finished_run, tmp_path):
    run = finished_run().copied(tmp_path / "copy")
    old = {path.name: path.read_bytes() for path in run.path(RUN).glob("encoder.*")}
    metrics = run.read(f"{RUN}/linear/metrics.csv")
    untrained = run.path(f"{RUN}/random_init/linear/metrics.csv").stat().st_mtime_ns
    run.digits["revision"] = 2
    run.digits["overrides"]["optimizer"] = {**run.digits["overrides"]["optimizer"], "peak_lr": 1.0}
    assert planned(run.run("-n", "results/demo.csv")) == [1, 2, 3]
    assert run.path(f"{RUN}/pretrain/epoch_0003.pt").exists()  # a dry run moves nothing
    printed = run.run("results/demo.csv")
    assert planned(printed) == [1, 2, 3] and jobs(printed, "linear_eval_random_init") == 0
    aside = run.path(f"{RUN}_revision1")
    assert {path.name: path.read_bytes() for path in aside.glob("encoder.*")} == old
    assert (aside / "linear/metrics.csv").read_text() == metrics
    assert json.loads((aside / "pretrain/segments.json").read_text())["boundaries"] == [1, 2, 3]
    assert run.path(f"{RUN}/encoder.safetensors").read_bytes() != old["encoder.safetensors"]
    assert json.loads(run.read(f"{RUN}/encoder.json"))["training"]["revision"] == 2
    assert run.path(f"{RUN}/random_init/linear/metrics.csv").stat().st_mtime_ns == untrained
    assert "Nothing to be done" in run.run("results/demo.csv")
    run.path(f"{RUN}/revision_2.json").unlink()
    assert planned(run.run("results/demo.csv")) == []  # the mark alone is made again
    run.digits["segment_epochs"] = 2
    assert planned(run.run("-n", "results/demo.csv")) == []


def test_a_loss_that_is_not_finite_ends_the_retries_at_once(workflow):
    run = quick(workflow, optimizer={"warmup_epochs": 1, "peak_lr": 1e30})
    printed = run.run("--retries", "2", f"{RUN}/encoder.safetensors", ok=False)
    assert printed.count("error: loss or weights are not finite at step") == 1
    # By two attempts, and by Snakemake's last words.
    assert printed.count("error: pretraining failed for good") == 3 and "delete results/digits" in printed
    assert printed.splitlines()[-1].startswith("error: pretraining failed for good")
    assert endings(run)[0].startswith("failed: loss or weights are not finite at step")
    assert [ending.startswith("refused: pretraining failed for good") for ending in endings(run)[1:]] == [True] * 2
    run.digits["overrides"]["optimizer"]["peak_lr"] = 2.0
    run.digits["revision"] = 2
    assert planned(run.run("-n", f"{RUN}/encoder.safetensors")) == [1, 2, 3]


def test_a_stop_file_ends_the_run_for_good_and_its_deletion_continues_it(workflow):
    """It would take minutes to its end: neither the file nor the deletion can come too late."""
    run = quick(workflow, epochs=2000, global_batch=64)
    run.digits["segment_epochs"] = 2000
    process = run.start("--retries", "3", f"{RUN}/encoder.safetensors")
    history = run.path(f"{RUN}/pretrain/history.csv")
    wait_until(lambda: history.exists() and len(history.read_text().splitlines()) > 5, "some steps")
    run.path(f"{RUN}/STOP").touch()
    printed, _ = process.communicate(timeout=6000)
    assert process.returncode != 0
    step = int(re.search(r"stopped by the file .*STOP, for good after step (\d+): saved", printed)[1])
    assert printed.count("STOP is there, so the run stays stopped") == 4  # by three retries, and by the last words
    assert endings(run)[0] == "stopped by the file results/digits/seed0/STOP, for good"
    assert [ending.split(":")[0] for ending in endings(run)[1:]] == ["refused"] * 3
    run.path(f"{RUN}/STOP").unlink()
    process = run.start(f"{RUN}/encoder.safetensors")
    goes_on = f"steps {step} to 44000 of 44000, continuing"
    assert any(goes_on in line for line in process.stdout)
    run.path(f"{RUN}/STOP").touch()
    process.communicate(timeout=6000)
    assert endings(run)[-1] == endings(run)[0]


@pytest.fixture
def by_hand(workflow, repository, packed_digits, starter):
    """Start the first segment of the quick run without Snakemake, as an earlier job that is still running."""
    scripts = repository / "workflow" / "scripts"

    def start(overrides: dict, until: int) -> subprocess.Popen:
        recipe = canonical(load_recipe("digits", overrides))
        command = [starter, scripts / "pretrain.py", "--recipe", recipe, "--data", packed_digits, "--cpus", "1"]
        command += ["--run-folder", f"{RUN}/pretrain", "--until-epoch", str(until), "--device", "cpu"]
        return subprocess.Popen([*map(str, command)], cwd=workflow.folder, stdout=subprocess.PIPE, text=True)

    return start


def owner(run: Workflow) -> int:
    """The process that trains, once there is one."""
    lock = run.path(f"{RUN}/pretrain/lock.json")
    wait_until(lock.exists, "the first job")
    return json.loads(lock.read_text())["pid"]


@pytest.mark.long
def test_a_second_job_for_a_segment_refuses_and_costs_the_first_one_nothing(workflow, by_hand):
    """The first job takes the lock after Snakemake has planned: all that is left is to refuse, and to be retried."""
    run = quick(workflow, epochs=8)
    run.digits["segment_epochs"] = 4
    run.signalled = True
    process = run.start("--retries", "500", f"{RUN}/pretrain/epoch_0008.json")
    wait_until(run.path("logs/prepare_dataset").exists, "a plan that is made, and busy with another rule")
    process.send_signal(signal.SIGSTOP)  # whatever the load, the first job takes the lock before it goes on
    first = by_hand(run.digits["overrides"], until=4)
    os.kill(trainer := owner(run), signal.SIGSTOP)  # and keeps it until another was refused
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: any("is in use by" in ending for ending in endings(run)), "a refusal")
    os.kill(trainer, signal.SIGCONT)
    printed, _ = process.communicate(timeout=6000)
    first.communicate(timeout=600)
    assert first.returncode == 0 and process.returncode == 0, printed
    assert re.search(rf"error: .*pretrain is in use by process {trainer} on ", printed)
    ends = endings(run)
    refused = sum(ending.startswith("refused: ") and "is in use by" in ending for ending in ends)
    assert refused >= 1 and ends.count("reached its goal") == 3 and len(ends) == refused + 3
    # The first job did all steps of the segment; Snakemake's own attempt found it finished.
    rows = [row for row in read_ledger(run.path(f"{RUN}/pretrain/ledger.csv")) if row["start_step"]]
    assert [(row["goal"], row["steps_done"]) for row in rows] == [
        ("epoch 4", "20"),
        ("epoch 8", "20"),
    ]


def test_snakemake_does_not_start_beside_a_job_that_is_still_at_work(workflow, by_hand):
    run = quick(workflow)
    first = by_hand({**run.digits["overrides"], "epochs": 100_000}, until=100_000)
    os.kill(trainer := owner(run), signal.SIGSTOP)  # the processor is Snakemake's; the lock goes by the process
    try:
        printed = run.run(f"{RUN}/encoder.safetensors", ok=False)
    finally:
        first.kill()
        first.communicate()
    assert f"pretrain is in use by process {trainer} on " in printed and "Traceback" not in printed
    assert jobs(printed, "pretrain_segment") == 0
    shutil.rmtree(run.path(RUN))
    run.run(f"{RUN}/pretrain/epoch_0001.json")


def test_a_change_of_numerics_is_counted_in_the_table(workflow):
    run = quick(workflow, epochs=2)
    run.run(f"{RUN}/pretrain/epoch_0001.json")
    run.digits["compute"]["pretrain"]["precision"] = "bf16"
    printed = run.run("results/demo.csv")
    assert "the run continues under other numerics" in printed and "precision: wanted fp32, found bf16" not in printed
    table = pd.read_csv(run.path("results/demo.csv")).set_index("implementation")
    assert table["numerics_changes"].to_dict() == {"This work": 1, "Random initialisation": 0}


@pytest.mark.long
def test_an_evaluation_that_is_stopped_is_continued_by_a_retry(finished_run, tmp_path):
    """The signal ahead of a time limit: saved, status 75, submitted again, and the figures of an undisturbed one."""
    run = finished_run().copied(tmp_path / "copy")
    run.digits["overrides"]["linear"] = {**run.digits["overrides"]["linear"], "epochs": 30}  # some seconds
    run.digits["compute"]["evaluate"]["checkpoint_minutes"] = 0.005
    done = len(endings(run, "linear"))
    process = run.start("--retries", "1", f"{RUN}/linear/metrics.csv")
    wait_until(lambda: any(run.path(f"{RUN}/linear/partial").glob("*.pt")), "its first saved state")
    lock = json.loads(run.read(f"{RUN}/linear/lock.json"))
    subprocess.run(["kill", "-USR1", str(lock["pid"])], check=True)
    printed, _ = process.communicate(timeout=6000)
    assert process.returncode == 0, printed
    step = re.search(r"stopped by SIGUSR1 after step (\d+)", printed)[1]
    assert f"continuing after results/digits/seed0/linear/partial/step_{int(step):09d}.pt" in printed
    assert endings(run, "linear")[done:] == ["stopped by SIGUSR1", "reached its goal"]
    stopped = [run.read(f"{RUN}/linear/{name}.csv") for name in ("metrics", "history")]
    run.run("--force", f"{RUN}/linear/metrics.csv")
    assert run.read(f"{RUN}/linear/metrics.csv") == stopped[0]
    assert len(run.read(f"{RUN}/linear/history.csv").splitlines()) == len(stopped[1].splitlines()) == 31
