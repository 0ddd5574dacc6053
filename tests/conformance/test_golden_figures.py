"""Figures of each evaluation are those recorded for its version in golden_values.json."""

import json

import pytest
from golden_figures import TOLERANCES, close, figures_of, name_of
from golden_values import FILE

GOLDEN = json.loads(FILE.read_text())["further"]["figures"]
WAY = "python tests/conformance/golden_values.py --part further '<words of docs/changelog.md that allow it>'"


def test_each_task_has_figures_of_its_version():
    assert set(GOLDEN) == {name_of(task) for task in TOLERANCES}, f"record those of the new version: {WAY}"


@pytest.mark.parametrize("task", TOLERANCES)
def test_the_figures_of_a_task_are_those_of_its_version(task, tiny_store, tmp_path):
    found = figures_of(task, tiny_store, tmp_path)
    changed = f"the figures of {task} have changed: raise `version` in its settings, then {WAY}. Now: {found}"
    assert close(task, found, GOLDEN[name_of(task)]), changed
