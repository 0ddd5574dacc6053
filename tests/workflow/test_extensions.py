"""A method, an optimiser, a backbone, a task and a tracker from outside the package, named in config.yaml."""

import contextlib
import json
import shutil
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from selfsup.errors import UserError
from selfsup.job.ledger import read_ledger
from selfsup.settings.extensions import load_extensions, loaded_extensions
from selfsup.settings.registries import METHODS
from workflows import Workflow, wait_until

EXTENSION = Path(__file__).parents[1] / "extension"
RUN = "results/outside/seed0"
HEAD = {"layers": [16, 8], "bias_before_bn": False, "bias_last": False, "last_batch_norm": "without_affine"}
OVERRIDES = {
    "method": "simsiam_outside",
    "simsiam_outside": {"projector": HEAD, "predictor": HEAD, "pull": 0.5},
    "global_batch": 64,
    "model": {"backbone": "three_layers", "width": 16},
    "optimizer": {"name": "sign", "peak_lr": 0.001, "warmup_epochs": 1, "momentum": 0.9},
}

pytestmark = pytest.mark.slow


@pytest.fixture
def outside(tmp_path, repository, warm_python) -> Workflow:
    """Two segments over two ranks, from a folder whose extension has been copied beside config.yaml."""
    workflow = Workflow(tmp_path / "outside", repository, warm_python)
    shutil.copytree(EXTENSION, workflow.path("mine"))
    block = yaml.safe_load(yaml.safe_dump(workflow.digits))
    block |= {"recipe": "mine/outside.yaml", "overrides": OVERRIDES, "segment_epochs": 2}
    block["evaluations"] = ["linear", "means"]
    block["compute"]["trackers"] = ["lines"]
    block["compute"]["pretrain"] |= {"devices_per_node": 2, "cpus_per_device": 1, "checkpoint_minutes": 0.0001}
    workflow.config |= {
        "evaluations": {"means": {"protocol": "mine/class_means.yaml", "overrides": {"normalise": True}}},
        "extensions": ["mine/simsiam_outside.py"],
        "experiments": {"outside": block},
        "tables": {"outside": ["outside"]},
    }
    return workflow


# Behind its first checkpoint the trainer stays where it is as long as there is a file `hold`.
HOLDS = """
import time

def append(self, row, honest=Lines.append):
    honest(self, row)
    while Path("hold").exists() and list((self._path.parent / "partial").glob("step_*.pt")):
        time.sleep(0.01)

Lines.append = append
"""


@pytest.mark.long
def test_one_of_each_kind_from_outside_is_trained_killed_evaluated_and_in_the_table(outside):
    """The second segment is killed after its first checkpoint; what it wrote of later steps is not written twice."""
    code, hold = outside.path("mine/simsiam_outside_code.py"), outside.path("hold")
    code.write_text(code.read_text() + HOLDS)
    outside.run(f"{RUN}/pretrain/epoch_0002.json")
    hold.touch()
    process = outside.start(f"{RUN}/pretrain/epoch_0004.json")
    partial = outside.path(f"{RUN}/pretrain/partial")
    wait_until(lambda: list(partial.glob("step_*.pt")), "a checkpoint of the second segment")
    for job in psutil.process_iter():  # the launcher and its ranks
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(word.endswith("pretrain.py") for word in job.cmdline()) and job.cwd() == str(outside.folder):
                job.kill()
    process.communicate()
    hold.unlink()
    folder = outside.path(f"{RUN}/pretrain")
    assert process.returncode != 0 and not (folder / "epoch_0004.json").exists()
    outside.run("results/outside.csv")
    rows = [json.loads(line) for line in outside.read(f"{RUN}/pretrain/rows.jsonl").splitlines()]
    history = pd.read_csv(folder / "history.csv")
    told = [row["step"] for row in rows if "loss" in row]
    assert told == list(history["step"]) and {"pull", "projection_length"} <= set(history)
    ledger = read_ledger(folder / "ledger.csv")
    assert int(ledger[-1]["end_step"]) == 4 * 22 and {row["ranks"] for row in ledger} == {"2"}
    table = pd.read_csv(outside.path("results/outside.csv"))
    ours = table[table["implementation"] == "This work"].iloc[0]
    assert (ours["method"], ours["backbone"]) == ("simsiam_outside", "three_layers") and ours["top1"] > 0
    means = table[(table["evaluation"] == "means") & (table["implementation"] == "This work")].iloc[0]
    assert means["task"] == "class_means" and 10 < means["top1"] <= 100
    assert means["protocol"] == "nearest class mean, normalised features"
    assert "Nothing to be done" in outside.run("results/outside.csv")


TAKING = """
from selfsup.settings.registries import METHODS
from selfsup.settings.typed import Settings
@METHODS.add("byol", builds="code_of_none:X")
class Mine(Settings):
    pass
"""


def test_files_beside_each_other_are_loaded_and_their_code_is_named_by_its_checksum(forgotten, tmp_path):
    for name in ("first_outside", "second_outside"):
        (tmp_path / f"{name}.py").write_text(TAKING.replace("byol", name).replace("code_of_none", "code_of_both"))
    (tmp_path / "code_of_both.py").write_text("X = 1\n")
    load_extensions([tmp_path / "first_outside.py", tmp_path / "second_outside.py"])
    assert {"first_outside", "second_outside"} <= set(METHODS)
    before = loaded_extensions()
    (tmp_path / "code_of_both.py").write_text("X = 2\n")
    after = loaded_extensions()
    assert set(before) == {"first_outside.py", "second_outside.py"} and not set(before.values()) & set(after.values())


def test_code_of_one_name_in_two_folders_is_refused(forgotten, tmp_path):
    """Python would take the first for both."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        content = TAKING.replace("byol", f"{name}_outside").replace("code_of_none", "same_code")
        (tmp_path / name / f"{name}_outside.py").write_text(content)
        (tmp_path / name / "same_code.py").write_text("X = 1\n")
    load_extensions([tmp_path / "one" / "one_outside.py"])
    with pytest.raises(UserError, match=r"needs same_code\.py, .* another same_code \(.*one/same_code\.py\)"):
        load_extensions([tmp_path / "two" / "two_outside.py"])


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("missing.py", None, r"^extensions: .*missing\.py is no file"),
        ("broken_one.py", "def", r"broken_one\.py, line 1: SyntaxError"),
        ("raises_one.py", "\n\n1 / 0\n", r"raises_one\.py, line 3: ZeroDivisionError: division by zero$"),
        ("json.py", "", r"needs json\.py, but Python finds another json \(.*\): rename it$"),
        (
            "taking_one.py",
            TAKING,
            r"_one\.py, line 4: the name 'byol' is taken by selfsup\.methods\.byol_settings",
        ),
        (
            "lost_one.py",
            TAKING.replace("byol", "lost"),
            r"has builds='code_of_none:X', but .*none\.py is no file",
        ),
    ],
)
def test_an_extension_that_cannot_be_loaded_is_one_line(forgotten, tmp_path, name, content, wanted):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=wanted) as told:
        load_extensions([tmp_path / name])
    assert "\n" not in str(told.value)
