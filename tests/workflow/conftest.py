import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from workflows import QUICK, Workflow

REPOSITORY = Path(__file__).parents[2]


def quick(folder: Path) -> Workflow:
    run = Workflow(folder, REPOSITORY)
    run.digits.update(overrides=copy.deepcopy(QUICK), segment_epochs=1)
    return run


def finish(folder: Path) -> None:
    (folder / "printed").write_text(quick(folder).run("results/demo.csv"))


@pytest.fixture
def workflow(tmp_path, repository) -> Workflow:
    return Workflow(tmp_path, repository)


@pytest.fixture(scope="module")
def finished_run(made_once, tmp_path_factory) -> Callable[[], Workflow]:
    """A finished quick run; each call gives the module's own copy. Tests that use it leave it finished."""
    folder = tmp_path_factory.mktemp("module") / "quick"
    run = quick(shutil.copytree(made_once("quick", finish), folder))
    run.printed = run.read("printed")
    return lambda: run
