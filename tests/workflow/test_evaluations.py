"""Evaluations that config.yaml names: each a job of its own, at the end or at every boundary, in tables and one CSV."""

import copy
import re

import pandas as pd
import pytest

from workflows import QUICK, Workflow, jobs

RUN = "results/digits/seed0"
KNN = {"protocol": "knn", "overrides": {"neighbours": [5]}}

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(finished_run, tmp_path) -> Workflow:
    """A finished run that is now asked for a further evaluation, too."""
    run = finished_run().copied(tmp_path / "copy")
    run.config["evaluations"] = {"nearest": copy.deepcopy(KNN)}
    run.digits["evaluations"] = ["linear", "nearest"]
    return run


def test_a_further_evaluation_trains_nothing_and_is_made_once(finished):
    before = finished.path(f"{RUN}/linear/metrics.csv").read_bytes()
    printed = finished.run("results/demo.csv", "results/evaluations.csv")
    made = {
        rule: jobs(printed, rule) for rule in ("pretrain_segment", "linear_eval", "evaluate", "evaluate_random_init")
    }
    assert made == {"pretrain_segment": 0, "linear_eval": 0, "evaluate": 1, "evaluate_random_init": 1}
    assert finished.path(f"{RUN}/linear/metrics.csv").read_bytes() == before
    table = pd.read_csv(finished.path("results/demo.csv"))
    assert list(table["evaluation"]) == ["linear", "linear", "nearest", "nearest"]
    assert finished.read("results/demo.md").startswith("| Top-1 / Top-5 (%)     | digits, linear | digits, nearest |")
    tidy = pd.read_csv(finished.path("results/evaluations.csv")).set_index(["encoder", "evaluation"])
    assert tidy.loc[("trained", "nearest"), "protocol"].startswith("k-NN, k 5,")
    assert (tidy["experiment"] == "digits").all() and dict(tidy["epoch"].groupby("encoder").max())["untrained"] == 0
    assert "Nothing to be done" in finished.run("results/demo.csv", "results/evaluations.csv")
    finished.path(f"{RUN}/nearest/metrics.csv").unlink()
    assert "was finished before" in finished.run("results/demo.csv")
    finished.config["evaluations"]["nearest"]["overrides"] = {"neighbours": [7]}
    printed = finished.run("results/demo.csv")
    assert (jobs(printed, "evaluate"), jobs(printed, "linear_eval")) == (1, 0) and "was finished before" not in printed


@pytest.mark.long
def test_an_evaluation_at_every_boundary_is_drawn_into_the_curves(finished):
    finished.config["evaluations"]["nearest"]["at"] = "every_boundary"
    printed = finished.run("results/figures/digits.svg")
    made = {
        rule: jobs(printed, rule) for rule in ("pretrain_segment", "export_boundary", "evaluate_boundary", "evaluate")
    }
    assert made == {"pretrain_segment": 0, "export_boundary": 2, "evaluate_boundary": 2, "evaluate": 1}
    assert "nearest, test images (%)" in finished.read("results/figures/digits.svg")
    finished.run("results/evaluations.csv")
    tidy = pd.read_csv(finished.path("results/evaluations.csv"))
    assert list(tidy[tidy["evaluation"] == "nearest"]["epoch"]) == [1, 2, 3]
    assert "Nothing to be done" in finished.run("results/figures/digits.svg")
    folder = finished.path(f"{RUN}/boundaries/epoch_0002")
    assert (folder / "encoder.safetensors").read_bytes() != finished.path(f"{RUN}/encoder.safetensors").read_bytes()


def test_an_untrained_encoder_that_two_experiments_share_is_judged_once(finished):
    twin = {"recipe": "digits", "dataset": "digits", "overrides": copy.deepcopy(QUICK)}
    finished.config["experiments"]["twin"] = {**twin, "compute": finished.digits["compute"]}
    target = "results/twin/seed0/random_init/linear/metrics.csv"
    printed = finished.run(target)
    assert jobs(printed, "linear_eval_random_init") == 1 and "was finished before" in printed
    mine, other = (pd.read_csv(finished.path(path)) for path in (target, f"{RUN}/random_init/linear/metrics.csv"))
    assert mine["experiment"][0] == "twin" and other["experiment"][0] == "digits"
    assert mine.drop(columns="experiment").equals(other.drop(columns="experiment"))


@pytest.mark.parametrize(
    ("evaluations", "listed", "words"),
    [
        (
            {"near": {"protocol": "kn"}},
            ["near"],
            "evaluations.near: protocol is 'kn', which does not exist; did you mean knn",
        ),
        ({"near": KNN}, ["linear", "nere"], "experiments.digits.evaluations lists 'nere', which .* did you mean near"),
        ({"near": {**KNN, "dataset": "birds"}}, ["near"], "evaluations.near.dataset is 'birds', which is not defined"),
        ({"near": {**KNN, "overrides": {"k": 5}}}, ["near"], "evaluations.near: override 'k' names no .*key"),
        (
            {"near": {**KNN, "overrides": {"neighbours": []}}},
            ["near"],
            "evaluations.near: overrides: neighbours is empty",
        ),
        ({"pretrain": KNN}, ["linear"], "evaluations.pretrain has a name that the workflow uses itself"),
        ({"near": {**KNN, "at": "end_"}}, ["near"], "at is 'end_', wanted one of end, every_boundary"),
    ],
)
def test_a_mistake_is_told_in_one_line(workflow, evaluations, listed, words):
    workflow.config["evaluations"] = evaluations
    workflow.digits["evaluations"] = listed
    printed = workflow.run("-n", "results/demo.csv", ok=False)
    assert [line for line in printed.splitlines() if "error: " in line] and "Traceback" not in printed
    assert re.search(words, printed), printed
