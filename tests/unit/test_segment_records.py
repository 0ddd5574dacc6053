"""What a segment notes in the ledger, and when; and that a stop before its first step does none."""

import json
import os
from pathlib import Path

import pytest
import torch

from runs import StopAfter, attempt_at, on_cpu, train
from selfsup.job.ledger import read_ledger
from selfsup.layout import boundary_name, card_name
from selfsup.segments import finished_boundaries
from selfsup.training.pretraining import Pretraining, Run
from selfsup.training.segment import train_segment


@pytest.fixture
def run(tiny_recipe, tiny_store, tmp_path):
    def make(**changes) -> Run:
        settings = {"recipe": tiny_recipe, "seed": 0, "revision": 1, "store": tiny_store, "folder": tmp_path / "run"}
        made = Run(**{**settings, "compute": on_cpu(), "checkpoint_minutes": 60, **changes})
        made.folder.mkdir(exist_ok=True)
        return made

    return make


def last_row(run: Run) -> dict:
    return read_ledger(run.folder / "ledger.csv")[-1]


def test_steps_that_a_killed_job_has_logged_and_lost_are_redone_in_the_ledger(run):
    """Its own row ends at its last sign of life; history.csv tells how far it came."""
    assert not train(run(), 4, stop=StopAfter(2))
    ledger, history = run().folder / "ledger.csv", run().paths.history
    columns, killed = (line.split(",") for line in ledger.read_text().splitlines())
    killed[columns.index("how_it_ended")] = "running"
    ledger.write_text("\n".join(map(",".join, (columns, killed))) + "\n")
    head, *known = history.read_text().splitlines()
    lost = [",".join([str(step), *known[-1].split(",")[1:]]) for step in range(3, 6)]
    history.write_text("\n".join([head, *known, *lost]) + "\n")
    assert train(run(), 2)
    rows = read_ledger(ledger)
    figures = ("how_it_ended", "steps_done", "steps_lost", "steps_redone")
    assert [rows[0][key] for key in figures] == ["killed", "6", "3", "0"]
    assert [rows[1][key] for key in figures[1:]] == ["7", "0", "3"]


def test_the_card_that_snakemake_waits_for_is_written_last(run, monkeypatch):
    """A kill before it leaves a record that knows of the boundary, from which the card is written again."""
    seen, honest = [], os.replace

    def replace(source, target):
        if Path(target).name == card_name(1):
            seen.append((finished_boundaries(run().folder), (run().folder / boundary_name(1)).exists()))
        honest(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert train(run(), 1)
    assert seen == [([1], True)]


def test_a_job_that_is_stopped_before_its_first_step_does_none(run):
    assert not train(run(), 1, stop=StopAfter(-1))
    row = last_row(run())
    assert (row["steps_done"], row["how_it_ended"]) == ("0", "stopped by SIGTERM")
    assert not list(run().folder.rglob("*.pt"))


def test_a_stop_is_told_in_the_ledger_with_its_reason(run):
    assert not train(run(), 4, stop=StopAfter(6))
    row = last_row(run())
    assert (row["steps_done"], row["steps_lost"], row["how_it_ended"]) == ("7", "0", "stopped by SIGTERM")
    assert json.loads((run().partial / "step_000000007.json").read_text())["step"] == 7


def test_a_rolling_checkpoints_card_tells_its_step_and_epoch_and_that_the_run_has_reached_it(run):
    assert not train(run(), 4, stop=StopAfter(6))
    card = json.loads((run().partial / "step_000000007.json").read_text())
    assert (card["step"], card["epoch"]) == (7, 7 / 5)
    assert json.loads((run().folder / "segments.json").read_text())["reached"] == 7 / 5


def test_the_scale_of_fp16_is_taken_out_before_the_update(run):
    """Else a step would depend on the scale, which is only there to keep small gradients from becoming zero."""
    found = []
    for scale in (2.0**4, 2.0**7):
        training = Pretraining(run(compute=on_cpu(precision="fp16")))
        training.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(3):
            training.train_step(training.batches[step])
        found.append(torch.cat([one.parameter.detach().flatten() for one in training.treatments]))
    assert torch.allclose(*found, rtol=1e-2, atol=1e-4)


def test_a_job_that_is_woken_for_a_finished_segment_does_no_step(run):
    assert train(run(), 1)
    with attempt_at(run(), 1) as attempt:
        assert train_segment(run(), attempt, until_epoch=1)
    assert last_row(run())["start_step"] == ""
