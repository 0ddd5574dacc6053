"""The chain of segments, on a run of seconds: what is done once, what is done again, what is never lost."""

import copy
import json
import os

import pandas as pd
import pytest

from workflows import jobs

pytestmark = pytest.mark.xdist_group("chain")  # one process makes the finished run, and no other waits for it


def test_every_segment_is_a_process_that_resumes_from_the_one_before(finished_run):
    run = finished_run()
    assert "steps 0 to 5 of 15, from the beginning" in run.read("logs/pretrain/digits_seed0_epoch0001.log")
    for epoch, steps in {2: "5 to 10", 3: "10 to 15"}.items():
        log = run.read(f"logs/pretrain/digits_seed0_epoch000{epoch}.log")
        assert f"steps {steps} of 15, continuing after" in log and f"epoch_000{epoch - 1}.pt" in log
    card = json.loads(run.read("results/digits/seed0/encoder.json"))
    assert [attempt["start_step"] for attempt in card["training"]["attempts"]] == [0, 5, 10]
    assert card["training"]["numerics_changes"] == 0


def test_the_run_leaves_the_files_that_the_readme_names(finished_run):
    run = finished_run()
    for name in (
        "demo.csv",
        "demo.md",
        "digits/seed0/pretrain/epoch_0003.pt",
        "digits/seed0/pretrain/epoch_0003.json",
        "digits/seed0/pretrain/segments.json",
        "digits/seed0/pretrain/history.csv",
        "digits/seed0/pretrain/ledger.csv",
        "digits/seed0/encoder.safetensors",
        "digits/seed0/encoder.json",
        "digits/seed0/linear/metrics.csv",
        "digits/seed0/linear/history.csv",
        "digits/seed0/linear/ledger.csv",
        "digits/seed0/random_init/encoder.safetensors",
        "digits/seed0/random_init/linear/metrics.csv",
    ):
        assert run.path(f"results/{name}").stat().st_size > 0, name
    assert not list(run.path("results/digits/seed0/pretrain/partial").glob("*"))
    assert not list(run.path("results").rglob("lock.json"))


def test_the_table_is_printed_and_holds_what_was_measured(finished_run):
    run = finished_run()
    assert run.read("results/demo.md").splitlines()[2] in run.printed
    table = pd.read_csv(run.path("results/demo.csv")).set_index("implementation")
    for name, part in {"This work": "", "Random initialisation": "random_init/"}.items():
        metrics = pd.read_csv(run.path(f"results/digits/seed0/{part}linear/metrics.csv")).iloc[0]
        assert table.loc[name, ["top1", "top5", "n_test"]].tolist() == metrics[["top1", "top5", "n_test"]].tolist()
        assert table.loc[name, "encoder_sha256"] == metrics["encoder_sha256"]
    assert table.loc["This work", "n_test"] == 360


def test_a_finished_run_has_nothing_to_be_done(finished_run):
    assert "Nothing to be done" in finished_run().run("results/demo.csv")


def test_a_single_evaluation_can_be_run_again(finished_run):
    run = finished_run()
    printed = run.run("--force", "results/digits/seed0/linear/metrics.csv")
    assert (jobs(printed, "linear_eval"), jobs(printed, "total")) == (1, 1)
    # The same bits came out, so the table stands.
    assert "Nothing to be done" in run.run("results/demo.csv")


def test_deleted_metrics_are_computed_again_and_nothing_else(finished_run):
    run = finished_run()
    metrics = run.path("results/digits/seed0/linear/metrics.csv")
    before = metrics.read_text()
    metrics.unlink()
    printed = run.run("results/digits/seed0/linear/metrics.csv")
    assert [jobs(printed, rule) for rule in ("linear_eval", "total")] == [1, 1]
    assert metrics.read_text() == before


def test_a_changed_evaluation_keeps_the_encoder(finished_run):
    run = finished_run()
    before = run.digits["overrides"]
    run.digits["overrides"] = {**before, "linear": {**before["linear"], "epochs": 1}}
    printed = run.run("-n", "results/demo.csv")
    run.digits["overrides"] = before
    assert jobs(printed, "pretrain_segment") == 0
    assert jobs(printed, "linear_eval") == jobs(printed, "linear_eval_random_init") == 1


def test_a_changed_segment_length_leaves_finished_epochs_alone(finished_run):
    run = finished_run()
    run.digits["segment_epochs"] = 2
    assert "Nothing to be done" in run.run("results/demo.csv")
    run.digits["segment_epochs"] = 1


def test_a_changed_recipe_is_refused_before_anything_is_lost(finished_run):
    run = finished_run()
    run.digits["overrides"]["optimizer"]["peak_lr"] = 1.0
    printed = run.run("results/demo.csv", ok=False)
    run.digits["overrides"]["optimizer"].pop("peak_lr")
    assert "optimizer.peak_lr: wanted 1.0, found 2.0" in printed and "raise the experiment's `revision`" in printed
    assert all(run.path(f"results/digits/seed0/pretrain/epoch_000{epoch}.pt").exists() for epoch in (1, 2, 3))


def test_one_segment_or_three_give_the_same_encoder(finished_run, workflow):
    workflow.digits.update(overrides=copy.deepcopy(finished_run().digits["overrides"]), segment_epochs=3)
    workflow.on_one_thread()
    workflow.run("results/digits/seed0/encoder.safetensors")
    encoders = [run.path("results/digits/seed0/encoder.safetensors").read_bytes() for run in (workflow, finished_run())]
    assert encoders[0] == encoders[1]


def test_one_process_has_all_tests_of_this_group(request):
    """pytest-xdist tells so by the test's name; where it does not, each process makes what one is to make for all."""
    if "PYTEST_XDIST_WORKER" in os.environ and request.config.getoption("loadgroup"):
        assert request.node.nodeid.endswith("@chain")
