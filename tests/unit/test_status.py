"""Where runs stand, from the files that jobs leave; costs that were paid."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfsup.config import load_config
from selfsup.job.ledger import Ledger
from selfsup.job.lock import held, this_process
from selfsup.job.slurm import queue_seconds
from selfsup.layout import RunFolder
from selfsup.reports.costs import costs_paid, to_csv
from selfsup.reports.status import standings, to_text
from selfsup.segments import record_run


@pytest.fixture
def config(repository, tmp_path, monkeypatch):
    """What is shipped, in a folder where nothing has been packed: here, someone may have run the demo."""
    monkeypatch.chdir(tmp_path)
    return load_config(repository / "config.yaml")


@pytest.fixture
def run(tmp_path, config) -> Path:
    """A digits run after 11 of 30 epochs of 22 steps, its first segment finished."""
    folder = tmp_path / "digits" / "seed0" / "pretrain"
    (folder / "partial").mkdir(parents=True)
    record_run(folder, config.experiments["digits"].recipe, 1, boundary=10)
    rows = "".join(f"{step},{step // 22},{4 - step / 100},320.0\n" for step in range(1, 242, 2))
    (folder / "history.csv").write_text("step,epoch,loss,images_per_s\n" + rows + "243,11,0.")
    (folder.parent / "knn.csv").write_text("step,epoch,knn_top1\n110,5.0,90.0\n220,10.0,93.75\n")
    (folder / "epoch_0010.pt").touch()
    os.utime(folder / "epoch_0010.pt", (time.time() - 3600, time.time() - 3600))
    (folder / "partial" / "step_000000230.pt").touch()
    Ledger(folder).open({"started": "2026-01-01T00:00:00+00:00"})
    return folder


def standing(config, results):
    return next(line for line in standings(config, results) if line.experiment == "digits")


def test_a_run_in_its_second_segment_is_told_with_the_time_it_needs(config, run, tmp_path):
    found = standing(config, tmp_path)
    assert (found.segment, found.epoch, found.knn) == ("2 of 3", 11, [90.0, 93.75])
    assert found.loss == pytest.approx(4 - 2.41) and found.images_per_s == pytest.approx(320)
    assert found.left_s == pytest.approx(19 * 22 * 64 / 320)
    assert 0 <= found.age_s < 60 and found.state == "waits: killed"
    line = to_text([found]).splitlines()[1]
    assert all(word in line for word in ("digits", "2 of 3", "11.00", "93.75 ▁█", "320", "84 s"))


def test_the_job_at_work_is_named_with_its_state(config, run, tmp_path, monkeypatch):
    holder = dataclasses.asdict(this_process("pretraining"))
    (run / "lock.json").write_text(json.dumps(holder))
    assert (standing(config, tmp_path).job, standing(config, tmp_path).state) == (
        f"process {os.getpid()}",
        "pretraining",
    )
    (run / "lock.json").write_text(json.dumps({**holder, "host": "node 7", "job_id": "4711"}))
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    for state, told in {"RUNNING": "pretraining", "PENDING": "pending", "TIMEOUT": "waits: killed"}.items():
        squeue.write_text(f'#!/bin/sh\ncase "$*" in *--jobs=4711*) echo "4711 {state}";; esac\n')
        squeue.chmod(0o755)
        assert standing(config, tmp_path).state == told


def test_a_job_that_makes_features_is_told_while_it_works_and_when_it_has_failed(config, run, tmp_path):
    folder = RunFolder(run.parent).encoder.extraction("digits-0123abcd").folder
    folder.mkdir(parents=True)
    with held(folder, "features"):
        found = standing(config, tmp_path)
        assert (found.job, found.state) == (f"process {os.getpid()}", "extracting features")
    assert standing(config, tmp_path).state != "extracting features"
    (folder / "failed.json").write_text("{}")
    assert standing(config, tmp_path).state == f"failed: see {folder / 'failed.json'}"


def test_a_job_in_the_queue_is_told_though_it_has_left_nothing_yet(config, tmp_path, monkeypatch):
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")

    def told(comment: str, folder: Path = tmp_path) -> tuple[str, str]:
        squeue.write_text(f'#!/bin/sh\ncase "$*" in *--me*) echo "4711|{comment}|{folder}";; esac\n')
        squeue.chmod(0o755)
        found = standing(config, tmp_path / "results")
        return found.job, found.state

    assert told("rule_pretrain_segment_wildcards_digits_0_10") == ("4711", "pending")
    assert told("rule_linear_eval_wildcards_digits_0") == ("4711", "pending")
    assert told("rule_extract_features_wildcards_digits_0_digits-0123abcd") == ("4711", "pending")
    for other in ("digits_1_10", "digits_b_0_10", "digits_0_1_10", "digits_01_10", "cifar10_0_10"):
        assert told(f"rule_pretrain_segment_wildcards_{other}") == ("", "not begun")
    assert told("rule_pretrain_segment_wildcards_digits_0_10", Path("/elsewhere")) == ("", "not begun")


def test_a_run_whose_packed_dataset_is_gone_tells_its_epoch(config, run, tmp_path):
    config.datasets["digits"] = {"source": "folder"}
    found = standing(config, tmp_path)
    assert (found.epoch, found.left_s) == (10, None) and found.loss == pytest.approx(4 - 2.41)


def test_what_keeps_a_run_from_going_on_is_told(config, run, tmp_path):
    (run / "STOP").touch()
    assert standing(config, tmp_path).state == f"stopped: {run / 'STOP'} is there"
    (run / "failed.json").write_text("{}")
    assert standing(config, tmp_path).state == f"failed: see {run / 'failed.json'}"


def test_a_run_below_its_floors_is_told_as_collapsed(config, run, tmp_path):
    card = {"epoch": 10.0, "health": {"feature_spread": 0.001}, "floors": {"feature_spread": 0.02}}
    (run / "epoch_0010.json").write_text(json.dumps(card))
    assert standing(config, tmp_path).state.startswith("collapsed: feature_spread 0.001")


def test_a_run_that_is_over_tells_its_accuracy_and_one_not_begun_says_so(config, run, tmp_path):
    recipe = config.experiments["digits"].recipe
    for boundary in (20, 30):
        record_run(run, recipe, 1, boundary=boundary)
    assert standing(config, tmp_path).state == "trained, not evaluated"
    (run.parent / "linear").mkdir()
    (run.parent / "linear" / "metrics.csv").write_text("top1,top5\n97.5,100\n")
    assert standing(config, tmp_path).state == "evaluated: top-1 97.50 %" and standing(config, tmp_path).left_s == 0
    assert standing(config, tmp_path / "nowhere").state == "not begun"


def test_a_run_of_another_recipe_is_no_reason_to_tell_nothing(config, run, tmp_path):
    digits = config.experiments["digits"]
    config.experiments["digits"] = dataclasses.replace(digits, recipe=digits.recipe.changed(epochs=60))
    assert standing(config, tmp_path).state == "of another recipe or revision"


def test_a_long_history_is_read_from_its_end(config, run, tmp_path):
    rows = "".join(f"{step},{step // 22},{step / 7},320.0\n" for step in range(20_000))
    (run / "history.csv").write_text("step,epoch,loss,images_per_s\n" + rows)
    assert standing(config, tmp_path).loss == pytest.approx(19_999 / 7)


def test_status_and_health_gate_load_no_torch(repository):
    """They run on a login node, the one for people who wait, the other for every segment."""
    code = "import sys, selfsup.reports.status, selfsup.bands, selfsup.reports.costs; sys.exit('torch' in sys.modules)"
    folder = repository / "workflow" / "scripts"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_what_was_lost_and_done_again_is_wasted_and_a_processor_has_no_gpu_hours(config, tmp_path):
    folder = tmp_path / "cifar10" / "seed0" / "pretrain"
    folder.mkdir(parents=True)
    for how, begin, end, saved in (("killed", 0, 400, 300), ("reached its goal", 300, 500, 500)):
        ledger = Ledger(folder)
        ledger.open({"started": "2026-01-01T00:00:00+00:00", "devices": 2, "device": "NVIDIA H100"})
        ledger.update(how, start_step=begin, end_step=end, saved_step=saved, images_per_s=100.0, stall_s=1.5)
    rows = (folder / "ledger.csv").read_text().splitlines()
    hours = [2 * 4, 2 * 2]
    names = rows[0].split(",")
    cells = [dict(zip(names, row.split(","), strict=True)) for row in rows[1:]]
    for one, took in zip(cells, hours, strict=True):
        one.update(device_hours=str(took), gpu_hours=str(took))
    (folder / "ledger.csv").write_text("\n".join([rows[0], *(",".join(one.values()) for one in cells)]) + "\n")
    paid = next(row for row in costs_paid(config, tmp_path) if row["experiment"] == "cifar10")
    assert (paid["experiment"], paid["attempts"], paid["gpu_hours"]) == ("cifar10", 2, 12)
    assert paid["wasted_gpu_hours"] == 8 * 100 / 400 and paid["stall_s"] == 3.0 and paid["paper_gpu_hours"] == 8
    not_begun = next(row for row in costs_paid(config, tmp_path) if row["experiment"] == "imagenet")
    assert (not_begun["attempts"], not_begun["gpu_hours"], not_begun["paper_gpu_hours"]) == (0, 0, 5440)
    text = to_csv([paid])
    assert text.startswith("experiment,seed,stage,attempts") and ",100.0," in text


def test_the_jobs_that_make_features_and_those_of_boundaries_are_paid_for_too(config, tmp_path):
    run, folders = RunFolder(tmp_path / "digits" / "seed0"), {}
    for before, encoder in {"": run.encoder, "untrained, ": run.random_init, "epoch 10, ": run.encoder_at(10)}.items():
        folders[f"{before}features digits-0123abcd"] = encoder.extraction("digits-0123abcd").folder
        folders[f"{before}knn evaluation"] = encoder.evaluation("knn").folder
    for folder in folders.values():
        folder.mkdir(parents=True)
        Ledger(folder).open({"started": "2026-01-01T00:00:00+00:00", "devices": 1, "device": "a processor"})
    paid = [row for row in costs_paid(config, tmp_path) if row["experiment"] == "digits"]
    assert {row["stage"] for row in paid} == {"pretraining", *folders}
    assert {row["attempts"] for row in paid if row["stage"] != "pretraining"} == {1}


def test_time_in_the_queue_is_taken_from_sacct_where_there_is_one(tmp_path, monkeypatch):
    sacct = tmp_path / "sacct"
    sacct.write_text(
        "#!/bin/sh\necho '7|2026-01-01T00:00:00|2026-01-01T00:10:30'\necho '8|2026-01-01T00:00:00|Unknown'\n"
        "echo '9|Unknown|2026-01-01T00:10:30'\n"
    )
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert queue_seconds(["7", "8", "9"]) == {"7": 630}
    sacct.write_text("#!/bin/sh\nexit 1\n")
    assert queue_seconds(["7"]) == {}
