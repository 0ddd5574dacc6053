"""From runs to results: several seeds, metrics that were deleted, a run whose health stops it, the report."""

import copy
import json
import subprocess
import sys

import pandas as pd
import pytest

from workflows import QUICK, Workflow, jobs

pytestmark = pytest.mark.slow

RUN = "results/digits/seed0"


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """A finished quick run with three seeds; tests that use it leave it finished."""
    from pathlib import Path

    run = Workflow(tmp_path_factory.mktemp("seeds"), Path(__file__).parents[2])
    run.digits.update(overrides=copy.deepcopy(QUICK), segment_epochs=1, seeds=[0, 1, 2])
    run.run("results/demo.csv")
    return run


def test_seeds_give_a_row_with_a_mean_and_a_spread(three_seeds):
    table = pd.read_csv(three_seeds.path("results/demo.csv")).set_index("implementation")
    for name, part in {"This work": "", "Random initialisation": "random_init/"}.items():
        files = [three_seeds.path(f"results/digits/seed{seed}/{part}linear/metrics.csv") for seed in range(3)]
        top1 = [pd.read_csv(file)["top1"].iloc[0] for file in files]
        assert table.loc[name, "top1"] == pytest.approx(pd.Series(top1).mean())
        assert table.loc[name, "top1_std"] == pytest.approx(pd.Series(top1).std())
    assert "±" in three_seeds.read("results/demo.md") and r"\pm" in three_seeds.read("results/demo.tex")


def test_one_encoders_deleted_metrics_are_all_that_the_table_computes_again(three_seeds):
    metrics, table = ("results/digits/seed1/linear/metrics.csv", "results/demo.csv")
    before = [three_seeds.read(path) for path in (metrics, table)]
    three_seeds.path(metrics).unlink()
    printed = three_seeds.run(table)
    assert [jobs(printed, rule) for rule in ("linear_eval", "linear_eval_random_init", "pretrain_segment")] == [1, 0, 0]
    assert [three_seeds.read(path) for path in (metrics, table)] == before
    assert "Nothing to be done" in three_seeds.run(table)


def record_bands(run: Workflow, path: str) -> None:
    script = run.repository / "workflow" / "scripts" / "record_bands.py"
    command = [sys.executable, str(script), "--experiment", "digits", "--output", path]
    subprocess.run(command, cwd=run.folder, check=True, capture_output=True)


def test_a_run_that_collapses_is_stopped_between_segments_and_goes_on_when_told_so(three_seeds, workflow):
    """A weight decay that shrinks every weight to nothing; bands of three healthy seeds."""
    record_bands(three_seeds, "bands.yaml")
    run = workflow
    run.digits.update(overrides=copy.deepcopy(QUICK), segment_epochs=1)
    run.digits["bands"] = str(three_seeds.path("bands.yaml"))
    run.digits["overrides"]["optimizer"]["weight_decay"] = 0.7
    run.digits["overrides"]["optimizer"]["exclude_from_lars"] = ["bias", "norm"]
    run.digits["overrides"]["optimizer"]["lars_weight"] = 0.0
    printed = run.run("--retries", "2", f"{RUN}/encoder.safetensors", ok=False)
    assert printed.count("the run has left its band at epoch 1") == 1
    assert "feature_spread" in printed and "bands.yaml" in printed and "continue_after_collapse: true" in printed
    assert "Traceback" not in printed
    assert run.path(f"{RUN}/pretrain/epoch_0001.pt").exists() and not run.path(f"{RUN}/pretrain/epoch_0002.pt").exists()
    checkpoint = run.path(f"{RUN}/pretrain/epoch_0001.pt").stat()
    run.digits["continue_after_collapse"] = True
    printed = run.run(f"{RUN}/encoder.safetensors")
    assert jobs(printed, "pretrain_segment") == 2 and jobs(printed, "health_gate") == 2
    assert run.path(f"{RUN}/pretrain/epoch_0001.pt").stat().st_mtime_ns == checkpoint.st_mtime_ns
    verdict = json.loads(run.read(f"{RUN}/pretrain/health_0001.json"))
    assert verdict["outside"] and verdict["verdict"].startswith("left its band, and goes on as told")


def test_healthy_runs_pass_and_a_verdict_that_is_lost_trains_nothing_again(three_seeds):
    record_bands(three_seeds, "bands.yaml")
    three_seeds.digits["bands"] = "bands.yaml"
    verdict = three_seeds.path(f"{RUN}/pretrain/health_0002.json")
    assert json.loads(verdict.read_text())["verdict"].startswith(
        "not judged: "
    )  # for another recipe than the quick one
    verdict.unlink()
    printed = three_seeds.run(f"{RUN}/encoder.safetensors", str(verdict.relative_to(three_seeds.folder)))
    assert (jobs(printed, "health_gate"), jobs(printed, "total")) == (1, 1)
    assert json.loads(verdict.read_text())["verdict"] == "within its band"
    assert "Nothing to be done" in three_seeds.run("results/demo.csv")
