"""The report's first page: all of the result is on it, and nothing is fetched for it."""

import re
import sys

import pandas as pd
import pytest

import landing_page
from selfsup.config import check_config
from selfsup.reports.landing import cost_table
from selfsup.reports.landing import landing_page as made
from selfsup.settings.yaml_reader import read_yaml

TABLE = """| Top-1 / Top-5 (%) | digits |
| --- | --- |
| This work | 96.11 / 99.72 |
| Random initialisation | 40.28 / 88.61 [a] |

| Implementation | Verdict |
| --- | --- |
| This work | no <reference> |

- Last epoch.
"""
COSTS = """experiment,seed,stage,attempts,devices,device,gpu_hours,device_hours,wasted_gpu_hours,wasted_device_hours,\
images_per_s,checkpoints,stall_s,queue_s,paper_gpu_hours
cifar10,0,pretraining,0,,,0.0,0.0,,,,,,,8.0
digits,0,pretraining,3,1,cpu,0.0,0.0228,0.0,-0.0,424.9,3,0.1,,
"""


@pytest.fixture
def results(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "demo.md").write_text(TABLE)
    (tmp_path / "compute.csv").write_text(COSTS)
    (tmp_path / "figures/digits.svg").write_text("<svg/>")
    (tmp_path / "figures/views_digits.png").write_bytes(b"\x89PNG")
    return tmp_path


@pytest.fixture
def page(results, repository):
    return made(check_config(read_yaml(repository / "config.yaml")), results, ["demo"], ["digits"])


def rows(page: str, under: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    table = page.partition(f"<h2>{under}")[2].partition("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]


def test_the_page_opens_on_the_table(page):
    assert page.index("96.11") < page.index("<img") < page.index("What was run") < page.index("What it took")
    assert rows(page, "Table demo") == [
        ["Top-1 / Top-5 (%)", "digits"],
        ["This work", "96.11 / 99.72"],
        ["Random initialisation", "40.28 / 88.61 [a]"],
    ]
    assert '<td class="number">96.11 / 99.72</td>' in page and "no &lt;reference&gt;" in page


def test_pictures_are_in_the_page_and_say_what_they_are(page):
    assert re.findall(r'<img[^>]* alt="([^"]*)"', page) == [
        "curves of the pretraining of digits",
        "images of digits and their views",
    ]
    assert page.count("<img") == page.count('src="data:image/') == page.count("<figcaption>") == 2
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page and "url(" not in page


def test_costs_are_of_what_was_begun_in_the_columns_that_say_something(page):
    heads, *lines = rows(page, "What it took")
    assert lines == [["digits", "0", "pretraining", "3", "1", "cpu", "0", "0.0228", "0", "424.9"]]
    assert heads[-1] == "images/s" and "paper" not in " ".join(heads)


def test_it_tells_what_was_run_and_each_value_of_the_recipe_with_its_source(page):
    heads, line = rows(page, "What was run")
    told = dict(zip(heads, line, strict=True))
    assert (told["method"], told["backbone"], told["epochs"], told["batch"]) == ("byol", "resnet18", "30", "64")
    recipe = {row[0]: row for row in rows(page, "How it was trained")}
    assert recipe["optimizer.peak_lr"][1] == "2.0" and len(recipe) > 60


def test_a_name_that_config_yaml_lacks_is_one_line(results, repository, monkeypatch, tmp_path):
    command = ["landing_page.py", "--experiment", "digit", "--config", str(repository / "config.yaml")]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(results), "--output", str(tmp_path / "page.html")])
    with pytest.raises(landing_page.UserError, match=r"--experiment is 'digit', which config.yaml lacks.*digits"):
        landing_page.main()


def test_of_weights_from_a_library_neither_method_nor_training_is_told(results, repository):
    raw = read_yaml(repository / "config.yaml")
    published = {"publisher": "torchvision", "path": "/weights.pth", "backbone": "resnet50"}
    raw["experiments"]["given"] = {"recipe": "imagenet", "dataset": "imagenet", "published": published}
    (results / "figures/given.svg").write_text("<svg/>")
    (results / "figures/views_given.png").write_bytes(b"\x89PNG")
    head, row = rows(made(check_config(raw), results, ["demo"], ["given"]), "What was run")
    told = dict(zip(head, row, strict=True))
    assert told["backbone"] == "resnet50" and not {"method", "epochs", "batch"} & set(told)


def test_where_nothing_was_begun_the_costs_are_an_empty_table(results):
    costs = pd.read_csv(results / "compute.csv", dtype=str).fillna("")
    assert cost_table(costs[costs["attempts"] == "0"]).count("<tr>") <= 1
