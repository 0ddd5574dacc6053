"""What attempts took together: in an encoder's card, in compute.csv, in the table. Hours differ in every row here."""

import csv
import os
from pathlib import Path

import pandas as pd
import pytest

from selfsup.config import load_config
from selfsup.job.ledger import COLUMNS, Ledger, ledger_totals, note_refused, read_ledger
from selfsup.reports.costs import costs_paid
from selfsup.tables.rows import Row, make_table

GPU = {"device": "NVIDIA H100", "devices": 4}
# On four GPUs until it was killed, refused meanwhile, on a processor, on two GPUs to the end; another was refused last.
KILLED = {"how_it_ended": "killed", **GPU, "device_hours": 8.0, "gpu_hours": 8.0, "job_id": "7", "start_step": 0}
KILLED |= {"steps_done": 400, "steps_lost": 100, "steps_redone": 0, "images_per_s": 900.0, "stall_s": 1.5}
IDLE = {"how_it_ended": "crashed: ValueError", **GPU, "device_hours": 1.0, "gpu_hours": 1.0, "job_id": "8"}
REFUSED = {"how_it_ended": "refused: in use by another", "device_hours": 0.0, "gpu_hours": 0, "job_id": "9"}
ON_CPU = {"how_it_ended": "stopped by SIGTERM", "device": "cpu", "devices": 1, "device_hours": 0.5, "gpu_hours": 0}
ON_CPU |= {"start_step": 300, "steps_done": 10, "steps_lost": 4, "steps_redone": 10, "images_per_s": 5.0}
LAST = {"how_it_ended": "reached its goal", "device": "NVIDIA A100", "devices": 2, "device_hours": 3.0}
LAST |= {"gpu_hours": 3.0, "job_id": "10", "start_step": 306, "steps_done": 200, "steps_lost": 0, "steps_redone": 94}
LAST |= {"images_per_s": 600.0, "checkpoints": 3, "stall_s": 0.25}
ATTEMPTS = [KILLED, IDLE, REFUSED, ON_CPU, LAST, REFUSED]


def write_ledger(folder: Path, attempts: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "ledger.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({"attempt": number, **row} for number, row in enumerate(attempts, 1))
    return folder / "ledger.csv"


def paid(repository: Path, results: Path, stage: str = "pretraining") -> dict:
    config = load_config(repository / "config.yaml")
    rows = costs_paid(config, results)
    return next(row for row in rows if (row["experiment"], row["stage"]) == ("cifar10", stage))


def test_a_cards_totals_are_those_of_the_attempts_that_took_something(tmp_path):
    assert ledger_totals(write_ledger(tmp_path, ATTEMPTS)) == {
        "attempts": 4,
        "killed": 1,
        "gpu_hours": 12.0,
        "device_hours": 12.5,
        "steps_done": 610,
        "steps_lost": 104,
        "steps_redone": 104,
    }


def test_an_attempt_whose_devices_are_not_known_counts_by_its_steps(tmp_path):
    totals = ledger_totals(write_ledger(tmp_path, [{"how_it_ended": "killed", "start_step": 5, "steps_done": 3}]))
    assert (totals["attempts"], totals["killed"], totals["steps_done"], totals["gpu_hours"]) == (1, 1, 3, 0)


def test_a_job_that_found_all_done_has_wasted_nothing(repository, tmp_path):
    woken = {"how_it_ended": "reached its goal", **GPU, "device_hours": 0.2, "gpu_hours": 0.2}
    write_ledger(tmp_path / "cifar10" / "seed0" / "pretrain", [LAST, woken])
    row = paid(repository, tmp_path)
    assert (row["gpu_hours"], row["wasted_gpu_hours"], row["wasted_device_hours"]) == (3.2, 0, 0)


def test_compute_csv_counts_what_was_paid_and_no_refused_attempt(repository, tmp_path):
    write_ledger(tmp_path / "cifar10" / "seed0" / "pretrain", ATTEMPTS)
    row = paid(repository, tmp_path)
    assert (row["attempts"], row["gpu_hours"], row["device_hours"]) == (4, 12.0, 12.5)
    assert row["wasted_gpu_hours"] == 8 * 100 / 400 + 1  # of the one that took no step all
    assert row["wasted_device_hours"] == 8 * 100 / 400 + 1 + 0.5 * 4 / 10
    assert (row["devices"], row["device"], row["images_per_s"]) == (
        "2",
        "NVIDIA A100",
        "600.0",
    )  # not the refused one's
    assert (row["checkpoints"], row["stall_s"], row["paper_gpu_hours"]) == (3, 1.75, 8)


def test_a_stage_whose_attempts_were_all_refused_has_cost_nothing(repository, tmp_path):
    write_ledger(tmp_path / "cifar10" / "seed0" / "linear", [REFUSED, REFUSED])
    row = paid(repository, tmp_path, "linear evaluation")
    assert (row["attempts"], row["gpu_hours"], row["device_hours"]) == (0, 0, 0) and "paper_gpu_hours" not in row
    assert "device" not in row


def test_refused_jobs_have_waited_in_the_queue_too(repository, tmp_path, monkeypatch):
    sacct = tmp_path / "sacct"
    sacct.write_text(
        '#!/bin/sh\ncase "$*" in *--jobs=10,7,8,9*) for job in 7 8 9 10; do '
        'echo "$job|2026-01-01T00:00:00|2026-01-01T00:00:$job" | sed "s/:\\([0-9]\\)$/:0\\1/"; done;; esac\n'
    )
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_ledger(tmp_path / "cifar10" / "seed0" / "pretrain", ATTEMPTS)
    assert paid(repository, tmp_path)["queue_s"] == 7 + 8 + 9 + 10


@pytest.mark.parametrize(("device", "share"), [("NVIDIA H100", 1), ("cpu", 0)])
def test_an_attempts_hours_are_devices_times_hours_and_gpu_hours_where_they_are_gpus(tmp_path, device, share):
    ledger = Ledger(tmp_path)
    ledger.open({"stage": "pretraining", "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:30:00+00:00"})
    (row,) = read_ledger(tmp_path / "ledger.csv")
    assert (float(row["device_hours"]), float(row["gpu_hours"])) == (0, 0)  # not known yet on what
    started = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T01:30:00+00:00"}
    ledger.open({"stage": "pretraining", "device": device, "devices": 4, **started})
    row = read_ledger(tmp_path / "ledger.csv")[1]
    assert (float(row["device_hours"]), float(row["gpu_hours"])) == (6.0, 6.0 * share)
    note_refused(tmp_path, {"stage": "pretraining", **started}, "refused: in use")
    totals = ledger_totals(tmp_path / "ledger.csv")
    assert (totals["attempts"], totals["device_hours"], totals["gpu_hours"]) == (1, 6.0, 6.0 * share)


@pytest.mark.parametrize(("ended", "seconds"), [("2026-01-01T00:00:10", 10), ("2026-01-03T01:00:00", 49 * 3600)])
def test_hours_are_kept_to_the_second_and_beyond_a_day(tmp_path, ended, seconds):
    times = {"started": "2026-01-01T00:00:00+00:00", "ended": f"{ended}+00:00"}
    for _ in range(2):
        Ledger(tmp_path).open({"stage": "pretraining", "device": "NVIDIA H100", "devices": 4, **times})
    each = round(4 * seconds / 3600, 6)
    assert [float(row["device_hours"]) for row in read_ledger(tmp_path / "ledger.csv")] == [each, each]
    totals = ledger_totals(tmp_path / "ledger.csv")
    assert (totals["device_hours"], totals["gpu_hours"]) == (2 * each, 2 * each)


def test_the_tables_gpu_hours_are_the_mean_over_seeds_of_all_attempts(tmp_path):
    metrics, ledgers = [], []
    for seed, attempts in enumerate((ATTEMPTS, [LAST])):
        ledgers.append(write_ledger(tmp_path / f"seed{seed}", attempts))
        figures = {"top1": 90.0, "top5": 99.0, "best_top1": 90.0, "n_test": 360, "protocol": "linear"}
        metrics.append(tmp_path / f"{seed}.csv")
        pd.DataFrame([{**figures, "encoder_sha256": "a", "numerics_changes": 0}]).to_csv(metrics[-1], index=False)
    row = Row("digits", "digits", 30, 64, [0, 1], metrics, False, ledgers=tuple(ledgers))
    line = make_table("demo", [row]).iloc[0]
    assert (line["gpu_hours"], line["device_hours"]) == ((12 + 3) / 2, (12.5 + 3) / 2)
    write_ledger(tmp_path / "seed1", [REFUSED])
    assert pd.isna(make_table("demo", [row]).iloc[0]["gpu_hours"])  # what this encoder took is not told
