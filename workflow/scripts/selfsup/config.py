"""config.yaml: what is run. Read and checked here, before anything is queued. Imports no torch."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from selfsup.errors import UserError
from selfsup.grids import read_config_file, without_grids
from selfsup.jobs import Cluster, Compute, minutes, refuse_flags
from selfsup.layout import LINEAR, OWN_FOLDERS
from selfsup.names import check_names
from selfsup.protocols import Evaluation, evaluation_of, linear_evaluation
from selfsup.recipe import Recipe, RecipeError, load_recipe
from selfsup.settings.extensions import load_extensions
from selfsup.settings.notes import Bounds, Count, Distinct, Length, Name, Seed
from selfsup.settings.registries import BACKBONES, SOURCES, TRACKERS
from selfsup.settings.typed import Kind, Settings, read, since, suggest, with_each
from selfsup.settings.yaml_reader import parse_yaml, read_yaml


class Expected(Settings):
    """What a dataset's files are checked against; 0: not checked."""

    train: Count = 0
    """training images"""
    test: Count = 0
    """test images"""
    classes: Count = 0
    """classes"""


KEYS_OF_SOURCES = ("labels", "test_share", "image_column", "label_column")  # of a dataset, that not every source has
KEYS_OF_FILES = ("resize", "skip_damaged", "expect")


class Dataset(Settings):
    """One of config.yaml's `datasets`."""

    source: str
    """where images come from: a file of selfsup/data/sources, or an extension's"""
    path: str | None = None
    """folder, tar or zip of the images, or Parquet files"""
    labels: bool = True
    """false: the pictures have no classes, and all are trained on"""
    test_share: Annotated[float, Bounds(more_than=0, less_than=1)] | None = None
    """share of class folders without a split that becomes the test set"""
    image_column: str | None = None
    """column of a Parquet file with the pictures; null: the only one with pictures"""
    label_column: str | None = None
    """column of a Parquet file with the classes; null: the ClassLabel, or label"""
    resize: Count = 0
    """pixels of the shorter side to which larger images are resized; 0: as they are"""
    skip_damaged: bool = False
    """leave damaged images out instead of stopping"""
    expect: Expected | None = None
    """what the dataset must have"""
    local_copy: str | None = None
    """folder on each node to which the packed images are copied"""


class EvaluationBlock(Settings):
    """One of config.yaml's `evaluations`."""

    protocol: str
    """how encoders are judged: linear, the recipe's own, a name in workflow/protocols, or the path of a file .yaml"""
    dataset: str | None = None
    """a name of `datasets`; null: the experiment's own"""
    overrides: dict | None = None
    """keys of the protocol to change"""
    at: Literal["end", "every_boundary"] = "end"
    """when in the pretraining; every_boundary: the curves show how the figure grows"""


class Published(Settings):
    """An experiment's encoder that others have trained."""

    publisher: Literal["authors", "official", "selfsup", "torchvision", "timm", "state_dict"]
    """in whose format the file is; selfsup: model.safetensors in a folder that publish.py has made"""
    path: Annotated[str, Length(1)]
    """the file"""
    backbone: str | None = None
    """the network, by torchvision's or timm's name; of a state dict as in a recipe, null: the recipe's"""
    prefix: str | None = None
    """what the backbone's names in a state dict begin with; null: the only prefix that fits"""

    def problems(self) -> Iterator[str]:
        if not self.of_library:
            for key in ("backbone", "prefix"):
                if self.get(key) is not None:
                    yield f"{key} is for state dicts, not for {self.publisher}, whose network is the recipe's"
        elif self.publisher != "state_dict" and self.backbone is None:
            yield f"backbone is not set, wanted {self.publisher}'s name of the network"
        if self.publisher == "torchvision" and self.backbone and not self._in_torchvision(self.backbone):
            yield (
                f"backbone is {self.backbone!r}, wanted one of {', '.join(filter(self._in_torchvision, BACKBONES))}; "
                "other networks' weights are timm's: publisher: timm"
            )

    @staticmethod
    def _in_torchvision(name: str) -> bool:
        return hasattr(BACKBONES.get(name), "of_torchvision")

    @property
    def of_library(self) -> bool:
        """Whether it was trained by nobody's recipe here: which only stands in for its network and its evaluation."""
        return self.publisher in ("torchvision", "timm", "state_dict")

    @property
    def model(self) -> dict[str, Any]:
        """What its network says in a recipe's block of that name; nothing where it is the recipe's."""
        if self.backbone is None:
            return {}
        if self.publisher == "torchvision":
            return BACKBONES[self.backbone].of_torchvision(self.backbone)
        return {"backbone": f"timm/{self.backbone}" if self.publisher == "timm" else self.backbone}


class Jobs(Settings):
    """An experiment's `compute`."""

    pretrain: Compute | None = since(None)
    """of pretraining; null: one device"""
    evaluate: Compute | None = since(None)
    """of evaluations; null: one device"""
    tensorboard: bool = False
    """true: as `trackers: [tensorboard]`"""
    trackers: Annotated[list[str], Distinct()] = ()
    """trackers that get the rows of history.csv and knn.csv too: tensorboard, wandb, mlflow, trackio, or an
    extension's"""

    @property
    def all_trackers(self) -> list[str]:
        """The names of the trackers, however they were asked for."""
        return list(dict.fromkeys([*(["tensorboard"] if self.tensorboard else []), *self.trackers]))


class Block(Settings):
    """One of config.yaml's `experiments`."""

    recipe: str
    """a name in workflow/recipes, or the path of a file .yaml"""
    dataset: str
    """a name of `datasets`"""
    overrides: dict = since({})
    """keys of the recipe to change"""
    grid: dict | None = None
    """values of recipe keys: an experiment for each combination"""
    evaluations: Annotated[list[str], Length(1), Distinct()] = (LINEAR,)
    """how its encoders are judged: linear, and names of `evaluations`"""
    published: Published | None = None
    """an encoder to be imported instead of trained"""
    seeds: Annotated[list[Seed], Length(1), Distinct()] = since([0])
    """one run each"""
    segment_epochs: Count | None = since(None)
    """epochs between two boundaries, each with a checkpoint that is kept; null: one segment"""
    revision: Count = since(1)
    """raise it to train again what is finished"""
    bands: str | None = None
    """file of health bands; null: the recipe's"""
    continue_after_collapse: bool = False
    """go on where the health gate would stop"""
    compute: Jobs | None = since(None)
    """what jobs compute on; null: one device of whatever kind there is"""


class ConfigFile(Settings):
    """config.yaml. What the keys mean stands there, at each key."""

    data_dir: Annotated[str, Length(1)]
    """folder of the packed datasets"""
    cluster: Cluster
    datasets: dict[Name, Dataset]
    tables: dict[Name, Annotated[list[str], Length(1), Distinct()]]
    """names of experiments"""
    evaluations: dict[Name, EvaluationBlock] | None = None
    """how encoders can be judged, besides the recipes' own linear evaluation"""
    experiments: Annotated[dict[Name, Block], Length(1)]
    extensions: Annotated[list[str], Distinct()] = ()
    """Python files that add methods, backbones, optimisers, tasks and trackers: docs/extend.md"""


# Sections of config.yaml whose keys are names of the user's.
NAMED = ("datasets", "tables", "evaluations", "experiments")


@dataclass(frozen=True)
class Experiment:
    """One line of a table: a recipe on a dataset, and how its jobs are run.

    `recipe` is complete, overrides merged and validated; `compute` has the blocks "pretrain" and "evaluate".
    evaluations: how its encoders are judged, by name.
    """

    name: str
    recipe: Recipe
    dataset: str
    seeds: list[int]
    segment_epochs: int
    revision: int
    compute: Jobs
    evaluations: dict[str, Evaluation]
    recipe_name: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    bands: str | None = None  # file of health bands; None: the recipe's
    continue_after_collapse: bool = False


@dataclass(frozen=True)
class Config:
    """The whole of config.yaml, checked.

    published: of experiments whose encoder others have trained, {publisher, path}; nothing is pretrained for them.
    evaluations: the names of those that are not the recipes' own.
    extensions: paths of files that are loaded by now.
    """

    data_dir: str
    cluster: Cluster
    datasets: dict[str, Dataset]
    tables: dict[str, list[str]]
    experiments: dict[str, Experiment]
    published: dict[str, Published]
    extensions: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)

    def trained_by_recipe(self, experiment: str) -> bool:
        """Whether an experiment's encoders were trained as its recipe says."""
        return experiment not in self.published or not self.published[experiment].of_library


def load_config(path: Path) -> Config:
    """Read and check a config.yaml. Raises UserError with one line that names the key, the value and what is wanted."""
    return check_config(read_config_file(path))


def check_config_files(paths: Iterable[Path]) -> None:
    """Read files that Snakemake reads too, for what its reader lets pass or does not explain. Raises UserError."""
    for path in paths:
        read_yaml(path)


def from_command_line(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what --config gave, numbers and truth values no longer texts where no text is wanted."""
    return with_each(ConfigFile, dict(given), _meant)


def _meant(kind: Kind | None, value: Any) -> Any:
    """Return what a text of a command line means as YAML, where its key takes no text."""
    takes_text = kind is not None and kind.base in (str, Literal)
    if not isinstance(value, str) or (takes_text and not (kind.nullable and value in ("null", "~", ""))):
        return value
    try:
        return parse_yaml(value, "a text")
    except UserError:
        return value  # which will be refused


def config_of(given: str) -> Config:
    """Return the config that a script was given: a file's path, or its content as JSON. Raises UserError."""
    if not given.endswith(".json") and not given.lstrip().startswith("{"):
        return load_config(Path(given))
    try:
        content = json.loads(Path(given).read_text(encoding="utf-8") if given.endswith(".json") else given)
    except (OSError, ValueError) as error:
        raise UserError(f"--config {given[:80]}: cannot be read as JSON ({error})") from error
    return check_config(content)


def check_config(raw: Mapping) -> Config:
    """Check a parsed config.yaml, each value and values across keys. Raises UserError."""
    raw = without_grids(raw)
    _check_names(raw)
    file = read(ConfigFile, raw, "config.yaml")
    _check_cluster(file.cluster)
    extensions = [_expanded(path, f"extensions.{place}") for place, path in enumerate(file.extensions)]
    load_extensions(extensions)
    data_dir = _expanded(file.data_dir, "data_dir")
    datasets = {name: _dataset(name, block) for name, block in file.datasets.items()}
    check_names(file)
    _check_tables(file)
    evaluations = file.evaluations or {}
    _check_evaluations(evaluations, datasets)
    experiments = {name: _experiment(name, block, datasets, evaluations) for name, block in file.experiments.items()}
    published = {name: _published(name, one.published) for name, one in file.experiments.items() if one.published}
    return Config(data_dir, file.cluster, datasets, file.tables, experiments, published, extensions, list(evaluations))


def _dataset(name: str, block: Dataset) -> Dataset:
    if block.source not in SOURCES:
        raise UserError(
            f"config.yaml: datasets.{name}.source is {block.source!r}, wanted one of {', '.join(SOURCES)}"
            f"{suggest(block.source, list(SOURCES))}"
        )
    source = SOURCES[block.source]
    for key in KEYS_OF_FILES:
        if block.get(key) and not source.files:
            raise UserError(f"config.yaml: datasets.{name}.{key} is for sources of image files, not for {block.source}")
    for key in KEYS_OF_SOURCES:
        if key in block and key not in source.keys:
            sources = " or ".join(one for one in SOURCES if key in SOURCES[one].keys)
            raise UserError(f"config.yaml: datasets.{name}.{key} is for the source {sources}, not for {block.source}")
    if not block.labels and (block.test_share is not None or block.label_column):
        key = "label_column" if block.label_column else "test_share"
        raise UserError(f"config.yaml: datasets.{name}: labels is false, but {key} is for classes: keep one")
    return block if block.path is None else block.changed(path=_expanded(block.path, f"datasets.{name}.path"))


def _check_tables(file: ConfigFile) -> None:
    for table, names in file.tables.items():
        for name in names:
            if name not in file.experiments:
                raise UserError(
                    f"config.yaml: tables.{table} lists the experiment {name!r}, which is not "
                    f"defined{suggest(name, list(file.experiments))}"
                )


def _check_evaluations(evaluations: Mapping[str, EvaluationBlock], datasets: Mapping) -> None:
    for name, block in evaluations.items():
        if name in OWN_FOLDERS:
            raise UserError(f"config.yaml: evaluations.{name} has a name that the workflow uses itself: rename it")
        if block.dataset is not None and block.dataset not in datasets:
            raise UserError(
                f"config.yaml: evaluations.{name}.dataset is {block.dataset!r}, which is not "
                f"defined{suggest(block.dataset, list(datasets))}"
            )


def _check_names(raw: Any) -> None:
    """Refuse names that are numbers, dates or truth values to YAML: as texts they could be another name."""
    kinds = raw.items() if isinstance(raw, Mapping) else ()
    for kind, block in kinds:
        for name in block if isinstance(block, Mapping) and kind in NAMED else ():
            if not isinstance(name, str):
                raise UserError(
                    f"config.yaml: {kind}.{name} has a name that YAML does not read as text: write it in quotes"
                )


def _check_cluster(cluster: Cluster) -> None:
    try:
        refuse_flags(cluster.extra)
    except UserError as error:
        raise UserError(f"config.yaml: {error}") from error


def dataset_problem(config: Config, name: str) -> str | None:
    """Return in one line why the dataset `name` cannot be prepared, or None.

    Only looks at the path in config.yaml; asked for the datasets that a requested target needs, and no others.
    """
    source, path = SOURCES[config.datasets[name]["source"]], config.datasets[name].get("path")
    if not source.files or (source.downloads and path is None):
        return None
    if path is None:
        where = f"; {source.where}" if source.where else ""
        problem = (
            f"dataset {name}: datasets.{name}.path in config.yaml is not set, wanted its images' folder or tar{where}"
        )
    elif not Path(path).exists():
        problem = f"dataset {name}: datasets.{name}.path is {path}, which does not exist"
    else:
        return None
    experiments = {one.name for one in config.experiments.values() if one.dataset == name}
    tables = [f"tables.{table}" for table, names in config.tables.items() if experiments & set(names)]
    leave_out = (
        f" To leave it out, take {' and '.join(sorted(experiments))} from {' and '.join(tables)}." if tables else ""
    )
    for one in config.experiments.values():
        judged = [each.name for each in one.evaluations.values() if name == each.dataset != one.dataset]
        if judged:
            leave_out += f" Or take {' and '.join(judged)} from experiments.{one.name}.evaluations."
    return f"{problem}. To try the workflow first: results/demo.csv.{leave_out}"


def labels_problem(config: Config, name: str) -> str | None:
    """Return in one line why no encoder can be evaluated on the dataset `name`, or None."""
    if config.datasets[name].labels:
        return None
    return (
        f"dataset {name} has labels: false, so no encoder can be evaluated on it: evaluate on a dataset with "
        "classes (evaluations), or sort its pictures into class folders. What can be made from it is the encoder: "
        "results/<experiment>/seed<n>/encoder.safetensors"
    )


def _expanded(path: str, key: str) -> str:
    """Return a path with ~ and $VARIABLES replaced; one that is not set would end as a folder named "$SCRATCH"."""
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        raise UserError(f"config.yaml: {key} is {path}, which names a variable that is not set in this shell")
    return expanded


def _experiment(name: str, block: Block, datasets: Mapping, evaluations: Mapping) -> Experiment:
    if block.dataset not in datasets:
        raise UserError(
            f"config.yaml: experiments.{name}.dataset is {block.dataset!r}, which is not "
            f"defined{suggest(block.dataset, list(datasets))}"
        )
    overrides = block.overrides if block.published is None else with_network(block.published, block.overrides)
    try:
        recipe = load_recipe(block.recipe, overrides)
    except RecipeError as error:
        raise UserError(f"config.yaml: experiments.{name}: {error}") from error
    experiment = Experiment(
        name,
        recipe,
        block.dataset,
        block.seeds,
        block.segment_epochs or recipe.epochs,
        block.revision,
        jobs_of(block.compute),
        evaluations={one: _evaluation(name, one, block.dataset, recipe, evaluations) for one in block.evaluations},
        recipe_name=block.recipe,
        overrides=overrides,
        bands=block.bands and _expanded(block.bands, f"experiments.{name}.bands"),
        continue_after_collapse=block.continue_after_collapse,
    )
    for problem in (*_compute_problems(experiment), *_batch_problems(experiment)):
        raise UserError(f"config.yaml: experiments.{name}: {problem}")
    return experiment


def jobs_of(given: Jobs | None) -> Jobs:
    """Return an experiment's `compute` with what was left out."""
    given = given or Jobs()
    return given.changed(pretrain=given.pretrain or Compute(), evaluate=given.evaluate or Compute())


def _evaluation(experiment: str, name: str, dataset: str, recipe: Recipe, known: Mapping) -> Evaluation:
    if name == LINEAR:
        return linear_evaluation(recipe, dataset)
    if name not in known:
        raise UserError(
            f"config.yaml: experiments.{experiment}.evaluations lists {name!r}, which `evaluations` does not "
            f"define{suggest(name, [LINEAR, *known])}"
        )
    block = known[name]
    try:
        found = evaluation_of(name, block.protocol, block.overrides or {}, recipe, block.dataset or dataset)
        return replace(found, at_every_boundary=block.at == "every_boundary")
    except UserError as error:
        raise UserError(f"config.yaml: evaluations.{name}: {error}") from error


def _published(name: str, block: Published) -> Published:
    return block.changed(path=_expanded(block.path, f"experiments.{name}.published.path"))


def with_network(published: Published, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's overrides with those of a published network, of which the experiment's own stand before."""
    network, own = published.model, overrides.get("model", {})
    return {**overrides, "model": {**network, **own}} if network and isinstance(own, Mapping) else dict(overrides)


def _compute_problems(experiment: Experiment) -> Iterator[str]:
    for key in ("combined_kernels", "compile", "compiled_update", "one_graph", "recompute", "static_views"):
        if experiment.compute.evaluate.get(key):
            yield (
                f"compute.evaluate.{key} is on, but only a pretraining can do that, not a frozen encoder: set it in "
                "compute.pretrain"
            )
    pretrain = experiment.compute.pretrain
    if pretrain.one_graph is True and pretrain.recompute:
        yield "compute.pretrain has one_graph and recompute, which cannot be combined: set one of them to false"
    if pretrain.combined_kernels and not (pretrain.one_graph is True or pretrain.compile):
        yield (
            "compute.pretrain.combined_kernels is true, but nothing is compiled whose kernels could be combined: set "
            "one_graph or compile to true, too, or combined_kernels to false"
        )
    if pretrain.compiled_update and pretrain.one_graph is not True:
        yield (
            "compute.pretrain.compiled_update is true, but one_graph is not: set one_graph to true, too, or "
            "compiled_update to false"
        )
    if pretrain.compiled_update and (optimizer := experiment.recipe.optimizer.name) != "lars":
        yield (
            f"compute.pretrain.compiled_update is true, but the optimiser is {optimizer}, wanted lars: set "
            "compiled_update to false"
        )
    for name in experiment.compute.trackers:
        if name not in TRACKERS:
            yield f"compute.trackers names {name!r}, which does not exist{suggest(name, list(TRACKERS))}"
    for stage in ("pretrain", "evaluate"):
        block = experiment.compute[stage]
        if minutes(block) < 1:
            yield f"compute.{stage}.hours is {block.hours}, which is less than a minute: 0.5 is half an hour"
        if block.gpu_type and block.device == "cpu":
            yield f"compute.{stage}.gpu_type is {block.gpu_type!r}, but device is cpu: leave one of them out"


def _batch_problems(experiment: Experiment) -> Iterator[str]:
    recipe = experiment.recipe
    yield from _uneven(experiment, "pretrain", "global_batch", recipe.global_batch, recipe.micro_batches)
    for name, one in experiment.evaluations.items():
        for key, batch in one.settings.batches.items():
            yield from _uneven(experiment, "evaluate", f"{name}.{key}", batch, 1)


def _uneven(experiment: Experiment, stage: str, key: str, batch: int, parts: int) -> Iterator[str]:
    nodes, per_node = experiment.compute[stage].nodes, experiment.compute[stage].devices_per_node
    if batch % (nodes * per_node * parts):
        pieces = f" and {parts} micro_batches" if parts > 1 else ""
        yield (
            f"{key} is {batch}, which cannot be shared equally by compute.{stage}'s {nodes * per_node} devices "
            f"({nodes} nodes x {per_node}){pieces}: change nodes, devices_per_node or the batch"
        )
