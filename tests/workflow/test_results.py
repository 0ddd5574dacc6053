"""From runs to results: several seeds, metrics that were deleted, a run whose health stops it, the report."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from workflows import QUICK, Workflow, jobs

pytestmark = pytest.mark.slow
together = pytest.mark.xdist_group("three seeds")  # one process makes them, and no other waits for them

RUN = "results/digits/seed0"


@pytest.fixture(scope="module")
def three_seeds(made_once, tmp_path_factory, warm_python):
    """A copy of a finished quick run with three seeds; tests that use it leave it finished."""

    def quick(folder: Path) -> Workflow:
        run = Workflow(folder, Path(__file__).parents[2], warm_python)
        run.digits.update(overrides=copy.deepcopy(QUICK), segment_epochs=2, seeds=[0, 1, 2])
        run.on_one_thread()
        return run

    made = made_once("three_seeds", lambda folder: quick(folder).run("results/demo.csv"))
    return quick(shutil.copytree(made, tmp_path_factory.mktemp("seeds") / "copy"))


@together
def test_seeds_give_a_row_with_a_mean_and_a_spread(three_seeds):
    table = pd.read_csv(three_seeds.path("results/demo.csv"))
    table = table[table["evaluation"] == "linear"].set_index("implementation")
    for name, part in {"This work": "", "Random initialisation": "random_init/"}.items():
        files = [three_seeds.path(f"results/digits/seed{seed}/{part}linear/metrics.csv") for seed in range(3)]
        top1 = [pd.read_csv(file)["top1"].iloc[0] for file in files]
        assert table.loc[name, "top1"] == pytest.approx(pd.Series(top1).mean())
        assert table.loc[name, "top1_std"] == pytest.approx(pd.Series(top1).std())
    assert "±" in three_seeds.read("results/demo.md") and r"\pm" in three_seeds.read("results/demo.tex")


@together
def test_one_encoders_deleted_metrics_are_all_that_the_table_computes_again(three_seeds):
    metrics, table = ("results/digits/seed1/linear/metrics.csv", "results/demo.csv")
    before = [three_seeds.read(path) for path in (metrics, table)]
    three_seeds.path(metrics).unlink()
    printed = three_seeds.run(table)
    assert [jobs(printed, rule) for rule in ("linear_eval", "linear_eval_random_init", "pretrain_segment")] == [1, 0, 0]
    assert [three_seeds.read(path) for path in (metrics, table)] == before
    assert "Nothing to be done" in three_seeds.run(table)


@together
def test_a_tables_three_files_belong_together(three_seeds):
    """`make demo` asks for the CSV and shows the Markdown."""
    before = {kind: three_seeds.read(f"results/demo.{kind}") for kind in ("csv", "md", "tex")}
    for kind in before:
        three_seeds.path(f"results/demo.{kind}").unlink()
        printed = three_seeds.run("results/demo.csv")
        assert (jobs(printed, "table"), jobs(printed, "total")) == (1, 1)
        assert {one: three_seeds.read(f"results/demo.{one}") for one in before} == before
    assert "Nothing to be done" in three_seeds.run("results/demo.csv", "results/demo.md", "results/demo.tex")


@together
def test_a_curves_two_files_belong_together(three_seeds):
    svg, png = "results/figures/digits.svg", "results/figures/digits.png"
    three_seeds.run(svg)
    three_seeds.path(png).unlink()
    assert jobs(three_seeds.run(svg), "total") == 1 and three_seeds.path(png).exists()
    assert "Nothing to be done" in three_seeds.run(svg)


@pytest.mark.long
def test_a_run_that_collapses_is_stopped_between_segments_and_goes_on_when_told_so(workflow):
    """Plain SGD at a learning rate of 300: features of a rank of five or less. The bands are the demo's."""
    run = workflow
    run.digits.update(overrides={**copy.deepcopy(QUICK), "epochs": 20}, segment_epochs=10)
    run.digits["overrides"]["optimizer"] = {"warmup_epochs": 0, "peak_lr": 300.0, "lars_weight": 0.0}
    run.digits["bands"] = str(run.repository / "workflow" / "bands" / "digits.yaml")
    printed = run.run("--retries", "2", f"{RUN}/encoder.safetensors", ok=False)
    assert printed.count("error: results/digits") == 2 and "has left its band at epoch 10" in printed
    rank, low = re.search(r"effective_rank (\S+) \(wanted (\S+) to ", printed).groups()
    assert float(rank) < float(low) / 2 and "knn_top1" in printed and "bands/digits.yaml" in printed
    assert "has collapsed at epoch 10" in printed and "projection_spread" in printed
    assert "experiments.digits.continue_after_collapse: true" in printed and "Traceback" not in printed
    boundary = run.path(f"{RUN}/pretrain/epoch_0010.pt")
    saved = boundary.stat().st_mtime_ns
    assert not run.path(f"{RUN}/pretrain/epoch_0020.pt").exists()
    run.digits["continue_after_collapse"] = True
    printed = run.run(f"{RUN}/encoder.safetensors")
    assert (jobs(printed, "pretrain_segment"), jobs(printed, "health_gate")) == (1, 2)
    assert boundary.stat().st_mtime_ns == saved
    verdict = json.loads(run.read(f"{RUN}/pretrain/health_0010.json"))
    assert (
        verdict["outside"] and verdict["collapsed"] and verdict["verdict"].startswith("goes on as told: has collapsed")
    )


def test_a_run_of_one_segment_that_collapses_is_never_exported_until_told_so(workflow):
    """The gate after the last boundary, of a recipe that has no bands: the method's floors alone."""
    run = workflow
    run.on_one_thread()
    run.digits.update(overrides={**copy.deepcopy(QUICK), "epochs": 5}, segment_epochs=5)
    run.digits["overrides"]["optimizer"] = {"warmup_epochs": 0, "peak_lr": 300.0, "lars_weight": 0.0}
    printed = run.run("results/demo.csv", ok=False)
    assert "has collapsed at epoch 5" in printed and "Traceback" not in printed
    assert jobs(run.run("-n", "results/demo.csv"), "pretrain_segment") == 0
    assert not run.path(f"{RUN}/encoder.safetensors").exists() and not run.path(f"{RUN}/linear").exists()
    run.digits["continue_after_collapse"] = True
    printed = run.run(f"{RUN}/encoder.safetensors")
    assert [jobs(printed, rule) for rule in ("pretrain_segment", "health_gate", "export_encoder")] == [0, 1, 1]


@together
def test_healthy_runs_pass_and_a_verdict_that_is_lost_trains_nothing_again(three_seeds, starter):
    script = three_seeds.repository / "workflow" / "scripts" / "record_bands.py"
    command = [starter, str(script), "--experiment", "digits", "--output", "bands.yaml"]
    subprocess.run(command, cwd=three_seeds.folder, check=True, capture_output=True)
    verdict = f"{RUN}/pretrain/health_0002.json"
    words = json.loads(three_seeds.read(verdict))["verdict"]
    assert words.startswith("above its floors; not judged by bands: ")  # the demo's bands are not for it
    three_seeds.digits["bands"] = "bands.yaml"
    three_seeds.path(verdict).unlink()
    assert jobs(three_seeds.run("results/demo.csv"), "pretrain_segment") == 0
    printed = three_seeds.run("--force", verdict)
    assert (jobs(printed, "health_gate"), jobs(printed, "total")) == (1, 1)
    assert json.loads(three_seeds.read(verdict))["verdict"] == "above its floors; within its band"
    assert "Nothing to be done" in three_seeds.run("results/demo.csv")


@together
def test_the_report_is_one_file_with_the_table_curves_costs_and_recipe(three_seeds):
    three_seeds.run("--", "report")
    page = three_seeds.read("results/report.html")
    for word in (
        "Table demo",
        "This work",
        "Random initialisation",
        "Curves of digits",
        "linear evaluation",
        "peak_lr",
    ):
        assert word in page, word
    assert "<script" not in page and not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched
    three_seeds.run("--report", "results/report/workflow.html", "--", "report")
    text = three_seeds.read("results/report/workflow.html")
    for word in ("1. Results", "2. Curves", "3. Views", "4. Cost", "5. Recipes", "digits_recipe.html", "health_gate"):
        assert word in text, word
    assert "<script src=" not in text  # nothing is fetched
    assert "5440" in three_seeds.read("results/compute.csv")
