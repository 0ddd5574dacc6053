"""Methods beside each other: a table and a figure of runs of several of them."""

import copy
import re

import pandas as pd
import pytest

from selfsup.settings.yaml_reader import read_yaml
from workflows import QUICK, jobs

TARGETS = ("results/methods.csv", "results/figures/compare_methods.svg")


def test_every_method_is_planned_by_the_command_that_the_page_on_methods_gives(workflow, repository):
    """As config.yaml ships it: a run of three segments for BYOL, of one for each other method."""
    workflow.config = read_yaml(repository / "config.yaml")
    names = workflow.config["tables"]["methods"]
    printed = workflow.run("-n", *TARGETS)
    assert jobs(printed, "pretrain_segment") == 3 + len(names) - 1
    assert jobs(printed, "linear_eval") == len(names) and jobs(printed, "comparison") == 1


@pytest.mark.slow
def test_two_methods_are_a_table_and_a_figure(finished_run, tmp_path):
    run = finished_run().copied(tmp_path / "copy")
    quick = {key: value for key, value in QUICK.items() if key != "byol"}
    run.config["experiments"]["simclr_digits"] = {
        **copy.deepcopy(run.digits),
        **{"recipe": "simclr_digits", "overrides": quick, "segment_epochs": 3, "evaluations": ["linear"]},
    }
    run.config["tables"]["methods"] = ["digits", "simclr_digits"]
    printed = run.run(*TARGETS)
    assert jobs(printed, "pretrain_segment") == 1  # BYOL's run is finished
    table = pd.read_csv(run.path(TARGETS[0])).set_index("experiment")
    trained = table[table["implementation"] == "This work"]
    assert trained["method"].to_dict() == {"digits": "byol", "simclr_digits": "simclr"}
    assert trained["top1"].notna().all() and (table["implementation"] == "Random initialisation").sum() >= 1
    assert {"digits", "simclr_digits"} <= set(re.findall(r"\w+", run.read(TARGETS[1])))
    assert run.path("results/figures/compare_methods.png").stat().st_size > 10_000
