"""The workflow run as a user runs it, in a folder of its own with a configuration of its own."""

import copy
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from selfsup.settings.yaml_reader import read_yaml

STARTER = Path(__file__).parent / "warm" / "workflow.py"

# A run of seconds: 3 epochs of a narrow network, in three segments.
QUICK = {
    "epochs": 3,
    "global_batch": 256,
    "model": {"width": 4},
    "optimizer": {"warmup_epochs": 1},
    "augment": {"size": 8},
    "linear": {"epochs": 2, "test": {"resize": 9, "crop": 8}},
}


def shipped(repository: Path) -> dict:
    """What config.yaml ships, without the other methods' experiments and the demo's further evaluations."""
    config = read_yaml(repository / "config.yaml")
    others = [name for name in config["tables"].pop("methods") if name != "digits"]
    del config["experiments"]["digits"]["evaluations"]
    return {**config, "experiments": {name: one for name, one in config["experiments"].items() if name not in others}}


def jobs(printed: str, rule: str) -> int:
    """How many jobs of a rule a plan counts, or a call that works; "total": of all rules."""
    told = re.search(r"^[\d:]+ \| (\d+) jobs?: (.*)$", printed, re.MULTILINE)
    if told:
        counts = {name: int(count) for count, name in (one.split() for one in told[2].split(", "))}
        return {**counts, "total": int(told[1])}.get(rule, 0)
    found = re.search(rf"^{rule}\s+(\d+)$", printed, re.MULTILINE)
    return int(found.group(1)) if found else 0


def wait_until(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Wait until `condition` holds; an AssertionError after so many seconds, for a test must end."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


class Workflow:
    """A folder in which snakemake runs: `config` is written out anew before each call."""

    snakemake = ("-m", "snakemake")
    signalled = False  # whether a test signals Snakemake: then it alone is a process as users start it

    def __init__(self, folder: Path, repository: Path, python: Path | None = None):
        """python: what starts the scripts of jobs, of tests/warm; None: a process for each, as users have it."""
        self.folder, self.repository = folder, repository
        self.python = python
        folder.mkdir(exist_ok=True)
        self.config = shipped(repository)

    def copied(self, folder: Path) -> "Workflow":
        """A copy of all that stands here, with the same configuration, to be changed as one likes."""
        shutil.copytree(self.folder, folder)
        copy_of_it = Workflow(folder, self.repository, self.python)
        copy_of_it.config = copy.deepcopy(self.config)
        return copy_of_it

    @property
    def digits(self) -> dict:
        return self.config["experiments"]["digits"]

    def on_one_thread(self) -> None:
        """Let the jobs of `digits` compute on one thread: quick ones take half of the processor's time that two do."""
        for job in ("pretrain", "evaluate"):
            self.digits["compute"][job]["cpus_per_device"] = 1

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Run snakemake and return what it printed; `ok` says whether it is to succeed."""
        process = self.start(*arguments)
        printed, _ = process.communicate()
        assert (process.returncode == 0) == ok, printed[-6000:]
        return printed

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start snakemake; its standard output has all that it prints."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*self.command(), *arguments], cwd=self.folder, env=self.environment(), **pipes)

    def command(self) -> list[str]:
        """What starts snakemake, without a target."""
        python = str(self.python or sys.executable)
        snakemake = [str(STARTER), python] if self.python else self.snakemake
        started = sys.executable if self.signalled else python
        return [started, *snakemake, "-s", str(self.repository / "Snakefile"), *self.options()]

    def options(self) -> list[str]:
        """What is added to every call of snakemake."""
        return ["--cores", "2"]

    def environment(self) -> dict[str, str]:
        """The environment without what a surrounding Slurm job or torchrun would tell its processes."""
        return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SNAKEMAKE_"))}

    def read(self, path: str) -> str:
        return (self.folder / path).read_text()

    def path(self, path: str) -> Path:
        return self.folder / path
