"""The chaos test in short; `make chaos` is the long one."""

import random

import pytest

import chaos
from selfsup.job.ledger import read_ledger

# 12 epochs of a narrow network in three segments: most of the events meet the training.
LONG = {"epochs": 12, "global_batch": 64, "model": {"width": 4}, "augment": {"size": 8}}
LONG["linear"] = {"test": {"resize": 9, "crop": 8}}


@pytest.mark.slow
def test_a_run_that_is_disturbed_again_and_again_gives_the_same_bits(tmp_path):
    seed = random.randrange(10**6)  # printed; chaos.Plan takes it again
    changes = {"overrides": LONG, "segment_epochs": 4}
    plan = chaos.Plan(changes, events=len(chaos.available()) + 1, seed=seed, checkpoint_minutes=0.005, latest_s=5)
    runs = chaos.on_this_machine(tmp_path, plan)
    rows = [row for run in runs for row in read_ledger(run.pretrain / "ledger.csv")]
    assert len(rows) >= 4 and any(row["how_it_ended"] == "killed" for row in rows)
    assert all(row["started"] and row["device_hours"] for row in rows)
