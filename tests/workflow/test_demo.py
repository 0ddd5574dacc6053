"""The demo itself, as a newcomer runs it: real images, the shipped recipe, the accuracy that the README states."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from selfsup.settings.yaml_reader import read_yaml
from workflows import Workflow

# In one process. With several tests in the group nothing else is queued behind the first, which takes longest of all:
# xdist always gives a process one test more than it runs.
pytestmark = [pytest.mark.cold, pytest.mark.long, pytest.mark.xdist_group("demo")]


class Demo(NamedTuple):
    """The folder in which it ran, and what it printed."""

    workflow: Workflow
    printed: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    """The demo, run once for all tests here."""
    repository = Path(__file__).parents[2]
    workflow = Workflow(tmp_path_factory.mktemp("demo"), repository)
    workflow.config = read_yaml(repository / "config.yaml")
    return Demo(workflow, workflow.run("results/demo.csv"))


def test_the_demo_learns_to_tell_digits_apart(demo):
    """Measured over five seeds: 97.4 %, against 38 % at random initialisation; 360 images: a standard error of 0.8."""
    table = pd.read_csv(demo.workflow.path("results/demo.csv"))
    assert set(table["evaluation"]) == {"linear", "knn", "ten_percent"}
    for name in ("knn", "ten_percent"):
        ours, untrained = table[table["evaluation"] == name]["top1"]
        assert ours > untrained and ours > 85, name
    table = table[table["evaluation"] == "linear"].set_index("implementation")
    assert table.loc["This work", "top1"] >= 91
    assert table.loc["This work", "top1"] - table.loc["Random initialisation", "top1"] >= 6
    assert table.loc["This work", "n_test"] == 360


def test_it_ends_with_its_table_and_what_to_do_next(demo):
    shown = demo.printed.splitlines()
    assert len(shown) < 60, demo.printed
    assert demo.workflow.read("results/demo.md").splitlines()[2] in shown[-8:]
    assert "make report" in demo.printed
    assert "embed.py --encoder results/digits/seed0/encoder.safetensors" in shown[-1]


def test_where_nothing_is_left_to_do_it_ends_alike(demo):
    assert demo.workflow.run("results/demo.csv").splitlines()[-4:] == demo.printed.splitlines()[-4:]


def test_each_segment_continues_the_one_before(demo):
    starts = [demo.workflow.read(f"logs/pretrain/digits_seed0_epoch00{epoch}.log") for epoch in (10, 20, 30)]
    assert "from the beginning" in starts[0]
    assert all("continuing after" in start for start in starts[1:])
    ends = zip((10, 20, 30), starts, strict=True)
    assert all(f"epoch  {epoch}.00/30  step {22 * epoch}/660" in start for epoch, start in ends)
