"""Evaluate an encoder by the linear protocol: a linear classifier on frozen features.

    python workflow/scripts/linear_eval.py --recipe digits --data data/digits \\
        --encoder results/digits/seed0/encoder.safetensors --output results/digits/seed0/linear

One process per device, as pretrain.py. Reads the packed dataset, the encoder and its card, and its own rolling
checkpoints in <output>/partial. Writes <output>/metrics.csv (one line: top-1 and top-5 of the last epoch, in %),
<output>/history.csv (a line per epoch), ledger.csv and record.json (what the figures were made from: an evaluation that
was finished before writes its files anew, in a second), and has the figures in the encoder's card; with the recipe's
linear.further also <output>/further.csv (a line per classifier: peak_lr, initial_weights, top-1 and top-5 of the last
epoch, empty where it diverged). Exit status as pretrain.py's.
"""

import argparse
import contextlib
import hashlib
import json
import time
from pathlib import Path

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, begin_attempt, existing_path
from selfsup.errors import run_script
from selfsup.evaluation import record
from selfsup.job.attempt import Attempt
from selfsup.job.place import Place
from selfsup.recipe import canonical, evaluation_part, parse_recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("--data", required=True, type=Path, help="folder of the packed dataset")
    parser.add_argument("--encoder", required=True, type=existing_path, help="encoder.safetensors, its card beside it")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    goal, name = f"epoch {recipe['linear']['epochs']}", fingerprint(recipe, arguments.seed, arguments.encoder)
    made_from = record.identity(recipe, arguments.seed, arguments.encoder, arguments.data, arguments.output)
    with begin_attempt(arguments, arguments.output, stage="linear evaluation", goal=goal, fingerprint=name) as attempt:
        if files := record.recorded(arguments.output, made_from):
            if attempt.place.is_main:
                record.restore(arguments.output, files)
                record.collect(arguments.encoder)
                print(f"{arguments.output} was finished before: its files are written anew", flush=True)
            attempt.ended("was finished before")
            return 0
        return evaluate(arguments, recipe, attempt.place, attempt)


def fingerprint(recipe: dict, seed: int, encoder: Path) -> str:
    """Return 64 hexadecimal digits that name an evaluation: its part of the recipe, the seed, the encoder's checksum.

    Not the encoder's whole card, to which an evaluation adds its figures.
    """
    try:
        weights = json.loads(encoder.with_suffix(".json").read_text())["encoder_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        weights = ""  # reading the encoder will say what is wrong
    text = canonical({"recipe": evaluation_part(recipe), "seed": seed, "encoder": weights})
    return hashlib.sha256(text.encode()).hexdigest()


def evaluate(arguments: argparse.Namespace, recipe: dict, place: Place, attempt: Attempt) -> int:
    # From here on torch is loaded; whatever could be refused without it has been.
    from selfsup.data.local_copy import open_store
    from selfsup.engine.checkpoint import prune
    from selfsup.engine.compute import start_compute
    from selfsup.engine.saving import Saver
    from selfsup.evaluation.encoder import load_encoder
    from selfsup.evaluation.linear import LinearEvaluation

    tell = print if place.local_rank == 0 else lambda *line, **options: None
    store = open_store(arguments.data, arguments.local_copy, alive=attempt.waiting, tell=tell)
    encoder, card = load_encoder(arguments.encoder, recipe)
    compute = start_compute(arguments, place)
    attempt.know(**compute.ledger_columns())
    identity = {"fingerprint": fingerprint(recipe, arguments.seed, arguments.encoder), "data": store.fingerprint}
    identity |= {"version": version} if (version := record.VERSIONS["linear"]) > 1 else {}  # of 1, as saved before
    evaluation = LinearEvaluation(
        encoder.to(compute.device), store, recipe, seed=arguments.seed, compute=compute, identity=identity
    )
    partial = arguments.output / "partial"
    source = evaluation.resume(partial)
    if source and place.is_main:
        print(f"continuing after {source}: step {evaluation.step} of {evaluation.total_steps}", flush=True)
    saver = Saver(compute.ranks, attempt, arguments.checkpoint_minutes)
    tell = Teller(evaluation.step / evaluation.steps_per_epoch, recipe["linear"]["epochs"])
    with contextlib.closing(saver):
        for row in evaluation.train(attempt, saver, partial):
            if place.is_main:
                tell(row)
    if evaluation.finished and recipe["linear"]["test_precision"] == "compute":
        changed = evaluation.changed_predictions()
        if place.is_main:
            print(f"{changed} of {len(store.test)} predictions differ from those of a test forward in fp32", flush=True)
    if place.is_main:
        if evaluation.finished:
            made_from = record.identity(recipe, arguments.seed, arguments.encoder, arguments.data, arguments.output)
            files = results(evaluation.rows, evaluation.further_rows, card, recipe, store, arguments.seed)
            record.keep(arguments.output, made_from, files)
            record.collect(arguments.encoder)
            attempt.saved(evaluation.step)
            prune(partial)
            attempt.ended("reached its goal")
        else:
            reason = attempt.stop.reason or "another rank's request"
            print(f"stopped by {reason} after step {evaluation.step}: saved, to be continued", flush=True)
            attempt.ended(f"stopped by {reason}")
    compute.ranks.close()
    return 0 if evaluation.finished else attempt.stop.exit_status


class Teller:
    """Prints a line for a row now and then, with the time left."""

    def __init__(self, done: float, epochs: int):
        self._done, self._epochs = done, epochs
        self._began = self._last = time.monotonic()

    def __call__(self, row: dict) -> None:
        from selfsup.training.clock import LINES_AT_FIRST_S, duration

        now, epoch = time.monotonic(), row["epoch"]
        if epoch < self._epochs and now - self._last < LINES_AT_FIRST_S:
            return
        self._last, left = now, (now - self._began) / (epoch - self._done) * (self._epochs - epoch)
        print(
            f"linear epoch {epoch}/{self._epochs}  loss {row['train_loss']:.4g}  lr {row['lr']:.4g}  "
            f"top-1 {row['top1']:.2f} %  {row['images_per_s']:,.0f} images/s  left {duration(left)}",
            flush=True,
        )


def results(rows: list[dict], further_rows: list[dict], card: dict, recipe: dict, store, seed: int) -> dict[str, str]:
    """Return the result files by name."""
    import pandas as pd

    from selfsup.evaluation.linear import protocol
    from selfsup.tables.figure_keys import figure_keys

    history = pd.DataFrame(rows)
    last, best = history.iloc[-1], history.loc[history["top1"].idxmax()]
    metrics = {
        "top1": last["top1"],
        "top5": last["top5"],
        "n_test": len(store.test),
        "best_top1": best["top1"],
        "best_epoch": int(best["epoch"]),
        "seed": seed,
        "network": card["network"],
        "protocol": ", ".join([protocol(recipe), *store.remarks()]),
        "dataset_fingerprint": store.fingerprint,
        "encoder_sha256": card["encoder_sha256"],
        "numerics_changes": card.get("training", {}).get("numerics_changes", 0),
        **figure_keys(card, recipe, len(store.train)),
    }
    files = {"metrics.csv": [metrics], "history.csv": rows, **({"further.csv": further_rows} if further_rows else {})}
    return {name: pd.DataFrame(lines).to_csv(index=False) for name, lines in files.items()}


if __name__ == "__main__":
    run_script(main)
