"""Compute a frozen encoder's features of a dataset's images, once for all evaluations that look at the same ones.

    python workflow/scripts/extract_features.py --recipe digits --protocol knn --data data/digits \\
        --encoder results/digits/seed0/encoder.safetensors --output results/digits/seed0/features/digits \\
        --job results/digits/seed0/features/digits_job
    python workflow/scripts/evaluate.py ... --protocol knn --features results/digits/seed0/features/digits

One process per device, like evaluate.py. Features are kept in <job>/partial until they are complete, and a job that was
stopped continues there; then that folder becomes <output>. <job> also has ledger.csv. The exit status is pretrain.py's.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, begin_attempt, existing_path
from selfsup.errors import UserError, run_script
from selfsup.job.attempt import Attempt
from selfsup.layout import JobFolder
from selfsup.logs import logger
from selfsup.protocols import Evaluation, asked_for
from selfsup.recipe import Recipe, canonical, parse_recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument(
        "--protocol",
        required=True,
        help="the protocol that needs the features: a name in workflow/protocols, or a file (.json) with one",
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of the packed dataset")
    parser.add_argument("--encoder", required=True, type=existing_path, help="encoder.safetensors, its card beside it")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; it appears when it is complete")
    parser.add_argument("--job", required=True, type=Path, help="folder for unfinished work and the ledger")
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    evaluation = asked_for(arguments.protocol, arguments.output.name, recipe, arguments.data.name)
    made = evaluation.settings.features(recipe)
    if made is None:
        raise UserError(
            f"--protocol {arguments.protocol}: its task, {evaluation.task}, looks at pictures, not features"
        )
    fingerprint = hashlib.sha256(canonical(made).encode()).hexdigest()
    told = {"stage": "features", "goal": "the last image", "fingerprint": fingerprint}
    with begin_attempt(arguments, arguments.job, **told) as attempt:
        return extract(arguments, recipe, evaluation, attempt)


def extract(arguments: argparse.Namespace, recipe: Recipe, evaluation: Evaluation, attempt: Attempt) -> int:
    """Return the exit status."""
    # From here on torch is loaded; whatever can be refused without it has been refused above.
    from selfsup.data.local_copy import open_store
    from selfsup.data.statistics import resolved
    from selfsup.engine.compute import start_compute
    from selfsup.evaluation import extraction
    from selfsup.evaluation.encoder import load_encoder
    from selfsup.evaluation.task import Judged

    place, partial = attempt.place, JobFolder(arguments.job).partial
    waiting = {"heartbeat": attempt.heartbeat_before_work, "quiet": place.local_rank > 0}
    store = open_store(arguments.data, arguments.local_copy, **waiting)
    encoder, card = load_encoder(arguments.encoder, recipe)
    compute = start_compute(arguments, place)
    attempt.set_columns(**compute.ledger_columns())
    of = {"encoder_sha256": card["encoder_sha256"]}
    recipe = Recipe.of(resolved(recipe, store, card))
    judged = Judged(encoder.to(compute.device), store, recipe, arguments.seed, compute, **of)
    total, begun = extraction.number_of_chunks(store), False
    for chunks in extraction.extract(judged, evaluation.settings, partial, attempt):
        if not begun:
            attempt.begin_steps(chunks, extraction.CHUNK)
            begun = True
        attempt.step_done(chunks)
        attempt.step_saved(chunks)
        if place.is_main:
            logger.debug("features: %d of %d files, of up to %d images each", chunks, total, extraction.CHUNK)
    whole = compute.ranks.from_main(extraction.is_whole(partial))
    if place.is_main:
        end(whole, partial, arguments.output, attempt)
    compute.ranks.close()
    return 0 if whole else attempt.stop.exit_status


def end(whole: bool, partial: Path, output: Path, attempt: Attempt) -> None:
    """Move what is whole to its place, or say why it is not."""
    if whole:
        shutil.rmtree(output, ignore_errors=True)
        partial.replace(output)
        attempt.set_ending("reached its goal")
    else:
        reason = attempt.stop.reason or "another rank's request"
        logger.info("stopped by %s: saved, to be continued", reason)
        attempt.set_ending(f"stopped by {reason}")


if __name__ == "__main__":
    run_script(main)
