"""What is finished, by the records that jobs leave, whatever the files' times; and where a run is cut into segments.

Functions of an experiment and the files of its run, for the rules; they know nothing of Snakemake and import no torch.
What stands in the way of an answer, such as a run of another recipe, is a UserError.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from selfsup.cards import card_if_any
from selfsup.config import Config, Experiment
from selfsup.errors import UserError
from selfsup.evaluation import record
from selfsup.layout import EncoderPaths, RunFolder, data_of, store_in
from selfsup.protocols import Evaluation
from selfsup.recipe import fingerprint
from selfsup.segments import Done, boundaries, holds_older, is_finished, work_done


def segment_ends(experiment: Experiment, run: RunFolder) -> list[int]:
    """Return the boundaries of a run, in epochs. Raises UserError where its folder holds a run of another recipe."""
    folder = run.pretrain.folder
    older = holds_older(folder, experiment.revision)  # is moved away before the first segment
    done = Done([], 0) if older else work_done(folder, experiment.recipe, experiment.revision)
    return boundaries(experiment.recipe["epochs"], experiment.segment_epochs, done.boundaries, done.reached)


def boundary_before(experiment: Experiment, run: RunFolder, epoch: int) -> int | None:
    """Return the boundary that the segment to `epoch` begins at; None for the first."""
    return max((end for end in segment_ends(experiment, run) if end < epoch), default=None)


def segment_finished(experiment: Experiment, run: RunFolder, epoch: int) -> bool:
    """Return whether the segment to `epoch` is finished, by the run's record."""
    return is_finished(run.pretrain.folder, experiment.recipe, experiment.revision, epoch)


def verdict_given(experiment: Experiment, run: RunFolder, epoch: int) -> bool:
    """Return whether a finished segment has been judged."""
    return run.pretrain.verdict(epoch).exists() and segment_finished(experiment, run, epoch)


def boundaries_before_the_last(experiment: Experiment, run: RunFolder) -> list[int]:
    """Return the epochs after which encoders may be judged, beside the end of the pretraining."""
    return segment_ends(experiment, run)[:-1]


def export_finished(config: Config, experiment: Experiment, encoder: EncoderPaths, seed: int) -> bool:
    """Return whether a trained encoder is there, and by its card made of this recipe, revision and boundary.

    Raises UserError for one that was trained on other images than the experiment names now, or with another seed.
    """
    training = _part(_card(encoder, seed), "training")
    if training.get("fingerprint") != fingerprint(experiment.recipe, experiment.revision):
        return False
    if encoder.boundary is not None and training.get("epoch") != int(encoder.boundary):
        return False
    store = store_in(data_of(config.data_dir, experiment.dataset))
    known, found = card_if_any(store).get("fingerprint"), training.get("dataset_fingerprint")
    if found is not None and not isinstance(found, str):
        return False
    if isinstance(known, str) and found is not None and known != found:
        raise UserError(
            f"{encoder.weights} was trained on other images ({found[:8]}) than those of {store} ({known[:8]}): "
            f"restore the dataset, or raise experiments.{experiment.name}.revision to train anew"
        )
    return encoder.weights.exists()


def import_finished(config: Config, experiment: Experiment, run: RunFolder, seed: int) -> bool:
    """Return whether the encoder was imported from the file that config.yaml names, as it is now."""
    published, imported = config.published[experiment.name], _part(_card(run.encoder, seed), "imported")
    path = Path(published["path"])
    if imported.get("publisher") != published["publisher"] or not path.is_file():
        return False
    if published.get("prefix") not in (None, imported.get("prefix")):
        return False
    return imported.get("sha256") == _checksum(path, path.stat().st_size, path.stat().st_mtime_ns)


def encoder_finished(config: Config, experiment: Experiment, run: RunFolder, encoder: EncoderPaths, seed: int) -> bool:
    """Return whether an encoder of the run is there, however it is come by."""
    if encoder.untrained:
        return bool(_card(encoder, seed))
    if experiment.name in config.published:
        return import_finished(config, experiment, run, seed)
    return export_finished(config, experiment, encoder, seed)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation's record says. finished: made from what is there now; outdated: there are figures, but made
    from something else than the encoder that is there now."""

    finished: bool
    outdated: bool


def evaluation(
    config: Config,
    experiment: Experiment,
    run: RunFolder,
    encoder: EncoderPaths,
    evaluation: Evaluation,
    seed: int,
    *,
    adopt: bool,
) -> Evaluated:
    """Return how an evaluation of an encoder stands.

    adopt: write a record for results of an older version of this software, which kept none.
    """
    paths, data = encoder.evaluation(evaluation.name), data_of(config.data_dir, evaluation.dataset)
    wanted = record.identity(evaluation, experiment.recipe, seed, encoder.weights, data, paths.folder)
    older = record.older_results(paths.folder, evaluation, wanted, encoder.weights, data)
    if older and adopt:
        record.keep(paths.folder, wanted, older)
    known = encoder_finished(config, experiment, run, encoder, seed)
    finished = bool(known and (older or record.recorded(paths.folder, wanted)))
    return Evaluated(finished, outdated=known and not finished and paths.metrics.exists())


def embedded(config: Config, encoder: EncoderPaths, dataset: str) -> bool:
    """Return whether a dataset's pictures have been through an encoder that is there."""
    record = card_if_any(encoder.embedded(dataset).record)
    store = card_if_any(store_in(data_of(config.data_dir, dataset))).get("fingerprint") or record.get("data")
    wanted = {"encoder": card_if_any(encoder.card).get("encoder_sha256"), "data": store}
    return record == wanted


def _card(encoder: EncoderPaths, seed: int) -> dict[str, Any]:
    """Return an encoder's card, empty where there is none. Raises UserError where it is a copy of another seed's."""
    card = card_if_any(encoder.card)
    if card.get("seed", seed) not in (seed, None):
        raise UserError(
            f"{encoder.card} is of seed {card['seed']}, wanted {seed}: a copied folder? Delete it, to run this seed"
        )
    return card


def _part(card: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of a card; nothing where it is no mapping, so that the file is made again."""
    part = card.get(key)
    return part if isinstance(part, dict) else {}


@cache
def _checksum(path: Path, size: int, changed: int) -> str:
    """Return a file's SHA-256, computed once for each size and time of change."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
