"""An audit as a user starts it: as a rule and by hand."""

import csv
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def by_hand(run, *arguments: str) -> subprocess.CompletedProcess:
    command = [
        str(run.python or sys.executable),
        run.repository / "workflow/scripts/audit.py",
        "--run",
        "results/digits/seed0",
        *arguments,
    ]
    return subprocess.run(command, cwd=run.folder, env=run.environment(), capture_output=True, text=True, check=False)


def test_the_rule_audits_a_finished_segment_and_trains_nothing_else(finished_run):
    run = finished_run()
    before = {path: path.stat().st_mtime_ns for path in run.path("results/digits").rglob("*")}
    printed = run.run("results/audit/digits/seed0/epoch_0002/audit.json")
    found = json.loads(run.read("results/audit/digits/seed0/epoch_0002/audit.json"))
    assert found["verdict"] == "the same bits" and found["segment"]["epochs"] == [1, 2]
    assert "segment 2 of results/digits/seed0, epochs 1 to 2: the same bits" in printed
    assert {path: path.stat().st_mtime_ns for path in run.path("results/digits").rglob("*")} == before
    assert "Nothing to be done" in run.run("results/demo.csv")


def test_an_audit_that_was_stopped_is_started_again_as_a_pretraining_is(finished_run):
    run, folder = finished_run(), "results/audit/digits/seed0/epoch_0002"
    run.path(folder).mkdir(parents=True, exist_ok=True)
    run.path(f"{folder}/audit.json").unlink(missing_ok=True)
    run.path(f"{folder}/STOP").touch()
    run.run("--retries", "1", f"{folder}/audit.json", ok=False)
    endings = [row["how_it_ended"] for row in csv.DictReader(run.read(f"{folder}/ledger.csv").splitlines())]
    assert [ending.startswith("refused: ") for ending in endings[-2:]] == [True] * 2
    run.path(f"{folder}/STOP").unlink()


def test_by_hand_an_output_in_the_run_is_refused_and_deletes_nothing(finished_run):
    run = finished_run()
    before = {path: path.stat().st_mtime_ns for path in run.path("results/digits").rglob("*")}
    told = by_hand(run, "--segment", "1", "--output", "results/digits/seed0/pretrain")
    assert (told.returncode, told.stderr.count("\n")) == (1, 1) and "is in the folder of the audited run" in told.stderr
    assert {path: path.stat().st_mtime_ns for path in run.path("results/digits").rglob("*")} == before


def test_by_hand_another_number_of_ranks_is_told_and_exit_status_1_says_that_bits_differ(finished_run):
    run = finished_run()
    told = by_hand(run, "--segment", "1", "--local-ranks", "2", "--output", "results/two")
    assert told.returncode == 1 and "Traceback" not in told.stderr + told.stdout
    assert "under other conditions: ranks: run 1, audit 2; from step " in told.stderr
    assert json.loads(run.read("results/two/differs.json"))["numerics"]["audit"]["ranks"] == 2


def test_by_hand_a_segment_that_is_not_there_is_one_line(finished_run):
    told = by_hand(finished_run(), "--segment", "9")
    assert (told.returncode, told.stderr.count("\n")) == (1, 1) and "can be audited: 1 (to epoch 1)" in told.stderr
