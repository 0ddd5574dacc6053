import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from workflows import QUICK, Workflow


@pytest.fixture
def workflow(tmp_path, repository) -> Workflow:
    return Workflow(tmp_path, repository)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Callable[[], Workflow]:
    """A finished quick run; each call gives the same one. Tests that use it leave it finished."""
    repository = Path(__file__).parents[2]
    quick = Workflow(tmp_path_factory.mktemp("quick"), repository)
    quick.digits.update(overrides=copy.deepcopy(QUICK), segment_epochs=1)
    quick.printed = quick.run("results/demo.csv")
    return lambda: quick
