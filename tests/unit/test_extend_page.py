"""The method that docs/extend.md shows, as printed: two files and an experiment's overrides."""

import importlib
import re

import pandas as pd
import pytest
import yaml

from runs import StopAfter, equal_states, on_cpu, state_of, train
from selfsup.recipe import load_recipe
from selfsup.training.pretraining import Run
from tiny import TINY


@pytest.fixture
def printed(repository, tmp_path, monkeypatch, forgotten) -> dict:
    """The files in a folder of their own; the overrides, its projector as narrow as the tiny network."""
    section = (repository / "docs/extend.md").read_text().split("## A method")[1].split("\n## ")[0]
    settings, code = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "align_uniform_settings.py").write_text(
        settings.replace("selfsup.methods.align_uniform:", "align_uniform:")
    )
    (tmp_path / "align_uniform.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("align_uniform_settings")
    overrides = yaml.safe_load(block)["overrides"]
    overrides["align_uniform"]["projector"]["layers"] = [16, 8]
    return {**{key: value for key, value in TINY.items() if key != "byol"}, **overrides}


def test_it_trains_is_stopped_and_continues_to_the_bit(printed, tiny_store, tmp_path):
    recipe, runs = load_recipe("digits", printed), {}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        runs[name] = Run(recipe, 0, 1, tiny_store, tmp_path / name, on_cpu(), 60)
    assert train(runs["whole"], 4)
    assert not train(runs["parts"], 2, stop=StopAfter(3)) and train(runs["parts"], 2, 4)
    assert equal_states(*map(state_of, runs.values()))
    history = pd.read_csv(tmp_path / "whole" / "history.csv")
    assert {"uniformity_loss", "feature_spread", "alignment"} <= set(history)
    assert history["uniformity_loss"].between(-8, 0).all() and history["loss"].between(-8, 4).all()
