"""CIFAR-10's training for a stated number of minutes: pretraining to its checkpoint, export, linear evaluation.

    python benchmarks/short_training.py [--minutes 5] [--cifar10 cifar-10-python.tar.gz] [--results FOLDER]

The scripts of the workflow, run by hand, need no Snakemake. A few steps are timed first; the recipe is then given as
many epochs as fit, so that its schedules come to their end, and is evaluated by the whole linear protocol, as is the
same encoder untrained. Without CIFAR-10's archive the pictures are scikit-learn's digits, enlarged and repeated to
50,000, or, where it is not installed, made ones without meaning: then speed counts, accuracy does not.
"""

import argparse
import csv
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import torch
from our_byol import OurStep, as_shipped
from pictures import CLASSES, small_store

from selfsup.data.preparing import prepare
from selfsup.data.store import PackedStore, StoreWriter
from selfsup.errors import UserError
from selfsup.layout import boundary_name
from selfsup.recipe import canonical, load_recipe

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
IMAGES = 50_000  # of CIFAR-10
TIMED_STEPS = 20
WARM_UP_SHARE = 0.01  # of the epochs: 10 of 1000 in the recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="of pretraining; default 5")
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10's archive or folder")
    parser.add_argument("--results", type=Path, help="copy history.csv and the metrics there")
    with measuring.report("short_training", parser) as (report, options), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, meaning = pictures(options, folder / "data")
        report.say(f"pictures: {meaning}", pictures=meaning)
        recipe = recipe_for(report, store, options)
        train_and_evaluate(report, recipe, store.folder, folder, options)


def pictures(options: argparse.Namespace, folder: Path) -> tuple[PackedStore, str]:
    """Return the packed pictures, and in words what they are."""
    if options.cifar10:
        prepare("cifar10", options.cifar10, folder)
        return PackedStore(folder), "CIFAR-10"
    if not importlib.util.find_spec("sklearn"):
        count = 2_000 if options.quick else IMAGES
        return small_store(folder, count), "made ones, whose classes mean nothing: not CIFAR-10"
    prepare("digits", None, folder)
    if options.quick:
        return PackedStore(folder), "scikit-learn's digits: not CIFAR-10"
    return repeated(PackedStore(folder), folder.with_name("repeated")), (
        f"scikit-learn's digits, enlarged to 32 pixels, the training images repeated to {IMAGES:,}: not CIFAR-10"
    )


def repeated(store: PackedStore, folder: Path) -> PackedStore:
    """Return a store of CIFAR-10's shape with the pictures of another one."""
    writer, rows = StoreWriter(folder, [str(number) for number in range(CLASSES)]), np.arange(IMAGES) % len(store.train)
    writer.write_raw("train", store.train.raw[rows], store.train.labels[rows])
    writer.write_raw("test", store.test.raw, store.test.labels)
    writer.finish()
    return PackedStore(folder)


def recipe_for(report: measuring.Report, store: PackedStore, options: argparse.Namespace) -> Mapping:
    """Return the recipe with as many epochs as fit into the minutes."""
    if options.quick:
        return load_recipe("digits", {"epochs": 2, "optimizer": {"warmup_epochs": 0}, "linear": {"epochs": 2}})
    epoch = timed_epoch(store, options)
    epochs = max(int(60 * options.minutes / epoch), 1)
    warm_up = round(WARM_UP_SHARE * epochs)
    report.say(f"an epoch takes {epoch:.2f} s by the steps timed: {epochs} epochs, {warm_up} of warm-up")
    return load_recipe("cifar10", {"epochs": epochs, "optimizer": {"warmup_epochs": warm_up}})


def timed_epoch(store: PackedStore, options: argparse.Namespace) -> float:
    """Return the seconds of an epoch of CIFAR-10's recipe, from a few steps in a row."""
    compute = replace(as_shipped(options.device), **dict.fromkeys(getattr(options, "switches", ()), True))
    with tempfile.TemporaryDirectory() as folder:
        step = OurStep(store, load_recipe("cifar10"), compute, Path(folder))
        step.turn(TIMED_STEPS)
        seconds = step.turn(TIMED_STEPS) / TIMED_STEPS
        epoch = seconds * step.training.steps_per_epoch
    del step
    torch.cuda.empty_cache()
    return epoch


def train_and_evaluate(
    report: measuring.Report, recipe: Mapping, data: Path, folder: Path, options: argparse.Namespace
) -> None:
    pretrain, epochs = folder / "pretrain", recipe["epochs"]
    own = ["--recipe", canonical(recipe)]
    cores = str(torch.get_num_threads())
    computing = ["--data", str(data), "--device", options.device.type, "--cpus", cores]
    script("pretrain.py", *own, *computing, "--run-folder", str(pretrain), "--until-epoch", str(epochs))
    boundary = pretrain / boundary_name(epochs)
    tell_training(report, pretrain, boundary)
    sources = {"trained": ["--checkpoint", str(boundary)], "untrained": ["--random-init"]}
    for name, source in sources.items():
        encoder = folder / name / "encoder.safetensors"
        encoder.parent.mkdir()
        script("export_encoder.py", *own, *source, "--output", str(encoder))
        script("linear_eval.py", *own, *computing, "--encoder", str(encoder), "--output", str(encoder.parent))
        metrics = rows(encoder.parent / "metrics.csv")[0]
        report.say(
            f"{name}, linear evaluation: top-1 {float(metrics['top1']):.2f} %, top-5 {float(metrics['top5']):.2f} %",
            **{name: metrics},
        )
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "history.csv").write_text((pretrain / "history.csv").read_text())


def tell_training(report: measuring.Report, folder: Path, boundary: Path) -> None:
    history, attempt = rows(folder / "history.csv"), rows(folder / "ledger.csv")[-1]
    steady = history[len(history) // 10 :]  # the first rows hold the start
    speed, wait = (statistics.median(float(row[key]) for row in steady) for key in ("images_per_s", "data_wait"))
    losses = float(history[0]["loss"]), float(history[-1]["loss"])
    card = json.loads(boundary.with_suffix(".json").read_text())
    report.say(
        f"pretraining: {speed:,.0f} images/s, {IMAGES / speed:.2f} s for {IMAGES:,} images, waiting for data "
        f"{wait:.2%} of the time; loss {losses[0]:.3f} to {losses[1]:.3f}",
        images_per_s=speed,
        data_wait=wait,
        losses=losses,
    )
    report.say(
        f"checkpoint: {boundary.stat().st_size / 1e6:.0f} MB after step {card['step']}, sound by its checksum",
        checkpoint=card,
        attempt=attempt,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def script(name: str, *arguments: str) -> None:
    """Run one of the workflow's scripts, its output going to ours."""
    status = subprocess.run([sys.executable, str(SCRIPTS / name), *arguments]).returncode
    if status:
        raise UserError(f"{name} ended with status {status}; its own message stands above")


if __name__ == "__main__":
    main()
