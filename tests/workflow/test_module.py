"""The workflow as a module of another one, from a folder and from a git repository."""

import shutil
import subprocess
import sys

import pytest
import yaml

from workflows import Workflow

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


def other_workflow(folder, repository, snakefile) -> list[str]:
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
    return [sys.executable, "-m", "snakemake", "--cores", "2"]


def run(command, folder) -> str:
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def test_another_workflow_trains_and_evaluates_by_this_one(tmp_path, repository):
    command = other_workflow(tmp_path / "other", repository, repository / "workflow/Snakefile")
    said = run([*command, "--config", "of_the_other=2"], tmp_path / "other")
    assert "selfsup_pretrain_segment" in said
    assert (tmp_path / "other/own.txt").read_text().startswith("implementation,dataset")
    assert "Nothing to be done" in run(command, tmp_path / "other")


def test_of_a_git_repository_a_version_is_laid_out_once(tmp_path, repository):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("workflow", "Snakefile", "config.yaml"):
        source = repository / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, clone / name, ignore=ignored) if source.is_dir() else shutil.copy(source, clone / name)
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-qb", "main"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    folder = tmp_path / "other"
    command = other_workflow(folder, repository, f"git+file://{clone}/workflow/Snakefile@main")
    said = run([*command, "-n", "-p"], folder)
    (version,) = (folder / ".snakemake/selfsup").iterdir()
    assert (version / "workflow/scripts/pretrain.py").exists()
    assert f".snakemake/selfsup/{version.name}/workflow/scripts/pretrain.py" in said
    assert "selfsup_table" in run([*command, "-n"], folder)
    assert [one.name for one in (folder / ".snakemake/selfsup").iterdir()] == [version.name]
