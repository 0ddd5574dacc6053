"""What the command of a job is made of: the words of its command line, and files for what is too long for one.

Pure functions of the experiments of config.yaml. Imports no torch.
"""

import hashlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfsup import jobs
from selfsup.atomic_files import keep, named_by_content
from selfsup.config import Config, Experiment
from selfsup.errors import UserError
from selfsup.layout import RESULTS
from selfsup.logs import DETAIL
from selfsup.recipe import canonical
from selfsup.signals import STOP_SIGNALS

# What jobs are told in files: on a command line it would bury their messages, and reach the system's limit. Each is
# named by its content, so that an edit of config.yaml is another file. They may be deleted while nothing runs.
TOLD = RESULTS / ".told"

# Writes a job's log, and the screen without the details; signals to the job's processes are for the trainer, which
# still has to tell what it does.
_IGNORED = " ".join(number.name.removeprefix("SIG") for number in STOP_SIGNALS)
TEE = f"""bash -c 'trap "" {_IGNORED} PIPE; tee "$0" | (grep -a --line-buffered -v "{DETAIL}" || :)'"""


def told_file(name: str, content: Any, *, write: bool) -> str:
    """Return the path of a file that holds `content` as JSON; a plan does not `write` it."""
    text = canonical(content)
    path = named_by_content(TOLD, name, text)
    if write:
        keep(path, text)
    return str(path)


def told_recipe(config: Config, experiment: str) -> Mapping[str, Any]:
    """Return what a job is told of its recipe: all of it, and the files that have to be loaded before it is read."""
    recipe, extensions = config.experiments[experiment].recipe, [str(Path(one).resolve()) for one in config.extensions]
    return {**recipe, "extensions": extensions} if extensions else recipe


def near(path: Path | str, here: Path) -> str:
    """Return a path as a command names it, quoted: from the folder `here`, where it lies below that."""
    return shlex.quote(str(path).removeprefix(f"{here}/"))


def words(given: Mapping[str, Any]) -> str:
    """Return flags with their values as words of a command line.

    A flag stands alone for True, before each value of a list, and not at all for False, None and an empty list.
    """
    pairs = [(flag, value) for flag, given_values in given.items() for value in _listed(given_values)]
    return " ".join(flag if value is True else f"{flag} {shlex.quote(str(value))}" for flag, value in pairs)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None or value is False else [value]


def code_digest(scripts: Path, names: Iterable[str]) -> str:
    """Return a digest of scripts and packages under `scripts`, so that a rule runs again when its code has changed."""
    files = sorted(
        file
        for name in names
        for file in ([scripts / name] if name.endswith(".py") else (scripts / name).rglob("*.py"))
    )
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def refuse_several_nodes(experiment: Experiment, stage: str) -> None:
    """Raise UserError where the jobs of a stage, "pretrain" or "evaluate", cannot run on this machine alone."""
    nodes = experiment.compute[stage]["nodes"]
    if nodes > 1:
        raise UserError(
            f"experiment {experiment.name} asks for {nodes} nodes: use --profile profiles/slurm, or set "
            f"experiments.{experiment.name}.compute.{stage}.nodes to 1 (the global batch stays the same)"
        )


def machine_words(config: Config, experiment: Experiment, stage: str, dataset: str, *, in_slurm: bool) -> str:
    """Return what the script of a stage is told of the machine and of the dataset's copy on it."""
    local_copy = config.datasets[dataset].get("local_copy")
    return jobs.arguments(experiment.compute[stage], in_slurm=in_slurm, local_copy=local_copy)


def gate_words(experiment: Experiment) -> str:
    """Return what the health gate judges by; a file that config.yaml names is used for whatever recipe."""
    return words({"--bands": experiment.bands or None, "--continue-after-collapse": experiment.continue_after_collapse})


def publisher_words(published: Mapping[str, Any]) -> str:
    """Return whose weights are imported, and where they are in their file. published: an experiment's block."""
    return f"{published['publisher']} {words({'--prefix': published.get('prefix')})}".rstrip()


def packing_words(dataset: Mapping[str, Any]) -> str:
    """Return how a dataset's files are packed. dataset: its block in config.yaml."""
    expected = canonical(dataset["expect"]) if "expect" in dataset else None
    resize, skip_damaged = dataset.get("resize") or None, bool(dataset.get("skip_damaged"))
    return words({"--resize": resize, "--skip-damaged": skip_damaged, "--expect": expected})


def source_words(dataset: Mapping[str, Any]) -> str:
    """Return a dataset's source, and how its files are taken: what is packed anew when it changes."""
    columns = {f"--{key.replace('_', '-')}": dataset.get(key) for key in ("image_column", "label_column")}
    share, unlabelled = dataset.get("test_share"), not dataset.get("labels", True)
    further = words({"--no-labels": unlabelled, "--test-share": share, **columns})
    return f"{dataset['source']} {further}".rstrip()


def packing_threads(config: Config, dataset: str) -> int:
    """Return as many cores as a node gives to the dataset's largest experiment: there are nodes that have them."""
    blocks = [one.compute["pretrain"] for one in config.experiments.values() if one.dataset == dataset]
    return max(map(jobs.threads, blocks), default=1)


def largest(config: Config, *, in_slurm: bool) -> Experiment:
    """Return the experiment with the most devices; without Slurm, of those that ask for a single node."""
    here = [one for one in config.experiments.values() if in_slurm or one.compute["pretrain"]["nodes"] == 1]
    return max(here or config.experiments.values(), key=lambda one: jobs.tasks(one.compute["pretrain"]))
