"""Evaluate an encoder by the linear protocol: a linear classifier on frozen features.

    python workflow/scripts/linear_eval.py --recipe digits --data data/digits \\
        --encoder results/digits/seed0/encoder.safetensors --output results/digits/seed0/linear

One process per device, like pretrain.py. Reads the packed dataset, the encoder and its card, and its own rolling
checkpoints in <output>/partial. Writes into <output>:
    metrics.csv   one line: top-1 and top-5 of the last epoch, in %; the encoder's card gets the figures too
    history.csv   a line per epoch
    further.csv   with the recipe's linear.further: a line per classifier with peak_lr, initial_weights, top-1 and top-5
                  of the last epoch, which are empty if it diverged
    ledger.csv    a line per attempt
    record.json   what the figures were made from; an evaluation that was finished before only writes its files again
The exit status is that of pretrain.py.
"""

import argparse
import contextlib
import hashlib
import json
import time
from pathlib import Path

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, begin_attempt, existing_path
from selfsup.errors import PermanentError, run_script
from selfsup.evaluation import record
from selfsup.job.attempt import Attempt
from selfsup.job.place import Place
from selfsup.layout import EvaluationPaths, JobFolder
from selfsup.logs import logger
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
                logger.info("%s was finished before: its files are written again", arguments.output)
            attempt.set_ending("was finished before")
            return 0
        return evaluate(arguments, recipe, attempt.place, attempt)


def fingerprint(recipe: dict, seed: int, encoder: Path) -> str:
    """Return 64 hexadecimal digits that name an evaluation, from its recipe part, the seed and the encoder's checksum.

    The encoder's whole card would not do, because evaluations add their figures to it.
    """
    try:
        weights = json.loads(encoder.with_suffix(".json").read_text())["encoder_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        weights = ""  # loading the encoder will report the problem
    text = canonical({"recipe": evaluation_part(recipe), "seed": seed, "encoder": weights})
    return hashlib.sha256(text.encode()).hexdigest()


def evaluate(arguments: argparse.Namespace, recipe: dict, place: Place, attempt: Attempt) -> int:
    # From here on torch is loaded; whatever can be refused without it has been refused above.
    from selfsup.data.local_copy import open_store
    from selfsup.data.statistics import resolved
    from selfsup.engine.compute import start_compute
    from selfsup.evaluation.encoder import load_encoder
    from selfsup.evaluation.linear import LinearEvaluation

    store = open_store(
        arguments.data, arguments.local_copy, heartbeat=attempt.heartbeat_before_work, quiet=place.local_rank > 0
    )
    if not store.labelled:
        raise PermanentError(f"{arguments.data} has no labels: evaluate on a dataset with classes")
    encoder, card = load_encoder(arguments.encoder, recipe)
    compute = start_compute(arguments, place)
    attempt.set_columns(**compute.ledger_columns())
    evaluation = LinearEvaluation(
        encoder.to(compute.device),
        store,
        resolved(recipe, store, card),
        seed=arguments.seed,
        compute=compute,
        identity=state_identity(arguments, recipe, store.fingerprint),
    )
    train(evaluation, arguments, recipe, attempt)
    if evaluation.finished:
        finish(evaluation, arguments, recipe, store, card, attempt)
    elif place.is_main:
        reason = attempt.stop.reason or "another rank's request"
        logger.info("stopped by %s after step %d: saved, to be continued", reason, evaluation.step)
        attempt.set_ending(f"stopped by {reason}")
    compute.ranks.close()
    return 0 if evaluation.finished else attempt.stop.exit_status


def state_identity(arguments: argparse.Namespace, recipe: dict, data: str) -> dict:
    """Return what a saved state must be of to be continued. data: the store's fingerprint."""
    identity = {"fingerprint": fingerprint(recipe, arguments.seed, arguments.encoder), "data": data}
    version = record.VERSIONS["linear"]
    return identity | ({"version": version} if version > 1 else {})  # states of version 1 do not name it


def train(evaluation, arguments: argparse.Namespace, recipe: dict, attempt: Attempt) -> None:
    """Continue a LinearEvaluation to its end, or until the job is asked to stop."""
    from selfsup.engine.saving import Saver

    ranks, partial = evaluation.compute.ranks, JobFolder(arguments.output).partial
    source = evaluation.resume(partial)
    if source and ranks.is_main:
        logger.info("continuing after %s: step %d of %d", source, evaluation.step, evaluation.total_steps)
    progress = EpochLines(evaluation.step / evaluation.steps_per_epoch, recipe["linear"]["epochs"])
    with contextlib.closing(Saver(ranks, attempt, arguments.checkpoint_minutes)) as saver:
        for row in evaluation.train(attempt, saver, partial):
            if ranks.is_main:
                progress.log(row)


def finish(evaluation, arguments: argparse.Namespace, recipe: dict, store, card: dict, attempt: Attempt) -> None:
    """Write the results of a finished LinearEvaluation. Collective."""
    from selfsup.engine.checkpoint import prune

    is_main = evaluation.compute.ranks.is_main
    if recipe["linear"]["test_precision"] == "compute":
        changed = evaluation.changed_predictions()
        if is_main:
            logger.info("%d of %d predictions differ from those of a test forward in fp32", changed, len(store.test))
    if is_main:
        made_from = record.identity(recipe, arguments.seed, arguments.encoder, arguments.data, arguments.output)
        files = results(evaluation.rows, evaluation.further_rows, card, recipe, store, arguments.seed)
        record.keep(arguments.output, made_from, files)
        record.collect(arguments.encoder)
        attempt.step_saved(evaluation.step)
        prune(JobFolder(arguments.output).partial)
        attempt.set_ending("reached its goal")


class EpochLines:
    """Logs the row of an epoch now and then, with the time left."""

    def __init__(self, done: float, epochs: int):
        """done: epochs before this process began."""
        self._done, self._epochs = done, epochs
        self._began = self._last = time.monotonic()

    def log(self, row: dict) -> None:
        from selfsup.training.clock import LINES_AT_FIRST_S, duration

        now, epoch = time.monotonic(), row["epoch"]
        if epoch < self._epochs and now - self._last < LINES_AT_FIRST_S:
            return
        self._last, left = now, (now - self._began) / (epoch - self._done) * (self._epochs - epoch)
        logger.info(
            f"linear epoch {epoch}/{self._epochs}  loss {row['train_loss']:.4g}  lr {row['lr']:.4g}  "
            f"top-1 {row['top1']:.2f} %  {row['images_per_s']:,.0f} images/s  left {duration(left)}"
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
    paths = EvaluationPaths(Path())
    files = {paths.metrics: [metrics], paths.history: rows, **({paths.further: further_rows} if further_rows else {})}
    return {path.name: pd.DataFrame(lines).to_csv(index=False) for path, lines in files.items()}


if __name__ == "__main__":
    run_script(main)
