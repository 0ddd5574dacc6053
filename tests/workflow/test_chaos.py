"""The chaos test in short; `make chaos` is the long one."""

import random

import pytest

import chaos
from selfsup.job.ledger import read_ledger
from selfsup.settings.yaml_reader import read_yaml

# 12 epochs of a narrow network in three segments: most of the events meet the training.
LONG = {"epochs": 12, "global_batch": 64, "model": {"width": 4}, "augment": {"size": 8}}
LONG["linear"] = {"test": {"resize": 9, "crop": 8}}


def on_one_thread(repository) -> dict:
    """The compute block of the demo for a network of four channels, which gains nothing by a second thread."""
    compute = read_yaml(repository / "config.yaml")["experiments"]["digits"]["compute"]
    return {name: {**compute[name], "cpus_per_device": 1} for name in ("pretrain", "evaluate")}


@pytest.mark.long
def test_a_run_that_is_disturbed_again_and_again_gives_the_same_bits(tmp_path, repository):
    seed = random.randrange(10**6)  # printed; chaos.Plan takes it again
    changes = {"overrides": LONG, "segment_epochs": 4, "compute": on_one_thread(repository)}
    plan = chaos.Plan(changes, events=len(chaos.available()) + 1, seed=seed, checkpoint_minutes=0.005, latest_s=5)
    runs = chaos.on_this_machine(tmp_path, plan)
    rows = [row for run in runs for row in read_ledger(run.pretrain / "ledger.csv")]
    assert len(rows) >= 4 and any(row["how_it_ended"] == "killed" for row in rows)
    assert all(row["started"] and row["device_hours"] for row in rows)
