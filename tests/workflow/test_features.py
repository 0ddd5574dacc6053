"""Features that evaluations share: made once, deleted, and asked for again by nobody whose figures are there."""

import csv

import pytest

from workflows import Workflow, jobs

pytestmark = pytest.mark.slow

RUN = "results/digits/seed0"
METRICS = [f"{RUN}/{name}/metrics.csv" for name in ("near", "regression")]


@pytest.fixture
def evaluated(finished_run) -> Workflow:
    """A finished run whose encoder is judged on its features twice, too."""
    run = finished_run()
    strengths = {"strengths": 3, "range": [1e-3, 10.0]}
    run.config["evaluations"] = {
        "near": {"protocol": "knn"},
        "regression": {"protocol": "logistic", "overrides": strengths},
    }
    run.digits["evaluations"] = ["linear", "near", "regression"]
    return run


def test_features_are_made_once_and_are_not_missed(evaluated):
    run = evaluated
    printed = run.run(*METRICS)
    assert [jobs(printed, rule) for rule in ("extract_features", "evaluate", "total")] == [1, 2, 3]
    assert list(run.path(f"{RUN}/features").glob("*/features.json")) == []
    (ledger,) = run.path(f"{RUN}/features").glob("*_job/ledger.csv")
    assert next(csv.DictReader(ledger.open()))["how_it_ended"] == "reached its goal"
    assert "Nothing to be done" in run.run(*METRICS)

    before = [run.read(path) for path in METRICS]
    assert all("mean_per_class" in text for text in before)
    run.path(METRICS[0]).unlink()  # its record has it
    printed = run.run(*METRICS)
    assert [jobs(printed, rule) for rule in ("extract_features", "evaluate", "total")] == [0, 1, 1]
    assert [run.read(path) for path in METRICS] == before

    printed = run.run("--force", METRICS[1])  # one that is named is computed again
    assert [jobs(printed, rule) for rule in ("extract_features", "evaluate", "total")] == [1, 1, 2]
    assert [run.read(path) for path in METRICS] == before
    assert "Nothing to be done" in run.run(*METRICS)


def test_features_that_nobody_looks_at_are_told_in_a_line(evaluated):
    printed = evaluated.run("-n", f"{RUN}/features/digits-00000000", ok=False)
    assert "no evaluation of experiment digits looks at features digits-00000000; there are digits-" in printed
    assert "Traceback" not in printed
