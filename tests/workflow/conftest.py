import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from workflows import QUICK, Workflow

REPOSITORY = Path(__file__).parents[2]


def quick(folder: Path, python: Path | None) -> Workflow:
    run = Workflow(folder, REPOSITORY, python)
    run.digits.update(overrides=copy.deepcopy(QUICK), segment_epochs=1)
    run.on_one_thread()
    return run


@pytest.fixture
def python(request) -> Path | None:
    """What starts the scripts of jobs: a fork of a process that has torch, except where the module is marked `cold`."""
    return None if request.node.get_closest_marker("cold") else request.getfixturevalue("warm_python")


@pytest.fixture
def workflow(tmp_path, repository, python) -> Workflow:
    return Workflow(tmp_path, repository, python)


@pytest.fixture(scope="session")
def packed_digits(made_once, starter) -> Path:
    """The demo's packed dataset."""

    def pack(folder: Path) -> None:
        script = REPOSITORY / "workflow" / "scripts" / "prepare_dataset.py"
        command = [starter, script, "--source", "digits", "--output", folder]
        subprocess.run(command, check=True, capture_output=True)

    return made_once("packed_digits", pack)


@pytest.fixture(scope="module")
def finished_run(made_once, tmp_path_factory, warm_python) -> Callable[[], Workflow]:
    """A finished quick run; each call gives the module's own copy. Tests that use it leave it finished."""

    def finish(folder: Path) -> None:
        (folder / "printed").write_text(quick(folder, warm_python).run("results/demo.csv"))

    folder = tmp_path_factory.mktemp("module") / "quick"
    run = quick(shutil.copytree(made_once("quick", finish), folder), warm_python)
    run.printed = run.read("printed")
    return lambda: run
