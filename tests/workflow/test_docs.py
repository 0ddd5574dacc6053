"""Every command that the README and the docs print is run, as a person would type it; what cannot be, says why."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from workflows import STARTER

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CLONE = ("Snakefile", "Makefile", "config.yaml", "requirements.txt", "requirements-bench.txt", "workflow", "profiles")

# Commands that are not run here, by how they begin.
CANNOT_RUN = {
    "git clone": "the repository's address is the reader's",
    "python3 -m venv": "makes an environment",
    "pip install": "installs packages",
    "grep -vE": "ends in pip install",
    "conda": "an environment of conda's",
    "touch .venv/made": "marks the environment that is made above it",
    "module": "a cluster's modules",
    "apptainer": "builds, or runs in, a container",
    "sacctmgr": "asks a cluster's Slurm",
    "benchmarks/gpu.sh": "measures for many minutes on a GPU",
}
# Scripts that need hours, or files that others have: their options are looked up in --help.
OPTIONS_ONLY = {
    "overlap.py": "compiles for minutes",
    "audit.py": "a finished run",
    "record_bands.py": "three finished seeds",
    "import_encoder.py": "published weights",
    "linear_eval.py": "an encoder of CIFAR-10",
    "embed.py": "an encoder",
    "roofline.py": "minutes",
    "scale.py": "minutes",
    "augmentation.py": "minutes",
    "launches.py": "minutes",
    "training_step.py": "minutes",
    "precision_agreement.py": "minutes",
    "prepare_dataset.py": "a dataset of an older version",
}
TOOLS = (*CANNOT_RUN, "make", "python", "snakemake", "touch", "echo")
PLACES = {"<experiment>": "digits", "<n>": "0"}


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a page: indented lines, comments in fenced blocks, and what is set as code in a line."""
    fenced = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
    yield from (match[1] for block in fenced.findall(text) for match in re.finditer(r"#.*?(snakemake .*)", block))
    prose = fenced.sub("", text).replace("\\\n", " ")
    indented = re.compile(r"^    (?:  (?=python|snakemake|make))?(\S.*)$", re.MULTILINE)  # two more inside a list
    yield from indented.findall(prose)
    for code in re.findall(r"`([^`]+)`", indented.sub("", prose)):
        words = code.split()
        if code == "make" or (len(words) > 1 and any(code.startswith(f"{tool} ") for tool in TOOLS)):
            yield " ".join(words)


def printed() -> list[str]:
    found = [re.sub(r"\s+#\s.*", "", one).strip() for page in PAGES for one in commands(page.read_text())]
    return list(dict.fromkeys(re.sub(r"\s+", " ", one) for one in found))


PRINTED = printed()


def reason_not_to_run(command: str) -> str | None:
    return next((reason for start, reason in CANNOT_RUN.items() if command.startswith(start)), None)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what a clone has, with the datasets and the file of settings that the pages speak of."""
    folder = tmp_path_factory.mktemp("clone")
    for name in CLONE:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    for name in ("imagenet", "birds", "results/digits/seed0/pretrain"):
        (folder / name).mkdir(parents=True)
    (folder / "results/digits/seed0/pretrain/history.csv").write_text("step,epoch,loss\n1,0,4.0\n3,0,3.5\n")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for page, name in {"README.md": "birds", "docs/data.md": "photos"}.items():
        (block,) = [block for block in blocks(page) if name in block.get("datasets", {})]
        for section, content in block.items():
            config[section].update(content)
    for name in ("birds", "photos", "imagenet"):
        config["datasets"][name]["path"] = "imagenet"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    site = next(block for block in blocks("docs/hpc.md") if "cluster" in block)
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    for command in PRINTED:  # the files that a page has its reader write: each test alone must find them
        if command.startswith("echo "):
            assert run(command, folder).returncode == 0
    return folder


def blocks(page: str) -> list[dict]:
    """The YAML that a page shows."""
    text = (REPOSITORY / page).read_text()
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory, warm_python) -> list[Path]:
    """Folders of PATH whose `python` and `snakemake` are the environment's, as forks where there can be."""
    folder = tmp_path_factory.mktemp("bin")
    if warm_python:
        (folder / "python").symlink_to(warm_python)
        command = shlex.join(map(str, (warm_python, STARTER, warm_python)))
        (folder / "snakemake").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / "snakemake").chmod(0o755)
    return [folder, Path(sys.executable).parent]


def run(
    command: str, clone: Path, programs: Iterable[Path] = (Path(sys.executable).parent,)
) -> subprocess.CompletedProcess:
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SNAKEMAKE_"))}
    path = os.pathsep.join([*map(str, programs), os.environ["PATH"]])
    paths = {"PATH": path, "SCRATCH": str(clone), "DSDIR": str(clone)}
    pipes = {"capture_output": True, "text": True, "check": False}
    return subprocess.run(["bash", "-c", command], cwd=clone, env={**mine, **paths}, **pipes)


@pytest.mark.parametrize("command", [one for one in PRINTED if reason_not_to_run(one) is None])
def test_a_command_of_the_pages_runs_as_printed(command, clone, programs):
    for place, value in PLACES.items():
        command = command.replace(place, value)
    words = shlex.split(command)
    script = Path(words[1]).name if words[0] == "python" else ""
    if script in OPTIONS_ONLY:
        told = run(f"python {REPOSITORY / words[1]} --help", clone, programs)
        assert not [word for word in words if word.startswith("--") and word not in told.stdout], told.stderr
        return
    if words[0] == "snakemake" and "--unlock" not in words:
        command = command.replace("snakemake", "snakemake -n", 1)
    if words[0] == "make" and len(words) > 1:
        command = command.replace("make", "make -n", 1)
    told = run(command, clone, programs)
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]


def test_every_exception_is_needed_and_every_command_known():
    assert len(PRINTED) > 40
    assert not [start for start in CANNOT_RUN if not any(one.startswith(start) for one in PRINTED)]
    assert not [name for name in OPTIONS_ONLY if not any(f"/{name}" in one for one in PRINTED)]
    assert not [one for one in PRINTED if not one.startswith(TOOLS)]
