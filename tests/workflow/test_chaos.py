"""The chaos test in short; `make chaos` is the long one."""

import random

import pytest

import chaos

# 24 epochs of a narrow network in three segments: half a minute of training, so that most of the kills meet it.
LONG = {"epochs": 24, "global_batch": 64, "model": {"width": 4}, "augment": {"size": 8}}
LONG["linear"] = {"test": {"resize": 9, "crop": 8}}


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gives_the_same_bits(tmp_path):
    seed = random.randrange(10**6)  # printed; chaos.Plan takes it again
    changes = {"overrides": LONG, "segment_epochs": 8}
    runs = chaos.compare(tmp_path, chaos.Plan(changes, kills=6, seed=seed, checkpoint_minutes=0.005, latest_s=5))
    rows = [row for run in runs for row in chaos.read_ledger(run.pretrain / "ledger.csv")]
    assert len(rows) >= 6 and any(row["how_it_ended"] == "killed" for row in rows)
    assert all(row["started"] and row["device_hours"] for row in rows)
