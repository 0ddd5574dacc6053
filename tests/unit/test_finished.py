"""What the rules take for finished: by records alone, without Snakemake."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from frozen import settings_of
from runs import TINY_TUNING
from selfsup import finished
from selfsup.config import Config, Experiment, load_config
from selfsup.errors import UserError
from selfsup.evaluation import record
from selfsup.evaluation.fine_tune_settings import FineTuneSettings
from selfsup.evaluation.task_settings import MEAN_PER_CLASS
from selfsup.finished import Evaluated
from selfsup.layout import EncoderPaths, RunFolder, data_of, store_in
from selfsup.protocols import Evaluation
from selfsup.recipe import canonical, fingerprint, load_recipe
from selfsup.segments import record_run


@pytest.fixture
def config(repository, tmp_path) -> Config:
    return replace(load_config(repository / "config.yaml"), data_dir=str(tmp_path / "data"))


@pytest.fixture
def experiment(config) -> Experiment:
    """30 epochs in segments of 10."""
    return config.experiments["digits"]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    paths = RunFolder(tmp_path / "results" / "digits" / "seed0")
    paths.pretrain.folder.mkdir(parents=True)
    return paths


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else canonical(content))


def export(encoder: EncoderPaths, experiment: Experiment, **card: object) -> None:
    """Leave what an export leaves, as far as anybody asks for it."""
    made_by = fingerprint(experiment.recipe, experiment.revision)
    training = (
        {}
        if encoder.untrained
        else {"training": {"fingerprint": made_by, "dataset_fingerprint": "images", "epoch": 30}}
    )
    write(encoder.card, {"seed": 0, "encoder_sha256": "weights", "recipe": experiment.recipe, **training, **card})
    encoder.weights.touch()


def pack(config: Config, images: str = "images") -> None:
    """Leave the description of the packed dataset."""
    splits = {"train": {"images": 1437}, "test": {"images": 360}}
    write(store_in(data_of(config.data_dir, "digits")), {"fingerprint": images, "splits": splits})


def test_a_run_is_cut_where_no_finished_boundary_is_lost(experiment, run):
    assert finished.segment_ends(experiment, run) == [10, 20, 30]
    record_run(run.pretrain.folder, experiment.recipe, 1, boundary=8)
    assert finished.segment_ends(experiment, run) == [8, 18, 28, 30]
    assert [finished.boundary_before(experiment, run, epoch) for epoch in (8, 18, 30)] == [None, 8, 28]
    assert [finished.segment_finished(experiment, run, epoch) for epoch in (8, 18)] == [True, False]


def test_a_raised_revision_begins_anew(experiment, run):
    record_run(run.pretrain.folder, experiment.recipe, 1, boundary=8)
    raised = replace(experiment, revision=2)
    assert finished.segment_ends(raised, run) == [10, 20, 30]
    assert not finished.segment_finished(raised, run, 8)


def test_a_run_of_another_recipe_stops_the_plan(experiment, run):
    record_run(run.pretrain.folder, load_recipe("digits", {"optimizer": {"peak_lr": 1.0}}), 1, boundary=10)
    for ask in (finished.segment_ends, lambda *one: finished.segment_finished(*one, 10)):
        with pytest.raises(
            UserError, match=r"optimizer.peak_lr: wanted 2.0, found 1.0.*raise the experiment's `revision`"
        ):
            ask(experiment, run)


def test_a_segment_is_judged_once_it_is_finished(experiment, run):
    assert not finished.verdict_given(experiment, run, 10)
    run.pretrain.verdict(10).touch()
    assert not finished.verdict_given(experiment, run, 10)
    record_run(run.pretrain.folder, experiment.recipe, 1, boundary=10)
    assert finished.verdict_given(experiment, run, 10)


def test_an_encoder_is_finished_when_its_card_is_of_this_recipe_and_revision(config, experiment, run):
    def done(one: Experiment = experiment) -> bool:
        return finished.export_finished(config, one, run.encoder, 0)

    assert not done()
    export(run.encoder, experiment)
    assert done()  # the dataset is not packed any more
    pack(config)
    assert done()
    assert not done(replace(experiment, revision=2))
    assert not done(replace(experiment, recipe=load_recipe("digits", {"epochs": 31})))
    assert done(replace(experiment, recipe=load_recipe("digits", {"linear": {"epochs": 31}})))
    run.encoder.weights.unlink()
    assert not done()
    run.encoder.card.write_text("{cut")
    assert not done()


def test_an_encoder_of_other_images_or_of_another_seed_stops_the_plan(config, experiment, run):
    export(run.encoder, experiment)
    pack(config, "0123456789")
    with pytest.raises(
        UserError, match=r"trained on other images \(images\) than those of .*store.json \(01234567\).*digits.rev"
    ):
        finished.export_finished(config, experiment, run.encoder, 0)
    for encoder in (run.encoder, run.random_init):
        export(encoder, experiment, seed=1)
        with pytest.raises(UserError, match=r"encoder.json is of seed 1, wanted 0: a copied folder\? Delete it"):
            finished.encoder_finished(config, experiment, run, encoder, 0)


def test_an_import_is_finished_while_the_published_file_is_the_same(config, experiment, run, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"published")
    config = replace(config, published={"digits": {"publisher": "authors", "path": str(weights)}})
    imported = {"publisher": "authors", "sha256": hashlib.sha256(b"published").hexdigest()}

    def done() -> bool:
        return finished.encoder_finished(config, experiment, run, run.encoder, 0)

    assert not done()
    export(run.encoder, experiment, seed=None, imported=imported)
    assert done()
    export(run.encoder, experiment, seed=None, imported={**imported, "publisher": "official"})
    assert not done()
    export(run.encoder, experiment, seed=None, imported=imported)
    weights.write_bytes(b"exchanged")
    os.utime(weights, (1, 1))
    assert not done()
    weights.unlink()
    assert not done()


def evaluated(config: Config, experiment: Experiment, run: RunFolder, encoder: EncoderPaths, adopt=False) -> Evaluated:
    return finished.evaluation(config, experiment, run, encoder, experiment.evaluations["linear"], 0, adopt=adopt)


def identity(config: Config, experiment: Experiment, encoder: EncoderPaths) -> dict:
    data = data_of(config.data_dir, experiment.dataset)
    return record.identity(
        experiment.evaluations["linear"], experiment.recipe, 0, encoder.weights, data, encoder.evaluation().folder
    )


@pytest.mark.parametrize("which", ["encoder", "random_init"])
def test_an_evaluation_is_finished_when_its_record_is_of_what_is_there(config, experiment, run, which):
    encoder: EncoderPaths = getattr(run, which)
    pack(config)
    assert evaluated(config, experiment, run, encoder) == Evaluated(finished=False, outdated=False)
    export(encoder, experiment)
    assert evaluated(config, experiment, run, encoder) == Evaluated(finished=False, outdated=False)
    paths = encoder.evaluation()
    record.keep(paths.folder, identity(config, experiment, encoder), {"metrics.csv": "top1\n50\n"})
    assert evaluated(config, experiment, run, encoder) == Evaluated(finished=True, outdated=False)
    paths.metrics.unlink()  # is written anew from the record
    assert evaluated(config, experiment, run, encoder) == Evaluated(finished=True, outdated=False)


@pytest.mark.parametrize("content", ['{"identity": "x", "files": 3}', '{"identity": [1], "files": ["a"]}', "[]", "{"])
def test_a_damaged_record_has_the_evaluation_made_again(config, experiment, run, content):
    pack(config)
    export(run.encoder, experiment)
    paths = run.encoder.evaluation()
    write(paths.record, content)
    assert not evaluated(config, experiment, run, run.encoder).finished
    store_in(data_of(config.data_dir, experiment.dataset)).unlink()
    assert identity(config, experiment, run.encoder)["data"] is None
    whole = identity(config, experiment, run.encoder)
    untrained, twin = (one.random_init.evaluation() for one in (run, RunFolder(run.folder.with_name("seed1"))))
    for files in ({"metrics.csv": 3}, {"metrics.csv": ""}, {"metrics.csv": "top1\n"}, {"per_class.csv": "class\n"}):
        write(paths.record, {"identity": whole, "files": files})
        assert record.recorded(paths.folder, whole) is None
        write(untrained.record, {"identity": whole, "files": files})
        assert record.recorded_elsewhere(twin.folder, whole, "digits") is None


@pytest.mark.parametrize("task", ["fine_tune", "logistic"])
@pytest.mark.parametrize("told_by", ["identity", "files"])
def test_a_choice_by_the_mean_of_the_classes_outlives_its_dataset_and_metrics(run, experiment, tmp_path, task, told_by):
    """Snakemake deletes metrics.csv before the job that would write it again from the record."""
    settings = {"fine_tune": FineTuneSettings(**TINY_TUNING), "logistic": settings_of("logistic")}[task]
    evaluation, encoder, data = Evaluation(task, task, settings, "birds"), run.encoder, tmp_path / "data"
    export(encoder, experiment)
    write(store_in(data), {"fingerprint": "images", "measure": MEAN_PER_CLASS})
    folder = encoder.evaluation(task).folder

    def wanted() -> dict:
        return record.identity(evaluation, experiment.recipe, 0, encoder.weights, data, folder)

    before = wanted()
    assert before["chosen_by"] == MEAN_PER_CLASS
    known = before if told_by == "identity" else {key: before[key] for key in before if key != "chosen_by"}
    files = {"metrics.csv": "top1\n50\n" if told_by == "identity" else f"top1,measure\n50,{MEAN_PER_CLASS}\n"}
    record.keep(folder, known, files)
    store_in(data).unlink()
    (folder / "metrics.csv").unlink()
    assert wanted() == before
    assert record.recorded(folder, wanted()) == (files if told_by == "identity" else None)


def test_figures_of_something_else_are_outdated(config, experiment, run):
    pack(config)
    export(run.encoder, experiment)
    folder, wanted = run.encoder.evaluation().folder, identity(config, experiment, run.encoder)
    for key, other in {"seed": 7, "encoder": "other", "data": "other", "version": 99}.items():
        record.keep(folder, {**wanted, key: other}, {"metrics.csv": "top1\n50\n"})
        assert evaluated(config, experiment, run, run.encoder) == Evaluated(finished=False, outdated=True), key
    record.forget(folder)
    assert evaluated(config, experiment, run, run.encoder) == Evaluated(finished=False, outdated=True)
    run.encoder.weights.unlink()  # until there is an encoder nothing is out of date
    assert evaluated(config, experiment, run, run.encoder) == Evaluated(finished=False, outdated=False)


@pytest.mark.parametrize("packed", [True, False], ids=["with its data", "after a purge of its data"])
def test_figures_of_an_older_version_are_adopted(config, experiment, run, packed):
    """It kept no record; what its metrics tell of their origin is what is there."""
    if packed:
        pack(config)
    export(run.encoder, experiment, protocol="a protocol")
    paths = run.encoder.evaluation()
    line = "50,0,images,weights,a protocol"
    write(paths.metrics, f"top1,seed,dataset_fingerprint,encoder_sha256,protocol\n{line}\n")
    assert evaluated(config, experiment, run, run.encoder, adopt=False).finished and not paths.record.exists()
    assert evaluated(config, experiment, run, run.encoder, adopt=True).finished and paths.record.exists()
    assert paths.metrics.read_text().splitlines()[1].startswith(line)
    assert evaluated(config, experiment, run, run.encoder).finished
