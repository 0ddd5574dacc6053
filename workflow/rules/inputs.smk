# The inputs of a run, from its dataset to its encoder. Finished work is recognised by its record.

from selfsup import finished
from selfsup.config import dataset_problem
from selfsup.segments import holds_older, restore_cards
from selfsup.settings.registries import SOURCES

CIFAR10_ARCHIVE = f"{CONFIG.data_dir}/downloads/cifar-10-python.tar.gz"
DOWNLOADED = f"{CONFIG.data_dir}/downloads/{{source}}/downloaded.txt"  # beside the files of every other source


def dataset_of(wildcards):
    return str(store_in(data_of(CONFIG.data_dir, experiment_of(wildcards).dataset)))


def image_source(wildcards):
    """The file that Snakemake must make first. A user's own path is a parameter: its file times mean nothing."""
    problem, block = dataset_problem(CONFIG, wildcards.dataset), dataset_block(wildcards)
    if problem:
        give_up(problem)
    source = block["source"]
    if not SOURCES[source].downloads or block.get("path") is not None:
        return nothing(wildcards)
    downloaded = CIFAR10_ARCHIVE if source == "cifar10" else DOWNLOADED.format(source=source)
    return settled(downloaded, store_in(data_of(CONFIG.data_dir, wildcards.dataset)).exists())


@ends_on_error
def boundary_before(wildcards):
    run = run_of(wildcards)
    refuse_if_busy(run.pretrain.folder)
    if writing():
        restore_cards(run.pretrain.folder)
    return finished.boundary_before(experiment_of(wildcards), run, int(wildcards.epoch))


@ends_on_error
def segment_finished(wildcards):
    return finished.segment_finished(experiment_of(wildcards), run_of(wildcards), int(wildcards.epoch))


def dataset_trained_on(wildcards):
    return settled(dataset_of(wildcards), segment_finished(wildcards))


@ends_on_error
def revision_begun(wildcards):
    """What a segment of a raised revision waits for: that the older run has been set aside."""
    revision, run = experiment_of(wildcards).revision, run_of(wildcards)
    if revision == 1:
        return []
    marker = str(run.begun(revision))
    # Once that is done, neither the marker's age nor its loss makes anything train again.
    return marker if holds_older(run.pretrain.folder, revision) else ancient(marker)


def previous_boundary(wildcards):
    earlier = boundary_before(wildcards)
    return settled(run_of(wildcards).pretrain.card(earlier), segment_finished(wildcards)) if earlier else []


def gate(wildcards):
    """The health verdict on the previous boundary."""
    earlier = boundary_before(wildcards)
    return settled(run_of(wildcards).pretrain.verdict(earlier), segment_finished(wildcards)) if earlier else []


@ends_on_error
def judged(wildcards):
    """The card of the boundary that a health verdict is about."""
    experiment, run, epoch = experiment_of(wildcards), run_of(wildcards), int(wildcards.epoch)
    return settled(run.pretrain.card(wildcards.epoch), finished.verdict_given(experiment, run, epoch))


def encoder_of(wildcards):
    """The trained encoder that a job is about: the final one, or that of an earlier boundary."""
    run, epoch = run_of(wildcards), getattr(wildcards, "epoch", None)
    return run.encoder if epoch is None else run.encoder_at(epoch)


@ends_on_error
def export_finished(wildcards):
    return finished.export_finished(CONFIG, experiment_of(wildcards), encoder_of(wildcards), int(wildcards.seed))


def boundary_exported(wildcards):
    """The card of the boundary that is exported, and the health verdict on it."""
    epoch, pretrain = epoch_exported(wildcards), run_of(wildcards).pretrain
    done = export_finished(wildcards)
    return [one for path in (pretrain.card(epoch), pretrain.verdict(epoch)) for one in settled(path, done)]


def epoch_exported(wildcards):
    return getattr(wildcards, "epoch", None) or experiment_of(wildcards).recipe["epochs"]


@ends_on_error
def embedded(wildcards):
    """Whether the encoder that is there has already embedded the pictures of a dataset."""
    return finished.embedded(CONFIG, run_of(wildcards).encoder, wildcards.dataset)


def dataset_embedded(wildcards):
    return settled(store_in(data_of(CONFIG.data_dir, wildcards.dataset)), embedded(wildcards))


def encoder_embedding(wildcards):
    return settled(run_of(wildcards).encoder.weights, embedded(wildcards))


def published_file(wildcards):
    """The weights that others have trained. Their age means nothing: the card has their checksum."""
    path = published_path(wildcards)
    if not os.path.isfile(path):
        give_up(
            f"experiments.{wildcards.experiment}.published.path is {path}, which is no file: docs/reproduce.md says where "
            "to get it"
        )
    return ancient(path)
