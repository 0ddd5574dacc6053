"""The message and shell command of every kind of job, as a plan shows them: without Slurm, on no machine in particular.

    .venv/bin/python tests/workflow/golden_commands.py

writes golden_commands.txt beside this file anew: its difference to the old one is what changes for users.
"""

import copy
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "workflow" / "scripts")]

# When this is run by hand, the line above says where they are.
from machines import EIGHT_NODES, JEAN_ZAY, LAPTOP, NO_SITE, ONE_NODE, V100  # noqa: E402
from workflows import Workflow  # noqa: E402

GOLDEN = Path(__file__).with_suffix(".txt")
REPOSITORY = Path(__file__).parents[2]
# What Snakemake's Slurm plugin looks for; a plan asks none of them anything.
SLURM_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sinfo", "scancel", "sacctmgr")

SITE = {**JEAN_ZAY, "reservation": "lab", "memory_gb": 4}
V100_OF_A_TYPE = {**V100, "memory_gb": 160, "gpu_type": "v100"}
EXPERIMENT = {"overrides": {}, "seeds": [0], "revision": 1}


class Planned(Workflow):
    """A folder with the data that a plan looks for: pictures, published weights, a finished table."""

    def __init__(self, folder: Path):
        super().__init__(folder, REPOSITORY)
        for path in ("my pictures/train", "my pictures/test", "bin"):
            self.path(path).mkdir(parents=True)
        for path in ("weights of others.pt", "my bands.yaml"):
            self.path(path).write_text("")
        self.config["cluster"] = dict(NO_SITE)
        self.config["datasets"] = {
            "digits": {"source": "digits"},
            "cifar10": {"source": "cifar10", "path": None},
            "packed": {"source": "digits"},
            "textures": {"source": "dtd"},
            "mine": {
                "source": "folder",
                "path": str(self.path("my pictures")),
                "resize": 256,
                "skip_damaged": True,
                "expect": {"train": 1000, "test": 100, "classes": 10},
                "local_copy": "$TMPDIR/my data",
            },
        }
        self.pretend("data/packed/store.json", content="{}")
        self.config["tables"] = self.config["experiments"] = {}

    def add(self, name: str, dataset: str, pretrain: dict, evaluate: dict, **more: object) -> None:
        """Add an experiment, and a table of its name."""
        compute = {"pretrain": dict(pretrain), "evaluate": dict(evaluate), **more.pop("compute", {})}
        recipe = {"digits": "digits", "cifar10": "cifar10", "mine": "imagenet"}[dataset]
        block = {**copy.deepcopy(EXPERIMENT), "recipe": recipe, "dataset": dataset, "compute": compute, **more}
        self.config["experiments"] = {**self.config["experiments"], name: block}
        self.config["tables"] = {**self.config["tables"], f"table_of_{name}": [name]}

    def pretend(self, *paths: str, content: str = "") -> None:
        """Leave files as an earlier call would have."""
        for path in map(self.path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PATH": f"{self.path('bin')}:/usr/bin:/bin"}


class OnThisMachine(Planned):
    """Laptop, and one node with two devices."""

    targets = (
        "results/table_of_laptop.csv",
        "results/imported/seed0/linear/metrics.csv",
        "results/one_node/seed0/linear/metrics.csv",
        "results/laptop/seed0/boundaries/epoch_0020/neighbours/metrics.csv",
        "results/laptop/probe/ledger.csv",
        "results/audit/laptop/seed0/epoch_0020/audit.json",
        "results/evaluations.csv",
        "results/laptop/seed0/embedded/packed/map.html",
        "results/figures/compare_table_of_laptop.svg",
        "results/published/laptop_seed0/README.md",
        "data/textures/store.json",
        "preflight",
        "plan",
        "report",
    )

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.config["evaluations"] = {"neighbours": {"protocol": "knn", "dataset": "packed"}}
        laptop = {"bands": "my bands.yaml", "continue_after_collapse": True, "compute": {"tensorboard": True}}
        laptop["evaluations"] = ["linear", "neighbours"]
        self.add("laptop", "digits", LAPTOP, LAPTOP, segment_epochs=20, **laptop)
        self.add("one_node", "cifar10", ONE_NODE, {**ONE_NODE, "tf32": True}, segment_epochs=1000)
        self.config["experiments"]["one_node"]["revision"] = 2
        published = {"publisher": "authors", "path": "weights of others.pt"}
        self.add("imported", "digits", LAPTOP, LAPTOP, segment_epochs=30, published=published)
        runs = [f"results/laptop/seed0/{part}" for part in ("", "random_init/")]
        finished = [f"{run}{name}/metrics.csv" for run in runs for name in ("linear", "neighbours")]
        self.pretend(*finished, "results/laptop/seed0/linear/ledger.csv", "results/laptop/seed0/pretrain/ledger.csv")
        older = {"revision": 1, "fingerprint": "", "boundaries": [], "reached": 0, "recipe": {}}
        self.pretend("results/one_node/seed0/pretrain/segments.json", content=json.dumps(older))

    def options(self) -> list[str]:
        return ["--cores", "10"]


class OnSlurm(Planned):
    """A cluster that has no settings of its own: one node, and eight."""

    targets = (
        "results/one_node/seed0/linear/metrics.csv",
        "results/eight_nodes/seed0/linear/metrics.csv",
        "results/eight_nodes/seed0/random_init/linear/metrics.csv",
        "results/eight_nodes/probe/ledger.csv",
        "results/audit/eight_nodes/seed0/epoch_0100/audit.json",
        "preflight",
    )

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.add("one_node", "cifar10", ONE_NODE, {**ONE_NODE, "devices_per_node": 1}, segment_epochs=1000)
        self.add("eight_nodes", "mine", EIGHT_NODES, {**ONE_NODE, "devices_per_node": 4}, segment_epochs=500)
        for name in SLURM_COMMANDS:
            self.pretend(f"bin/{name}", content="#!/bin/sh\nexit 1\n")
            self.path(f"bin/{name}").chmod(0o755)

    def options(self) -> list[str]:
        return ["--profile", str(self.repository / "profiles" / "slurm")]


class LikeJeanZay(OnSlurm):
    """A cluster with settings of its own, and older GPUs."""

    targets = ("results/eight_nodes/seed0/linear/metrics.csv",)

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.config["cluster"] = dict(SITE)
        self.config["experiments"]["eight_nodes"]["compute"]["pretrain"] = dict(V100_OF_A_TYPE)


KINDS: Mapping[str, type[Planned]] = {
    "On this machine: a laptop, one node": OnThisMachine,
    "On Slurm: one node, eight nodes": OnSlurm,
    "On Slurm, like Jean Zay": LikeJeanZay,
}


def jobs_of(printed: str) -> set[str]:
    """Return each job's message and command, from what `snakemake -n -p` prints."""
    planned = printed.partition("\nJob stats:")[2].partition("\nJob stats:")[0]
    blocks = re.findall(r"^Job \d+: .*?(?=^\[|\Z)", planned, re.MULTILINE | re.DOTALL)
    others = r"^(Reason: |Would remove temporary output ).*$"
    without = (re.sub(others, "", block, flags=re.MULTILINE) for block in blocks)
    return {re.sub(r"\n\s*\n", "\n", block).strip() for block in without}


def neutral(job: str, folder: Path, python: Path | str = sys.executable) -> str:
    """Return a job's text without what differs from machine to machine, a flag of its command on each line."""
    text = re.sub(r"^Job \d+: ", "", job).replace("Shell command: ", "$ ")
    for found, instead in {str(python): "python", f"{REPOSITORY}/": "", str(folder): "<folder>"}.items():
        text = text.replace(found, instead)
    text = re.sub(r"(results/\.told/\w+)_[0-9a-f]{16}\.json", r"\1_<content>.json", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(re.sub(r" (?=--|2>&1)", "\n      ", line) if line.startswith("$") else line for line in lines)


def paragraphs(kind: type[Planned], folder: Path, python: Path | None = None) -> list[str]:
    """Return the texts of a kind's jobs, in order; its plan is made in `folder`. python: as for a Workflow."""
    plan = kind(folder)
    plan.python = python
    printed = plan.run("-n", "-p", *plan.targets)
    return sorted(neutral(job, folder, python or sys.executable) for job in jobs_of(printed))


def golden() -> Iterator[str]:
    """Yield the paragraphs of the whole text."""
    yield "# Made by .venv/bin/python tests/workflow/golden_commands.py: each job in a plan."
    for title, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as scratch:
            yield f"{'=' * 20} {title}"
            yield from paragraphs(kind, Path(os.path.realpath(scratch)) / "here")


if __name__ == "__main__":
    GOLDEN.write_text("\n\n".join(golden()) + "\n")
