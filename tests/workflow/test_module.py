"""The workflow as a module of another one, from a folder and from a git repository."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

from workflows import STARTER, Workflow

pytestmark = pytest.mark.slow
OTHER = """
configfile: "settings.yaml"

module selfsup:
    snakefile: "{snakefile}"
    config: config["selfsup"]

use rule * from selfsup as selfsup_*

rule mine:
    default_target: True
    input: "results/demo.csv"
    output: "own.txt"
    shell: "cp {{input}} {{output}}"
"""


@pytest.fixture
def snakemake(warm_python) -> list[str]:
    """What starts Snakemake, and with it the scripts of jobs."""
    return [*map(str, (warm_python, STARTER, warm_python))] if warm_python else [sys.executable, "-m", "snakemake"]


def other_workflow(folder, repository, snakefile, snakemake) -> list[str]:
    """Return the command of a workflow that uses ours, in a folder of its own."""
    folder.mkdir()
    own = Workflow(folder / "settings", repository).config
    own["experiments"]["digits"] |= {
        "overrides": {"epochs": 1, "optimizer": {"warmup_epochs": 0}, "linear": {"epochs": 1}},
        "segment_epochs": 1,
    }
    own["data_dir"] = str(folder / "data")
    (folder / "settings.yaml").write_text(yaml.safe_dump({"selfsup": own, "of_the_other": "1:30"}))
    (folder / "Snakefile").write_text(OTHER.format(snakefile=snakefile))
    return [*snakemake, "--cores", "2"]


# As `snakedeploy deploy-workflow https://github.com/someone/selfsup . --tag v1` writes it, beside a copy of config/.
DEPLOYED = """
configfile: "config/config.yaml"

module selfsup:
    snakefile:
        github("someone/selfsup", path="workflow/Snakefile", tag="v1")
    config:
        config

use rule * from selfsup
"""


def run(command, folder, **environment) -> str:
    variables = {**os.environ, **environment}
    process = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.mark.long
def test_another_workflow_trains_and_evaluates_by_this_one(tmp_path, repository, snakemake):
    command = other_workflow(tmp_path / "other", repository, repository / "workflow/Snakefile", snakemake)
    said = run([*command, "--config", "of_the_other=2"], tmp_path / "other")
    assert "selfsup_pretrain_segment" in said
    assert (tmp_path / "other/own.txt").read_text().startswith("implementation,dataset")
    assert "Nothing to be done" in run(command, tmp_path / "other")


def git_clone(folder, repository):
    """Make a git repository of the workflow's files, with a branch main and a tag v1, and return its folder."""
    folder.mkdir(parents=True)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(repository / name, folder)
    shutil.copytree(repository / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-qb", "main"], ["add", "-A"], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    return folder


def test_of_a_git_repository_a_version_is_laid_out_once(tmp_path, repository, snakemake):
    clone = git_clone(tmp_path / "clone", repository)
    folder = tmp_path / "other"
    command = other_workflow(folder, repository, f"git+file://{clone}/workflow/Snakefile@main", snakemake)
    said = run([*command, "-n", "-p"], folder)
    (version,) = (folder / ".snakemake/selfsup").iterdir()
    assert (version / "workflow/scripts/pretrain.py").exists()
    assert f".snakemake/selfsup/{version.name}/workflow/scripts/pretrain.py" in said
    assert "selfsup_table" in run([*command, "-n"], folder)
    assert [one.name for one in (folder / ".snakemake/selfsup").iterdir()] == [version.name]


def test_a_deployed_workflow_plans_the_demo(tmp_path, repository, snakemake):
    git_clone(tmp_path / "hub/someone/selfsup", repository)
    folder = tmp_path / "deployed"
    configuration = (repository / "config.yaml").read_text()
    for name, content in (("workflow/Snakefile", DEPLOYED), ("config/config.yaml", configuration)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    here = {  # git takes the folder for GitHub, and Snakemake keeps its clone out of the home
        **{"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/hub/.insteadOf"},
        **{"GIT_CONFIG_VALUE_0": "https://github.com/", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    }
    said = run([*snakemake, "-n", "-p", "results/demo.csv"], folder, **here)
    (version,) = (folder / ".snakemake/selfsup").iterdir()
    assert f".snakemake/selfsup/{version.name}/workflow/scripts/pretrain.py" in said
    assert "pretrain_segment                    3" in said
