"""Runs with --configfile: status, plan, curves and the report, which are called without it, see what was run."""

import copy
import json
import subprocess
import sys

import pytest
import yaml

from workflows import QUICK, Workflow

pytestmark = pytest.mark.slow

ONE_EPOCH = {**QUICK, "epochs": 1, "optimizer": {"warmup_epochs": 0}}


def script(workflow: Workflow, name: str, *arguments: str) -> str:
    command = [
        str(workflow.python or sys.executable),
        str(workflow.repository / "workflow/scripts" / f"{name}.py"),
        *arguments,
    ]
    done = subprocess.run(command, cwd=workflow.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(workflow: Workflow, name: str, content: dict) -> None:
    workflow.path(name).write_text(yaml.safe_dump(content))


@pytest.mark.long
def test_tools_see_what_was_run_by_files_of_settings_that_they_are_not_given(workflow):
    """`mine` stands in mine.yaml alone; other.yaml changes digits and is used for one segment of it."""
    block = {**copy.deepcopy(workflow.digits), "dataset": "signs", "overrides": ONE_EPOCH, "segment_epochs": 1}
    mine = {
        "datasets": {"signs": {"source": "digits"}},
        "tables": {"of_mine": ["mine"]},
        "experiments": {"mine": block},
    }
    write(workflow, "mine.yaml", mine)
    write(workflow, "other.yaml", {"experiments": {"digits": {"overrides": QUICK, "segment_epochs": 1}}})
    workflow.run("-n", "results/of_mine.csv", "--configfile", "mine.yaml")
    assert not workflow.path("results").exists()  # a dry run leaves nothing
    workflow.run("results/of_mine.csv", "--configfile", "mine.yaml")
    workflow.run("results/digits/seed0/pretrain/epoch_0001.json", "--configfile", "other.yaml")
    lines = {line.split()[0]: line for line in script(workflow, "status").splitlines()}
    assert "evaluated: top-1" in lines["mine"] and "1 of 1" in lines["mine"]
    assert "2 of 3" in lines["digits"] and "another recipe" not in lines["digits"]
    plan = {line.split()[0]: line.split() for line in script(workflow, "plan").splitlines() if line}
    assert plan["mine"][1:4] == ["1", "1", "1"] and plan["digits"][1:4] == ["1", "3", "1"]
    for name in ("mine", "digits"):
        script(workflow, "make_curves", "--experiment", name, "--output", f"{name}.svg")
        assert workflow.path(f"{name}.png").exists()
    script(workflow, "config_as_run", "--output", "results/config.json")
    report = ("--rerun-triggers", "mtime", "params", "--configfile", "results/config.json", "--", "report")
    workflow.run(*report)
    assert workflow.path("results/report/of_mine.html").exists() and workflow.path("results/figures/mine.svg").exists()
    assert json.loads(workflow.read("results/config.json"))["experiments"]["mine"]["overrides"] == ONE_EPOCH
