"""Table 1's experiment, CIFAR-10 with its recipe, for as many epochs as fit into a stated time, and its evaluations.

    python benchmarks/table1.py --minutes 12 --cifar10 cifar-10-python.tar.gz --work FOLDER --results OUT
    python benchmarks/table1.py --arms A B C D --cifar10 cifar-10-python.tar.gz --work FOLDER --results OUT

--cifar10 is whatever the source cifar10 takes: the archive, its folder, or a tree of image files, in a folder or a tar.
The schedules have the length that is trained. Then the encoder is exported and judged by the whole linear protocol and
by k-NN, beside the same encoder untrained by k-NN; a training that has overrun its time is judged as far as it came.
OUT gets training.json, small.tar.gz (every CSV and card) and the encoder in pieces: `cat encoder.part* >
encoder.safetensors`. What has been prepared in FOLDER is used again; finished work is not repeated there. A call with
other pictures or other minutes begins anew, and what was trained before lies beside it, set aside.

--arms trains docs/gpu/README.md's 40-epoch arms instead, each judged by the run's own k-NN at its end, D by its top-1.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import measuring
import torch
from short_training import SCRIPTS, WARM_UP_SHARE, pictures, rows, script, tell_training, timed_epoch

from selfsup.data.store import PackedStore
from selfsup.errors import UserError, run_script
from selfsup.layout import boundary_name, rolling_files
from selfsup.recipe import canonical, load_recipe

PIECE_BYTES = 16_000_000  # of an encoder: what a machine that is lent for minutes may give back in one file
LINEAR_S = 150  # 90 epochs at 1.2 to 1.4 s are 108 to 126; the start, and the test features in fp32, come to it
KNN_S = 25
# A training takes longer than the steps that were timed: 3.57 s an epoch where they said 2.89 (docs/gpu/README.md).
SLACK = 1.24
STARTS_S = 35  # of the training, cuDNN's trials included, and of the export
STOPPED = 75  # pretrain.py's exit status, asked to stop
ARM_EPOCHS = 40
ARMS = {
    "A": {},
    "B": {"byol": {"tau_base": 0.97}, "optimizer": {"peak_lr": 4.5}},
    "C": {},  # in fp16
}
SUPERVISED_EPOCHS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="of all of it, from now on; default 9")
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10's archive, folder or tree; default: made pictures")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and run")
    parser.add_argument("--results", type=Path, required=True, help="folder for what is to be kept")
    parser.add_argument("--epoch-seconds", type=float, help="of the training, all included; default: steps are timed")
    parser.add_argument("--compile", action="store_true", help="train and time with compute.compile")
    parser.add_argument("--arms", nargs="*", choices=[*ARMS, "D"], help="train these instead; none named: all")
    with measuring.report("table1", parser) as (report, options):
        options.began = time.monotonic()
        options.results.mkdir(parents=True, exist_ok=True)
        store = prepared(report, options)
        try:
            if options.arms is None:
                table1(report, store, options)
            else:
                for arm in options.arms or [*ARMS, "D"]:
                    train_arm(report, arm, store, options)
        finally:
            bring_home(options)


def prepared(report: measuring.Report, options: argparse.Namespace) -> PackedStore:
    """Return the packed pictures, packed once in the folder for work; anew where other ones are asked for."""
    note, asked = options.work / "pictures.json", {"cifar10": str(options.cifar10), "quick": options.quick}
    known = noted(note, asked)
    if known is None:
        note.unlink(missing_ok=True)
        for name in ("run", "arms"):
            set_aside(report, options.work / name)
        for name in ("data", "repeated"):
            shutil.rmtree(options.work / name, ignore_errors=True)
        options.work.mkdir(parents=True, exist_ok=True)
        store, meaning = pictures(options, options.work / "data")
        known = {"asked": asked, "folder": str(store.folder), "meaning": meaning}
        note.write_text(json.dumps(known))
    store, meaning = PackedStore(Path(known["folder"])), known["meaning"]
    form = "as they are" if store.train.raw is not None else "as files, which every step decodes"
    report.say(f"pictures: {meaning}, packed {form}", pictures=meaning, dataset=store.fingerprint)
    return store


def noted(note: Path, asked: Mapping) -> dict | None:
    """Return what an earlier call has noted, if it was asked the same."""
    known = json.loads(note.read_text()) if note.exists() else {}
    return known if known.get("asked") == asked else None


def set_aside(report: measuring.Report, folder: Path) -> None:
    """Rename a folder of trainings that this call does not go on with."""
    if folder.exists():
        number = len(list(folder.parent.glob(f"{folder.name}_before*")))
        aside = folder.rename(folder.with_name(f"{folder.name}_before{number}"))
        report.say(f"{folder} was trained with other pictures or another length: it is now {aside.name}")


def table1(report: measuring.Report, store: PackedStore, options: argparse.Namespace) -> None:
    recipe, limit = chosen_recipe(report, store, options)
    run = options.work / "run"
    checkpoint = pretrained(report, recipe, store, run, options, limit)
    sources = {"trained": ["--checkpoint", str(checkpoint)], "untrained": ["--random-init"]}
    for name, source in sources.items():
        export(recipe, source, run / name)
    # k-NN first: seconds, where the linear evaluation may be cut off.
    for name, protocol in (("trained", "knn"), ("untrained", "knn"), ("trained", "linear")):
        judge(report, run / name, protocol, recipe, store, options)


def chosen_recipe(
    report: measuring.Report, store: PackedStore, options: argparse.Namespace
) -> tuple[Mapping, float | None]:
    """Return the recipe with as many epochs as fit, and the minutes that the training may take; None: all it wants."""
    if options.quick:
        own = {"epochs": 1, "optimizer": {"warmup_epochs": 0}, "linear": {"epochs": 1}, "model": {"width": 4}}
        return load_recipe("digits", own), None
    note = options.work / "epochs.json"  # a second call goes on with what the first has chosen, if it asks the same
    asked = {"minutes": options.minutes, "epoch_seconds": options.epoch_seconds, "dataset": store.fingerprint}
    known = noted(note, asked)
    if known is None:
        set_aside(report, options.work / "run")
        timed = None if options.epoch_seconds else SLACK * timed_epoch(store, options)
        epoch = options.epoch_seconds or timed
        left = 60 * options.minutes - (time.monotonic() - options.began) - LINEAR_S - 2 * KNN_S - STARTS_S
        epochs = max(int(left / epoch), 1)
        known = {"asked": asked, "epochs": epochs, "epoch_s": epoch}
        note.write_text(json.dumps(known))
        how = "as told" if options.epoch_seconds else f"steps timed, times {SLACK}"
        report.say(f"an epoch of {epoch:.2f} s ({how}): {epochs} epochs in {left:.0f} s", epoch_s=epoch, epochs=epochs)
    epochs = known["epochs"]
    limit = options.minutes - (time.monotonic() - options.began + LINEAR_S + 2 * KNN_S) / 60
    warm_up = min(round(WARM_UP_SHARE * epochs), 10)
    return load_recipe("cifar10", {"epochs": epochs, "optimizer": {"warmup_epochs": warm_up}}), max(limit, 0.5)


def pretrained(
    report: measuring.Report,
    recipe: Mapping,
    store: PackedStore,
    run: Path,
    options: argparse.Namespace,
    limit: float | None,
) -> Path:
    """Train, and return the last checkpoint: the boundary, or what was reached when the time was over."""
    folder, epochs = run / "pretrain", recipe["epochs"]
    boundary = folder / boundary_name(epochs)
    own = ["--recipe", canonical(recipe), "--run-folder", str(folder), "--until-epoch", str(epochs)]
    own += ["--checkpoint-minutes", "3", *computing(store, options)]
    own += ["--time-limit", f"{limit:.2f}"] if limit else []
    status = subprocess.run([sys.executable, str(SCRIPTS / "pretrain.py"), *own]).returncode
    if status not in (0, STOPPED):
        raise UserError(f"pretrain.py ended with status {status}; its own message stands above")
    if boundary.exists():
        tell_training(report, folder, boundary)
        return boundary
    rolling, unfinished = rolling_files(folder / "partial"), folder / "unfinished.pt"
    if not rolling:
        raise UserError(f"the time was over before the first checkpoint in {folder}: give it more --minutes")
    newest = rolling[-1]
    for suffix in (".pt", ".json"):  # the card too, without which no checkpoint is read
        link = unfinished.with_suffix(suffix)
        link.unlink(missing_ok=True)
        link.hardlink_to(newest.with_suffix(suffix))  # beside the ledger, where an export looks for it
    report.say(f"the time was over before epoch {epochs}: judged as it stands in {newest.name}", unfinished=newest.name)
    return unfinished


def export(recipe: Mapping, source: list[str], folder: Path) -> None:
    """Export the encoder into a folder, unless it is there; one of another checkpoint goes with its evaluations."""
    encoder, card = folder / "encoder.safetensors", folder / "encoder.json"
    if source[0] == "--checkpoint":
        known = json.loads(card.read_text())["training"] if card.exists() else {}
        wanted = json.loads(Path(source[1]).with_suffix(".json").read_text())
        if any(known.get(key) != wanted[key] for key in ("fingerprint", "step")):
            shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not encoder.exists():
        script("export_encoder.py", "--recipe", canonical(recipe), *source, "--output", str(encoder))


def computing(store: PackedStore, options: argparse.Namespace) -> list[str]:
    found = ["--data", str(store.folder), "--device", options.device.type, "--cpus", str(torch.get_num_threads())]
    return found + ["--compile"] * options.compile


def judge(
    report: measuring.Report,
    folder: Path,
    protocol: str,
    recipe: Mapping,
    store: PackedStore,
    options: argparse.Namespace,
) -> None:
    """Judge an encoder, and tell its figures. One that cannot be judged is told, and the others go on."""
    output, began = folder / Path(protocol).stem, time.monotonic()
    own = ["--recipe", canonical(recipe), "--encoder", str(folder / "encoder.safetensors"), "--protocol", protocol]
    try:
        script("evaluate.py", *own, *computing(store, options), "--output", str(output))
    except UserError as error:
        report.say(f"{folder.name}, {output.name}: {error}")
        return
    metrics = rows(output / "metrics.csv")[0]
    report.say(
        f"{folder.name}, {output.name}: top-1 {float(metrics['top1']):.2f} %, in {time.monotonic() - began:.0f} s",
        **{f"{folder.name}_{output.name}": metrics},
    )


def train_arm(report: measuring.Report, arm: str, store: PackedStore, options: argparse.Namespace) -> None:
    """Train one arm and tell where it ends; one that fails is told, and the others go on."""
    name, base = ("digits", {"model": {"width": 4}}) if options.quick else ("cifar10", {})
    epochs = 1 if options.quick else ARM_EPOCHS
    recipe = {"epochs": epochs, "optimizer": {"warmup_epochs": 0}, **base}
    changes = dict(ARMS.get(arm, {}))
    recipe["optimizer"] |= changes.pop("optimizer", {})
    recipe = load_recipe(name, recipe | changes)
    folder = options.work / "arms" / arm
    if arm == "D":
        supervised(report, recipe, store, folder, options)
        return
    own = ["--recipe", canonical(recipe), "--run-folder", str(folder), "--until-epoch", str(epochs)]
    own += [*computing(store, options)] + ["--precision", "fp16"] * (arm == "C" and options.device.type == "cuda")
    try:
        script("pretrain.py", *own)
    except UserError as error:
        report.say(f"arm {arm}: {error}")
        return
    last = rows(folder / "knn.csv")[-1]
    report.say(
        f"arm {arm}: k-NN {float(last['knn_top1']):.2f} % after epoch {float(last['epoch']):g}", **{f"arm_{arm}": last}
    )


def supervised(
    report: measuring.Report, recipe: Mapping, store: PackedStore, folder: Path, options: argparse.Namespace
) -> None:
    """Train the same network with labels, from random weights: what the pictures allow."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        **{"labels": 100, "subset_seed": 0, "held_out": 0, "held_out_of": "share", "unit": "epochs", "batch": 128},
        **{"lengths": [1 if options.quick else SUPERVISED_EPOCHS], "peak_lrs": [0.1], "lr_floor": 0, "momentum": 0.9},
        **{"nesterov": True, "weight_decays": [5e-4], "decay_over_lr": False, "batch_norm_momentum": "encoder"},
        **{"batch_norm_statistics": "all_devices", "train_view": None, "test": None},
    }
    told = {"name": "supervised", "task": "fine_tune", "settings": settings, "dataset": "cifar10"}
    protocol = folder / "supervised.json"
    protocol.write_text(json.dumps(told))
    encoder = str(folder / "encoder.safetensors")
    script("export_encoder.py", "--recipe", canonical(recipe), "--random-init", "--output", encoder)
    judge(report, folder, str(protocol), recipe, store, options)


def bring_home(options: argparse.Namespace) -> None:
    """Copy what is small into the results, and the trained encoder in pieces."""
    with tarfile.open(options.results / "small.tar.gz", "w:gz") as tar:
        for path in sorted(options.work.rglob("*")):
            if path.suffix in (".csv", ".json") and "data" not in path.relative_to(options.work).parts:
                tar.add(path, str(path.relative_to(options.work)))
    encoder = options.work / "run/trained/encoder.safetensors"
    if encoder.exists():
        content = encoder.read_bytes()
        for number, start in enumerate(range(0, len(content), PIECE_BYTES)):
            (options.results / f"encoder.part{number:02d}").write_bytes(content[start : start + PIECE_BYTES])


if __name__ == "__main__":
    run_script(main)
