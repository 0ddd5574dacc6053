"""config.yaml: what is run. Read and checked here, before anything is queued. Imports no torch."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.jobs import minutes, refuse_flags
from selfsup.names import check_names
from selfsup.recipe import RecipeError, load_recipe
from selfsup.settings.schema import check_schema, read_plain_texts, suggest
from selfsup.settings.yaml_reader import read_yaml


@dataclass(frozen=True)
class Experiment:
    """One line of a table: a recipe on a dataset, and how its jobs are run.

    `recipe` is complete, overrides merged and validated; `compute` has the blocks "pretrain" and "evaluate".
    """

    name: str
    recipe: dict[str, Any]
    dataset: str
    seeds: list[int]
    segment_epochs: int
    revision: int
    compute: dict[str, dict[str, Any]]
    recipe_name: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    bands: str | None = None  # file of health bands; None: the recipe's
    continue_after_collapse: bool = False


@dataclass(frozen=True)
class Config:
    """The whole of config.yaml, checked.

    published: of experiments whose encoder others have trained, {publisher, path}; nothing is pretrained for them.
    """

    data_dir: str
    cluster: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    tables: dict[str, list[str]]
    experiments: dict[str, Experiment]
    published: dict[str, dict[str, str]]


def load_config(path: Path) -> Config:
    """Read and check a config.yaml. Raises UserError with one line that names the key, the value and what is wanted."""
    return check_config(read_yaml(path))


def check_config_files(paths: Iterable[Path]) -> None:
    """Read files that Snakemake reads too, for what its reader lets pass or does not explain. Raises UserError."""
    for path in paths:
        read_yaml(path)


def from_command_line(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what --config gave, numbers and truth values no longer texts where the schema wants none."""
    return read_plain_texts(dict(given), "config")


def config_of(given: str) -> Config:
    """Return the config that a script was given: a file's path, or its content as JSON. Raises UserError."""
    if given.endswith(".json"):
        return check_config(json.loads(Path(given).read_text(encoding="utf-8")))
    return check_config(json.loads(given)) if given.lstrip().startswith("{") else load_config(Path(given))


def check_config(raw: Mapping) -> Config:
    """Check a parsed config.yaml, syntax and values across fields. Raises UserError."""
    _check_names(raw)
    raw = check_schema(raw, "config", "config.yaml")
    _check_cluster(raw["cluster"])
    raw["data_dir"] = _expanded(raw["data_dir"], "data_dir")
    for name, dataset in raw["datasets"].items():
        if dataset.get("path") is not None:
            dataset["path"] = _expanded(dataset["path"], f"datasets.{name}.path")
        for key in ("resize", "skip_damaged", "expect"):
            if dataset["source"] == "digits" and dataset.get(key):
                raise UserError(f"config.yaml: datasets.{name}.{key} is for sources of image files, not for digits")
    check_names(raw)
    for table, names in raw["tables"].items():
        for name in names:
            if name not in raw["experiments"]:
                raise UserError(
                    f"config.yaml: tables.{table} lists the experiment {name!r}, which is not "
                    f"defined{suggest(name, list(raw['experiments']))}"
                )
    experiments = {name: _experiment(name, block, raw["datasets"]) for name, block in raw["experiments"].items()}
    published = {
        name: _published(name, block["published"])
        for name, block in raw["experiments"].items()
        if block.get("published")
    }
    return Config(raw["data_dir"], raw["cluster"], raw["datasets"], raw["tables"], experiments, published)


def _check_names(raw: Any) -> None:
    """Refuse names that are numbers, dates or truth values to YAML: as texts they could be another name."""
    kinds = raw.items() if isinstance(raw, Mapping) else ()
    for kind, block in kinds:
        for name in block if isinstance(block, Mapping) and kind in ("datasets", "tables", "experiments") else ():
            if not isinstance(name, str):
                raise UserError(f"config.yaml: {kind}.{name} has a name that is no text to YAML: write it in quotes")


def _check_cluster(cluster: Mapping) -> None:
    try:
        refuse_flags(cluster["extra"])
    except UserError as error:
        raise UserError(f"config.yaml: {error}") from error


def dataset_problem(config: Config, name: str) -> str | None:
    """Return in one line why the dataset `name` cannot be prepared, or None.

    Only looks at the path in config.yaml; asked for the datasets that a requested target needs, and no others.
    """
    source, path = config.datasets[name]["source"], config.datasets[name].get("path")
    if source == "digits" or (source == "cifar10" and path is None):
        return None
    if path is None:
        problem = f"dataset {name}: datasets.{name}.path in config.yaml is not set, wanted its images' folder or tar"
    elif not Path(path).exists():
        problem = f"dataset {name}: datasets.{name}.path is {path}, which does not exist"
    else:
        return None
    experiments = {one.name for one in config.experiments.values() if one.dataset == name}
    tables = [f"tables.{table}" for table, names in config.tables.items() if experiments & set(names)]
    leave_out = (
        f" To leave it out, take {' and '.join(sorted(experiments))} from {' and '.join(tables)}." if tables else ""
    )
    return f"{problem}. To try the workflow first: results/demo.csv.{leave_out}"


def _expanded(path: str, key: str) -> str:
    """Return a path with ~ and $VARIABLES replaced; one that is not set would end as a folder named "$SCRATCH"."""
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        raise UserError(f"config.yaml: {key} is {path}, which names a variable that is not set in this shell")
    return expanded


def _experiment(name: str, block: Mapping, datasets: Mapping) -> Experiment:
    if block["dataset"] not in datasets:
        raise UserError(
            f"config.yaml: experiments.{name}.dataset is {block['dataset']!r}, which is not "
            f"defined{suggest(block['dataset'], list(datasets))}"
        )
    try:
        recipe = load_recipe(block["recipe"], block["overrides"])
    except RecipeError as error:
        raise UserError(f"config.yaml: experiments.{name}: {error}") from error
    experiment = Experiment(
        name,
        recipe,
        *(block[key] for key in ("dataset", "seeds", "segment_epochs", "revision", "compute")),
        recipe_name=block["recipe"],
        overrides=block["overrides"],
        bands=block.get("bands") and _expanded(block["bands"], f"experiments.{name}.bands"),
        continue_after_collapse=block.get("continue_after_collapse", False),
    )
    for key in ("compile", "recompute"):
        if block["compute"]["evaluate"].get(key):
            raise UserError(
                f"config.yaml: experiments.{name}.compute.evaluate.{key} is true, but a frozen encoder has nothing to "
                f"{key}: set it in compute.pretrain"
            )
    for problem in (*_compute_problems(experiment), *_batch_problems(experiment)):
        raise UserError(f"config.yaml: experiments.{name}: {problem}")
    return experiment


def _published(name: str, block: Mapping) -> dict[str, str]:
    return {**block, "path": _expanded(block["path"], f"experiments.{name}.published.path")}


def _compute_problems(experiment: Experiment) -> Iterator[str]:
    for stage in ("pretrain", "evaluate"):
        block = experiment.compute[stage]
        if minutes(block) < 1:
            yield f"compute.{stage}.hours is {block['hours']}, which is less than a minute: 0.5 is half an hour"
        if "gpu_type" in block and block["device"] == "cpu":
            yield f"compute.{stage}.gpu_type is {block['gpu_type']!r}, but device is cpu: leave one of them out"


def _batch_problems(experiment: Experiment) -> Iterator[str]:
    recipe = experiment.recipe
    batches = {
        "pretrain": ("global_batch", recipe["global_batch"], recipe["micro_batches"]),
        "evaluate": ("linear.batch", recipe["linear"]["batch"], 1),
    }
    for stage, (key, batch, parts) in batches.items():
        nodes, per_node = (experiment.compute[stage][unit] for unit in ("nodes", "devices_per_node"))
        if batch % (nodes * per_node * parts):
            pieces = f" and {parts} micro_batches" if parts > 1 else ""
            yield (
                f"{key} is {batch}, which cannot be shared equally by compute.{stage}'s {nodes * per_node} devices "
                f"({nodes} nodes x {per_node}){pieces}: change nodes, devices_per_node or the batch"
            )
