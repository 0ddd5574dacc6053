"""What is made of all that is there waits for what the same call makes, and what tells a verdict follows the table."""

import shutil

import pandas as pd
import pytest

from workflows import Workflow, jobs

RUN = "results/digits/seed0"
CARD = "results/published/digits_seed0/README.md"

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(finished_run, tmp_path) -> Workflow:
    """A finished run without tables."""
    run = finished_run().copied(tmp_path / "copy")
    for path in (*run.path("results").glob("demo.*"), run.path("results/evaluations.csv")):
        path.unlink(missing_ok=True)
    return run


def test_all_evaluations_in_one_table_are_those_of_the_same_call_too(finished):
    shutil.rmtree(finished.path(f"{RUN}/linear"))
    shutil.rmtree(finished.path(f"{RUN}/random_init/linear"))
    printed = finished.run("results/evaluations.csv", "results/compute.csv", "results/demo.csv")
    assert jobs(printed, "linear_eval") == 1
    tidy = pd.read_csv(finished.path("results/evaluations.csv"))
    assert set(tidy[tidy["evaluation"] == "linear"]["encoder"]) == {"trained", "untrained"}
    paid = pd.read_csv(finished.path("results/compute.csv"))
    assert "linear evaluation" in set(paid["stage"])
    assert "Nothing to be done" in finished.run("results/evaluations.csv", "results/demo.csv")


def test_a_model_card_gets_its_verdict_once_there_is_a_table(finished):
    finished.run(CARD)
    assert "none yet" in finished.read(CARD)
    finished.run("results/demo.csv")
    table = pd.read_csv(finished.path("results/demo.csv"), dtype=str).set_index("implementation")
    verdict = table.loc["This work", "verdict"]
    printed = finished.run(CARD)
    assert jobs(printed, "publish") == 1 and jobs(printed, "pretrain_segment") == 0
    assert "none yet" not in finished.read(CARD) and verdict in finished.read(CARD)
    assert "Nothing to be done" in finished.run(CARD)
