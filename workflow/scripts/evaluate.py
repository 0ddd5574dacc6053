"""Judge an encoder: by the recipe's linear evaluation, or by another protocol.

    python workflow/scripts/evaluate.py --recipe digits --data data/digits \\
        --encoder results/digits/seed0/encoder.safetensors --output results/digits/seed0/linear
    python workflow/scripts/evaluate.py ... --protocol knn --output results/digits/seed0/knn

Tasks that look at each picture once, such as knn and logistic, read its features from --features, a folder that
extract_features.py makes, or compute them themselves if it is not given.

One process per device, like pretrain.py. Reads the packed dataset, the encoder and its card, and its own rolling
checkpoints in <output>/partial. Writes into <output>:
    metrics.csv   one line: top-1 and top-5 in %, and what they depend on; the encoder's card gets the figures too
    history.csv   a line per epoch, or per step of the task
    further.csv   further measurements, if the task makes some
    ledger.csv    a line per attempt
    record.json   what the figures were made from; an evaluation that is already finished only writes its files again
The exit status is that of pretrain.py.
"""

import argparse
import contextlib
import hashlib
import time
from pathlib import Path

from selfsup.arguments import add_compute_arguments, add_recipe_arguments, begin_attempt, existing_path
from selfsup.errors import PermanentError, run_script
from selfsup.evaluation import record
from selfsup.job.attempt import Attempt
from selfsup.layout import LINEAR, JobFolder
from selfsup.logs import logger
from selfsup.protocols import Evaluation, asked_for
from selfsup.recipe import Recipe, canonical, evaluation_part, parse_recipe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument(
        "--protocol", default=LINEAR, help="a name in workflow/protocols, or a file (.json) with an evaluation"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of the packed dataset")
    parser.add_argument("--encoder", required=True, type=existing_path, help="encoder.safetensors, its card beside it")
    parser.add_argument(
        "--features", type=existing_path, help="folder of its features of the dataset, if they were made before"
    )
    parser.add_argument("--experiment", default="", help="name for a column of metrics.csv")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    add_compute_arguments(parser)
    arguments = parser.parse_args()
    recipe = parse_recipe(arguments.recipe)
    evaluation = asked_for(arguments.protocol, arguments.output.name, recipe, arguments.data.name)
    return Job(arguments, recipe, evaluation).run()


class Job:
    """An evaluation's job."""

    def __init__(self, arguments: argparse.Namespace, recipe: Recipe, evaluation: Evaluation):
        self.arguments, self.recipe, self.evaluation = arguments, recipe, evaluation
        where = arguments.encoder, arguments.data, arguments.output
        self.made_from = record.identity(evaluation, recipe, arguments.seed, *where)

    def run(self) -> int:
        """Return the exit status."""
        stage, goal = f"{self.evaluation.task} evaluation", self.evaluation.settings.goal
        told = {"stage": stage, "goal": goal, "fingerprint": self.fingerprint()}
        with begin_attempt(self.arguments, self.arguments.output, **told) as attempt:
            files = record.recorded(self.arguments.output, self.made_from)
            files = files or record.recorded_elsewhere(self.arguments.output, self.made_from, self.arguments.experiment)
            return self.restore(files, attempt) if files else self.evaluate(attempt)

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that name an evaluation, from its settings, the seed and the encoder's checksum.

        The encoder's whole card would not do, because evaluations add their figures to it.
        """
        part = evaluation_part(self.recipe, self.evaluation.task, self.evaluation.settings)
        encoder = self.made_from["encoder"] or ""  # loading it will report the problem
        text = canonical({"recipe": part, "seed": self.arguments.seed, "encoder": encoder})
        return hashlib.sha256(text.encode()).hexdigest()

    def restore(self, files: dict[str, str], attempt: Attempt) -> int:
        if attempt.place.is_main:
            record.keep(self.arguments.output, self.made_from, files)
            record.collect(self.arguments.encoder)
            logger.info("%s was finished before: its files are written again", self.arguments.output)
        attempt.set_ending("was finished before")
        return 0

    def evaluate(self, attempt: Attempt) -> int:
        # From here on torch is loaded; whatever can be refused without it has been refused above.
        from selfsup.data.local_copy import open_store
        from selfsup.data.statistics import resolved
        from selfsup.engine.compute import start_compute
        from selfsup.evaluation.encoder import load_encoder
        from selfsup.evaluation.task import Judged, build_task

        arguments, place = self.arguments, attempt.place
        waiting = {"heartbeat": attempt.heartbeat_before_work, "quiet": place.local_rank > 0}
        store = open_store(arguments.data, arguments.local_copy, **waiting)
        if not store.labelled:
            raise PermanentError(f"{arguments.data} has no labels: evaluate on a dataset with classes")
        encoder, card = load_encoder(arguments.encoder, self.recipe)
        compute = start_compute(arguments, place)
        attempt.set_columns(**compute.ledger_columns())
        recipe = Recipe.of(resolved(self.recipe, store, card))
        of = {"features": arguments.features, "encoder_sha256": card["encoder_sha256"]}
        judged = Judged(encoder.to(compute.device), store, recipe, arguments.seed, compute, **of)
        identity = self.state_identity(store.fingerprint) | self.evaluation.settings.made_from(store.measure)
        task = build_task(self.evaluation.task, judged, self.evaluation.settings, identity)
        self.work(task, attempt)
        if task.finished:
            self.finish(task, card, attempt)
        elif place.is_main:
            reason = attempt.stop.reason or "another rank's request"
            logger.info("stopped by %s after step %d: saved, to be continued", reason, task.step)
            attempt.set_ending(f"stopped by {reason}")
        compute.ranks.close()
        return 0 if task.finished else attempt.stop.exit_status

    def state_identity(self, data: str) -> dict:
        """Return what a saved state must be of to be continued. data: the store's fingerprint."""
        version = self.evaluation.settings.version
        identity = {"fingerprint": self.fingerprint(), "data": data}
        return identity | ({"version": version} if version > 1 else {})  # states of version 1 do not name it

    def work(self, task, attempt: Attempt) -> None:
        """Continue a task to its end, or until the job is asked to stop."""
        from selfsup.engine.saving import Saver

        ranks, partial = task.compute.ranks, JobFolder(self.arguments.output).partial
        source = task.resume(partial)
        if source and ranks.is_main:
            logger.info("continuing after %s: step %d of %d", source, task.step, task.total_steps)
        progress = Progress(self.evaluation.name, task)
        with contextlib.closing(Saver(ranks, attempt, self.arguments.checkpoint_minutes)) as saver:
            for row in task.run(attempt, saver, partial):
                if ranks.is_main:
                    progress.log(row)

    def finish(self, task, card: dict, attempt: Attempt) -> None:
        """Write the results of a finished task. Collective."""
        from selfsup.engine.checkpoint import prune
        from selfsup.evaluation.extraction import forget_features
        from selfsup.evaluation.metrics import result_files

        ranks, output = task.compute.ranks, self.arguments.output
        remarks, figures = list(task.remarks()), task.figures()
        if ranks.is_main:
            for remark in remarks:
                logger.info("%s", remark)
            lines, judged = (task.rows, task.further_rows), task.judged
            told = {"experiment": self.arguments.experiment, "evaluation": self.evaluation.name, **figures}
            files = result_files(self.evaluation, told, *lines, card, self.recipe, judged.store, judged.seed)
            record.keep(output, self.made_from, files)
            record.collect(self.arguments.encoder)
            attempt.step_saved(task.step)
            prune(JobFolder(output).partial)
            forget_features(JobFolder(output).partial)
            attempt.set_ending("reached its goal")


class Progress:
    """Logs a task's row now and then, with the time left."""

    def __init__(self, name: str, task):
        """The task: with what it continues from."""
        from selfsup.training.clock import Due

        self._name, self._task, self._done = name, task, task.step
        self._began, self._due = time.monotonic(), Due(task.step, task.total_steps)

    def log(self, row: dict) -> None:
        from selfsup.training.clock import duration

        task = self._task
        if task.finished or self._due.now(task.step):
            left = (time.monotonic() - self._began) / max(task.step - self._done, 1) * (task.total_steps - task.step)
            logger.info("%s %s  left %s", self._name, task.line(row), duration(left))


if __name__ == "__main__":
    run_script(main)
