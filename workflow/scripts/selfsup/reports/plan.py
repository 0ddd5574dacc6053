"""What the experiments of config.yaml will cost: segments, GPU-hours, days, and whether a segment fits its job.

Imports no torch. Speed is what was measured: the newest attempts in the ledgers, or a probe; nothing is guessed.
"""

import contextlib
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfsup.cards import read_card
from selfsup.config import Config, Experiment
from selfsup.job.ledger import NUMBERS, read_ledger
from selfsup.layout import RunPaths, data_of, probe_of, store_in
from selfsup.recipe import RECIPES, Recipe, load_recipe, methods_of
from selfsup.reports import explain, needs
from selfsup.segments import boundaries, finished_boundaries
from selfsup.settings.registries import SOURCES

REFERENCE = RECIPES.parent / "reference" / "published.csv"
FILL = 0.9  # of a time limit that a segment may take by its measured speed: nodes and file systems vary
MEANINGS = (
    "days: of one seed's pretraining, without the time in the queue",
    "memory: of each device, counted from the recipe; buffers of kernels come on top, a fifth on an H100",
    "disk: checkpoints and encoders of all seeds; those of finished segments but the last may be deleted",
)


@dataclass(frozen=True)
class Cost:
    """What one experiment costs, all seeds. images_per_s: of all its devices together; None where not measured."""

    experiment: str
    seeds: int
    segments: int
    finished: int
    devices: int
    images: int | None
    images_per_s: float | None
    measured_on: str
    hours: float | None  # of one seed's pretraining from its beginning to its end, without waiting in a queue
    device_hours: float | None  # of all seeds
    paper_gpu_hours: float | None
    memory_bytes: int | None  # of each device, at least; None for a network that is not counted
    disk_bytes: int | None  # of all seeds' checkpoints and encoders
    warnings: list[str]

    @property
    def gpu_hours(self) -> float | None:
        """The same where the devices are GPUs; a processor's hours are none of those."""
        return None if self.measured_on == "cpu" else self.device_hours


def costs(config: Config, results: Path) -> Iterator[Cost]:
    """Yield the cost of each experiment in config.yaml that pretrains."""
    for experiment in config.experiments.values():
        if experiment.name not in config.published:
            yield _cost(config, experiment, results)


def to_text(lines: list[Cost]) -> str:
    """Return the costs for people: a table, and below it what does not fit."""
    head = [
        "experiment",
        "seeds",
        "segments",
        "finished",
        "devices",
        "images/s",
        "GPU-hours",
        "the paper's",
        "days",
        "memory",
        "disk",
        "measured",
    ]
    rows = [head]
    for line in lines:
        numbers = [line.seeds, line.segments, line.finished, line.devices]
        days = None if line.hours is None else line.hours / 24
        gpu_hours = "none" if line.measured_on == "cpu" else _figure(line.gpu_hours)
        figures = [_figure(line.images_per_s), gpu_hours, _figure(line.paper_gpu_hours), _figure(days)]
        figures += map(needs.size, (line.memory_bytes, line.disk_bytes))
        rows.append([line.experiment, *map(str, numbers), *figures, line.measured_on])
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{line.experiment}: {warning}" for line in lines for warning in line.warnings]
    return "\n".join([*table, "", *MEANINGS, *notes]) + "\n"


def datasets_to_text(config: Config) -> str:
    """Return what the experiments' packed datasets take on disk, for people: a line."""
    names = dict.fromkeys(one.dataset for one in config.experiments.values())
    sizes = [f"{name} {needs.size(_dataset_bytes(config, name))}" for name in names]
    return f"datasets on disk, packed: {', '.join(sizes)}\n" if sizes else ""


def _dataset_bytes(config: Config, dataset: str) -> int | None:
    """Return the bytes of a packed dataset, or what its source's images will take; None where that is not known."""
    store = store_in(data_of(config.data_dir, dataset))
    if store.exists():
        return sum(map(_bytes_of, store.parent.iterdir()))
    told = config.datasets[dataset]
    source = SOURCES[told["source"]]
    known = source.counts and source.packed_bytes and not (told.get("resize") or told.get("expect"))
    return source.packed_bytes * (source.counts.train + source.counts.test) if known else None


def _bytes_of(path: Path) -> int:
    """Return a file's size; 0 of a folder, and of what a job has renamed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


def _cost(config: Config, experiment: Experiment, results: Path) -> Cost:
    block, recipe = experiment.compute["pretrain"], experiment.recipe
    devices = block["nodes"] * block["devices_per_node"]
    ends = boundaries(recipe["epochs"], experiment.segment_epochs)
    done = [finished_boundaries(RunPaths(results, experiment.name, seed).pretrain.folder) for seed in experiment.seeds]
    steps = steps_per_epoch(config, experiment)
    rate, measured_on = _measured(experiment, results, devices)
    images = hours = None
    warnings = list(explain.warnings(load_recipe(experiment.recipe_name), recipe))
    if steps is None:
        warnings.append(f"the dataset {experiment.dataset} is not packed yet: its number of images is not known")
    else:
        images = steps * recipe["global_batch"] * recipe["epochs"]
    if rate is None:
        warnings.append(
            f"speed not measured on {devices} devices: snakemake --profile profiles/slurm "
            f"{probe_of(results, experiment.name).ledger} (three minutes of training)"
        )
    if rate is not None and images is not None:
        hours = images / rate / 3600
        warnings += _misfit(experiment, hours / recipe["epochs"])
    return Cost(
        experiment=experiment.name,
        seeds=len(experiment.seeds),
        segments=len(ends) * len(experiment.seeds),
        finished=sum(map(len, done)),
        devices=devices,
        images=images,
        images_per_s=rate,
        measured_on=measured_on,
        hours=hours,
        device_hours=None if hours is None else hours * devices * len(experiment.seeds),
        paper_gpu_hours=paper_gpu_hours(config.datasets[experiment.dataset]["source"], experiment.recipe),
        memory_bytes=needs.memory_bytes(experiment),
        disk_bytes=needs.disk_bytes(experiment),
        warnings=warnings,
    )


def _misfit(experiment: Experiment, hours_per_epoch: float) -> Iterator[str]:
    limit, length = experiment.compute["pretrain"]["hours"], min(experiment.segment_epochs, experiment.recipe["epochs"])
    needed = hours_per_epoch * length
    if needed > limit * FILL:
        fits = math.floor(limit * FILL / hours_per_epoch)
        way = (
            f"segment_epochs: {fits} fits"
            if fits
            else "not even one epoch fits; the job saves and is continued by retries"
        )
        yield f"a segment of {length} epochs takes {needed:.1f} h, its time limit is {limit:g} h: {way}"


def steps_per_epoch(config: Config, experiment: Experiment) -> int | None:
    """Return an experiment's optimiser steps in an epoch, or None where its number of images is not known yet."""
    store = store_in(data_of(config.data_dir, experiment.dataset))
    try:
        images = read_card(store)["splits"]["train"]["images"]
    except (OSError, ValueError, KeyError, TypeError):
        known = SOURCES[config.datasets[experiment.dataset]["source"]].counts
        images = known and known.train
    return None if images is None else images // experiment.recipe["global_batch"]


def _measured(experiment: Experiment, results: Path, devices: int) -> tuple[float | None, str]:
    """Return the newest measured images/s on as many devices, and on which."""
    trainings = [RunPaths(results, experiment.name, seed).pretrain for seed in experiment.seeds]
    rows = [row for one in [probe_of(results, experiment.name), *trainings] for row in read_ledger(one.ledger, NUMBERS)]
    rows = [row for row in rows if row["devices"] == str(devices) and float(row["images_per_s"] or 0) > 0]
    if not rows:
        return None, ""
    newest = max(rows, key=lambda row: row["ended"])
    return float(newest["images_per_s"]), newest["device"]


def paper_gpu_hours(source: str, recipe: Recipe) -> float | None:
    """Return what the paper's pretraining on a source took, or None where it tells nothing of the recipe's method."""
    method = " + ".join(reversed(methods_of(recipe)))
    with open(REFERENCE, newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["dataset"], row["method"]) == (source, method)]
    return next((float(row["gpu_hours"]) for row in rows if row["gpu_hours"]), None)


def _figure(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
