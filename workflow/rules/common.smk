# Validation of config.yaml, names of files, and what the jobs of an experiment ask of the machine.

import atexit
import hashlib
import os
import re
import shlex
import time
import traceback
from functools import cache, wraps

from snakemake.utils import update_config
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from selfsup import jobs
from selfsup.as_run import record_what_runs
from selfsup.atomic_files import keep, named_by_content
from selfsup.config import check_config, dataset_problem, from_command_line
from selfsup.evaluation import record
from selfsup.job.slurm import holder_at_work
from selfsup.reports.last_words import last_words
from selfsup.recipe import canonical, fingerprint, pretraining_part
from selfsup.segments import (
    Done,
    boundaries,
    boundary_name,
    card_name,
    holds_older,
    is_finished,
    restore_cards,
    work_done,
)
from selfsup.signals import STOP_SIGNALS
from snakemake.io import is_flagged
from snakemake.settings.types import RerunTrigger


def checked_config():
    """Return config.yaml, checked; end with one line on a mistake in it."""
    try:
        update_config(config, from_command_line(workflow.config_settings.config))
        return check_config(config)
    except UserError as error:
        give_up(str(error))


CONFIG = checked_config()
STARTED = time.time() - 60  # clocks of nodes differ
RUN = "results/{experiment}/seed{seed}"
PRETRAIN = f"{RUN}/pretrain"
# Finished work is known by its own record (below); an edited rule or script is no reason to do it again.
TRIGGERS = frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS})
CIFAR10_ARCHIVE = f"{CONFIG.data_dir}/downloads/cifar-10-python.tar.gz"


wildcard_constraints:
    experiment="|".join(map(re.escape, CONFIG.experiments)),
    dataset="|".join(map(re.escape, CONFIG.datasets)),
    table="|".join(map(re.escape, CONFIG.tables)),
    seed=r"\d+",
    epoch=r"\d+",
    revision=r"\d+",


def experiment_of(wildcards):
    """The experiment of a job; stops for a seed that config.yaml does not list, which no table, report or status would
    show."""
    experiment, seed = CONFIG.experiments[wildcards.experiment], getattr(wildcards, "seed", None)
    if seed is not None and seed not in map(str, experiment.seeds):
        known = int(seed) in experiment.seeds
        give_up(
            f"experiment {experiment.name} has no seed {seed}: experiments.{experiment.name}.seeds in config.yaml is "
            f"{experiment.seeds}; {f'ask for seed{int(seed)}' if known else 'to run it too, add it there'}"
        )
    return experiment


# Experiments whose encoder is imported; a pattern that fits nothing where there are none.
IMPORTED = "|".join(map(re.escape, CONFIG.published)) or "(?!)"


# What jobs are told in files: on a command line it would bury their messages, and reach the system's limit. Each is named
# by its content, so that an edit of config.yaml is another file. They may be deleted while nothing runs.
TOLD = Path("results/.told")


def told_file(name, content):
    path = named_by_content(TOLD, name, content)
    if not workflow.dryrun:
        keep(path, content)
    return str(path)


@cache
def recipe_of_experiment(name):
    return told_file("recipe", canonical(CONFIG.experiments[name].recipe))


def recipe_file(wildcards, input):
    return recipe_of_experiment(wildcards.experiment)


def published_file(wildcards):
    """The weights that others have trained. Their age means nothing: the card has their checksum."""
    path = CONFIG.published[wildcards.experiment]["path"]
    if not os.path.isfile(path):
        give_up(
            f"experiments.{wildcards.experiment}.published.path is {path}, which is no file: docs/reproduce.md says where to get it"
        )
    return ancient(path)


def dataset_folder(dataset):
    return f"{CONFIG.data_dir}/{dataset}"


def dataset_of(wildcards):
    return f"{dataset_folder(experiment_of(wildcards).dataset)}/store.json"


def near(path):
    """A path as a command names it: from the current folder, where it lies below that. Quoted: folders may have spaces."""
    here = f"{os.getcwd()}/"
    return shlex.quote(str(path).removeprefix(here))


PYTHON = near(sys.executable)


def script(name):
    return near(SCRIPTS / name)


# Writes a job's log; signals to the job's processes are for the trainer, which still has to tell what it does.
TEE = f"""bash -c 'trap "" {" ".join(number.name.removeprefix("SIG") for number in STOP_SIGNALS)}; exec tee "$0"'"""


def code_digest(*names):
    """A digest of scripts and packages under workflow/scripts, so that a rule runs again when its code has changed."""
    files = sorted(
        file
        for name in names
        for file in ([SCRIPTS / name] if name.endswith(".py") else (SCRIPTS / name).rglob("*.py"))
    )
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def block_of(wildcards, stage):
    """The experiment's `compute` block for "pretrain" or "evaluate"."""
    return experiment_of(wildcards).compute[stage]


def local_threads(stage):
    return lambda wildcards: jobs.threads(block_of(wildcards, stage))


def resources_of(stage):
    """Return {resource: a function of wildcards}: what a stage's jobs ask of Slurm."""

    def resource(name):
        return lambda wildcards: jobs.resources(block_of(wildcards, stage), CONFIG.cluster)[name]

    return {name: resource(name) for name in jobs.resources(block_of(Largest, stage), CONFIG.cluster)}


def in_slurm():
    """Whether the jobs of rules are Slurm jobs: seen from the login node, with -n too, or from within one."""
    if workflow.remote_exec:
        return "SLURM_JOB_ID" in os.environ
    return TYPED.executor not in (None, "local", "dryrun", "touch")


def sbatch_text(wildcards, input, resources, threads):
    """What a job's message says with -n: what sbatch would be asked for."""
    if not (workflow.dryrun and TYPED.executor == "slurm"):
        return ""
    plugin = ExecutorPluginRegistry().get_plugin(TYPED.executor)
    return f"\n    {jobs.sbatch(resources, threads, plugin.get_settings(TYPED))}"


def launcher(wildcards, stage):
    """What starts one process per device."""
    block = block_of(wildcards, stage)
    if block["nodes"] > 1 and not in_slurm() and not workflow.dryrun:
        give_up(
            f"experiment {wildcards.experiment} asks for {block['nodes']} nodes: use --profile profiles/slurm, or set "
            f"experiments.{wildcards.experiment}.compute.{stage}.nodes to 1 (the global batch stays the same)"
        )
    return jobs.launcher(block, PYTHON, in_slurm=in_slurm())


def compute_arguments(wildcards, stage):
    local_copy = CONFIG.datasets[experiment_of(wildcards).dataset].get("local_copy")
    return jobs.arguments(block_of(wildcards, stage), in_slurm=in_slurm(), local_copy=local_copy)


def largest_experiment():
    """The experiment with the most devices; without Slurm, of those that ask for a single node."""

    def devices(experiment):
        return experiment.compute["pretrain"]["nodes"] * experiment.compute["pretrain"]["devices_per_node"]

    here = [one for one in CONFIG.experiments.values() if in_slurm() or one.compute["pretrain"]["nodes"] == 1]
    return max(here or CONFIG.experiments.values(), key=devices)


class Largest:
    """Stands for the wildcards of a job of the largest experiment."""

    experiment = largest_experiment().name


def packed_datasets():
    folders = [dataset_folder(name) for name in CONFIG.datasets]
    return [folder for folder in folders if os.path.exists(f"{folder}/store.json")]


def image_source(wildcards):
    """The file that Snakemake must make first. A path of the user's is a parameter: its file times mean nothing here."""
    problem = dataset_problem(CONFIG, wildcards.dataset)
    if problem:
        give_up(problem)
    block = CONFIG.datasets[wildcards.dataset]
    if block["source"] != "cifar10" or block.get("path") is not None:
        return nothing(wildcards)
    return settled(wildcards, CIFAR10_ARCHIVE, os.path.exists(f"{dataset_folder(wildcards.dataset)}/store.json"))


def source_path(wildcards, input):
    path = CONFIG.datasets[wildcards.dataset].get("path") or (input[0] if input else None)
    return f"--path {shlex.quote(path)}" if path else ""


def packing_arguments(wildcards, input):
    """The keys of a dataset that say how its files are packed."""
    block = CONFIG.datasets[wildcards.dataset]
    words = [f"--resize {block['resize']}"] if block.get("resize") else []
    words += ["--skip-damaged"] if block.get("skip_damaged") else []
    words += [f"--expect {shlex.quote(canonical(block['expect']))}"] if "expect" in block else []
    return " ".join(words)


def packing_threads(wildcards):
    """As many cores as a node gives to the dataset's largest experiment: there are nodes that have them."""
    blocks = [one.compute["pretrain"] for one in CONFIG.experiments.values() if one.dataset == wildcards.dataset]
    return max((block["cpus_per_device"] * block["devices_per_node"] for block in blocks), default=1)


def ends_on_error(look):
    """Of what looks at files for an input: an error ends Snakemake, which would take any exception for a rule that does
    not fit, and an existing file for finished."""

    @wraps(look)
    def looking(*arguments):
        try:
            return look(*arguments)
        except UserError as error:
            give_up(str(error))
        except Exception as error:
            traceback.print_exc()
            give_up(f"{type(error).__name__}, shown above, is a fault of this workflow, not of its settings")

    return looking


@ends_on_error
def segment_ends(wildcards):
    """The boundaries of a run, in epochs. Stops when its folder holds a run of another recipe."""
    experiment, folder = experiment_of(wildcards), Path(PRETRAIN.format(**wildcards))
    refuse_if_busy(folder)
    if not workflow.remote_exec and not workflow.dryrun:
        restore_cards(folder)
    older = holds_older(folder, experiment.revision)  # the rule set_aside moves it away before the first segment
    done = Done([], 0) if older else work_done(folder, experiment.recipe, experiment.revision)
    return boundaries(experiment.recipe["epochs"], experiment.segment_epochs, done.boundaries, done.reached)


@cache
def refuse_if_busy(folder):
    """Stop where another job, of a Snakemake that was killed perhaps, is still at work; asked once, before ours begin."""
    holder = None if workflow.remote_exec or workflow.dryrun else holder_at_work(folder)
    if holder:
        give_up(f"{folder} is in use by {holder}: wait until it has ended, or end it; then start again")


@ends_on_error
def revision_begun(wildcards):
    """What a segment of a raised revision waits for: the older run set aside."""
    revision = experiment_of(wildcards).revision
    if revision == 1:
        return []
    marker = f"results/{wildcards.experiment}/seed{wildcards.seed}/revision_{revision}.json"
    # Once that is done, the marker's age, or its loss, never trains anew.
    return marker if holds_older(Path(PRETRAIN.format(**wildcards)), revision) else ancient(marker)


def settled(wildcards, path, finished):
    """Return an input, in a list, that never runs a finished job again: neither by its age nor by its absence.

    For a job that is not finished it must be a plain one: Snakemake 9.27 does not look behind an ancient file that
    exists (its issue 4166), and would end before all is made.
    """
    set_triggers()
    path = path.format(**wildcards)
    if not finished:
        return [path]
    settings = workflow.dag_settings
    wanted = settings.forceall or settings.forcerun or settings.forcetargets
    return [ancient(path)] if wanted or os.path.exists(path) else []


def set_triggers():
    """Called where Snakemake asks for inputs: while it reads this file, it has no settings yet."""
    workflow.dag_settings.rerun_triggers = TRIGGERS


def last_checkpoint(wildcards, input):
    path = f"{PRETRAIN}/{boundary_name(experiment_of(wildcards).recipe['epochs'])}".format(**wildcards)
    return f"--checkpoint {shlex.quote(path)}"


def nothing(wildcards):
    """The inputs of a job that has none."""
    set_triggers()
    return []


@cache
def is_named(path, *rules):
    """Whether who started Snakemake has named this output, or its rule, to be made again. Asked once: for the job."""
    settings = workflow.dag_settings
    forced = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}
    return not forced.isdisjoint({path, *rules})


@ends_on_error
def segment_finished(wildcards):
    experiment = experiment_of(wildcards)
    return is_finished(Path(PRETRAIN.format(**wildcards)), experiment.recipe, experiment.revision, int(wildcards.epoch))


def card_of(wildcards, part):
    """The card of the encoder of a run, or of the untrained one; stops where it is a copy of another seed's."""
    path = Path(RUN.format(**wildcards)) / part / "encoder.json"
    card = record.read_mapping(path)
    if card.get("seed", int(wildcards.seed)) not in (int(wildcards.seed), None):
        give_up(
            f"{path} is of seed {card['seed']}, wanted {wildcards.seed}: a copied folder? Delete it, to run this seed"
        )
    return card


@ends_on_error
def export_finished(wildcards):
    """Whether the encoder is there, and by its card made of this recipe and revision. Stops for one that was trained on
    other images than the experiment names now."""
    experiment, run = experiment_of(wildcards), Path(RUN.format(**wildcards))
    training = card_of(wildcards, "").get("training") or {}
    if training.get("fingerprint") != fingerprint(experiment.recipe, experiment.revision):
        return False
    store = Path(dataset_folder(experiment.dataset)) / "store.json"
    known, found = record.read_mapping(store).get("fingerprint"), training.get("dataset_fingerprint")
    if known and found and known != found:
        give_up(
            f"{run}/encoder.safetensors was trained on other images ({found[:8]}) than {store} tells of ({known[:8]}): "
            f"restore the dataset, or raise experiments.{experiment.name}.revision to train anew"
        )
    return (run / "encoder.safetensors").exists()


@cache
def checksum(path, size, changed):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_finished(wildcards):
    """Whether the encoder was imported from the file that config.yaml names."""
    published, imported = CONFIG.published[wildcards.experiment], card_of(wildcards, "").get("imported") or {}
    path = Path(published["path"])
    if imported.get("publisher") != published["publisher"] or not path.is_file():
        return False
    return imported.get("sha256") == checksum(path, path.stat().st_size, path.stat().st_mtime_ns)


def dataset_trained_on(wildcards):
    return settled(wildcards, dataset_of(wildcards), segment_finished(wildcards))


def earlier_boundary(wildcards):
    return max((end for end in segment_ends(wildcards) if end < int(wildcards.epoch)), default=None)


def previous_boundary(wildcards):
    earlier = earlier_boundary(wildcards)
    return settled(wildcards, f"{PRETRAIN}/{card_name(earlier)}", segment_finished(wildcards)) if earlier else []


def previous_epoch(wildcards, input):
    earlier = earlier_boundary(wildcards)
    return f"--previous {earlier}" if earlier else ""


def gate(wildcards):
    """The verdict on the boundary before."""
    earlier = earlier_boundary(wildcards)
    return settled(wildcards, f"{PRETRAIN}/health_{earlier:04d}.json", segment_finished(wildcards)) if earlier else []


def judged(wildcards):
    """The card that a verdict is on."""
    verdict = Path(PRETRAIN.format(**wildcards)) / f"health_{wildcards.epoch}.json"
    return settled(wildcards, f"{PRETRAIN}/epoch_{{epoch}}.json", verdict.exists() and segment_finished(wildcards))


def last_boundary(wildcards):
    """The last boundary's card, and the verdict on it."""
    epochs, finished = experiment_of(wildcards).recipe["epochs"], export_finished(wildcards)
    names = (card_name(epochs), f"health_{epochs:04d}.json")
    return [one for name in names for one in settled(wildcards, f"{PRETRAIN}/{name}", finished)]


TO_BE_FORGOTTEN = set()  # records of evaluations that were named, once this call begins to work


@ends_on_error
def evaluation_finished(wildcards, part):
    """Whether the evaluation's record says that it was made from what is there now. One made from something else is
    forced; one that was named is made again. part: "" for the trained encoder, or "random_init/"."""
    experiment, run = experiment_of(wildcards), Path(RUN.format(**wildcards)) / part
    encoder, folder = run / "encoder.safetensors", run / "linear"
    data, metrics = Path(dataset_folder(experiment.dataset)), str(folder / record.METRICS)
    wanted = record.identity(experiment.recipe, int(wildcards.seed), encoder, data, folder)
    older = record.older_results(folder, wanted, encoder, data)
    if older and not workflow.remote_exec and not workflow.dryrun:
        record.keep(folder, wanted, older)
    if part:
        known = bool(card_of(wildcards, part))
    elif wildcards.experiment in CONFIG.published:
        known = import_finished(wildcards)
    else:
        known = export_finished(wildcards)
    if not workflow.remote_exec and is_named(metrics, "linear_eval_random_init" if part else "linear_eval"):
        TO_BE_FORGOTTEN.add(folder)
        return False
    finished = bool(known and (older or record.recorded(folder, wanted)))
    if known and not finished and os.path.exists(metrics):
        workflow.dag.forcefiles.add(metrics)
    return finished


def encoder_evaluated(part):
    return lambda wildcards: settled(
        wildcards, f"{RUN}/{part}encoder.safetensors", evaluation_finished(wildcards, part)
    )


def dataset_evaluated(part):
    """Return a function of wildcards: the dataset of an evaluation, where no other job is at work on that."""

    def dataset(wildcards):
        refuse_if_busy(Path(f"{RUN.format(**wildcards)}/{part}linear"))
        return settled(wildcards, dataset_of(wildcards), evaluation_finished(wildcards, part))

    return dataset


def bands_arguments(wildcards):
    """What the gate judges by; a file that config.yaml names is used for whatever recipe."""
    experiment = experiment_of(wildcards)
    named = f"--bands {shlex.quote(experiment.bands)}" if experiment.bands else ""
    return f"{named} {'--continue-after-collapse' if experiment.continue_after_collapse else ''}".strip()


def metrics_of(table):
    return [
        f"results/{name}/seed{seed}/{part}linear/metrics.csv"
        for name in CONFIG.tables[table]
        for seed in CONFIG.experiments[name].seeds
        for part in ("", "random_init/")
    ]


def made_together(outputs, inputs=()):
    """Make all outputs of a job again, as by --force on them, where one of them or of its inputs was deleted: of a file
    that is asked for and exists, Snakemake looks neither beside nor behind it."""
    if any(map(os.path.exists, outputs)) and not all(map(os.path.exists, [*outputs, *inputs])):
        workflow.dag.forcefiles.update(outputs)


def metrics_of_table(wildcards):
    metrics = metrics_of(wildcards.table)
    made_together([f"results/{wildcards.table}.{kind}" for kind in ("csv", "md", "tex")], metrics)
    return metrics


def finished_tables():
    """The tables that a report can show: those whose evaluations are all there. Nothing is trained for a report."""
    finished = [table for table in CONFIG.tables if all(map(os.path.exists, metrics_of(table)))]
    if not finished:
        give_up("no table is finished yet, so there is nothing to report: snakemake --cores all results/demo.csv first")
    return finished


def parts_of_report(wildcards):
    tables = finished_tables()
    experiments = dict.fromkeys(name for table in tables for name in CONFIG.tables[table])
    return [
        *(f"results/report/{table}.html" for table in tables),
        *(f"results/figures/{name}.svg" for name in experiments),
        *(f"results/report/{name}_recipe.html" for name in experiments),
        *(f"results/figures/views_{name}.png" for name in experiments),
        "results/report/compute.html",
    ]


def existing_ledgers(wildcards):
    """Ledgers are kept up by jobs, and are no rule's output."""
    runs = [f"results/{one.name}/seed{seed}" for one in CONFIG.experiments.values() for seed in one.seeds]
    paths = [f"{run}/{stage}/ledger.csv" for run in runs for stage in ("pretrain", "linear", "random_init/linear")]
    return [path for path in paths if os.path.exists(path)]


def metrics_of_curves(wildcards):
    made_together([f"results/figures/{wildcards.experiment}.{kind}" for kind in ("svg", "png")])
    return metrics_of_experiment(wildcards)


def metrics_of_experiment(wildcards):
    return [f"results/{wildcards.experiment}/seed{seed}/linear/metrics.csv" for seed in experiment_of(wildcards).seeds]


def whole_config(wildcards, input):
    return told_file("config", canonical(config))


def config_of_experiment(wildcards, input):
    """The part of config.yaml that an experiment is made from."""
    parts = {key: config[key] for key in ("data_dir", "cluster", "datasets")}
    block = config["experiments"][wildcards.experiment]
    return told_file("config", canonical({**parts, "tables": {}, "experiments": {wildcards.experiment: block}}))


def rows_of_table(wildcards):
    """What a table says of its experiments beside their metrics; a change of it makes the table anew."""
    experiments = [CONFIG.experiments[name] for name in CONFIG.tables[wildcards.table]]
    return [f"{one.name} {one.recipe['epochs']} {one.recipe['global_batch']} {one.seeds}" for one in experiments]


def config_of_table(wildcards, input):
    """The part of config.yaml that a table is made from."""
    names = CONFIG.tables[wildcards.table]
    parts = {key: config[key] for key in ("data_dir", "cluster", "datasets")}
    experiments = {name: config["experiments"][name] for name in names}
    return told_file("config", canonical({**parts, "tables": {wildcards.table: names}, "experiments": experiments}))


def refuse_if_missing():
    """Fail where something asked for was not made: Snakemake itself would end with status 0."""
    settings = workflow.dag_settings
    asked = {
        *workflow.dag.targetfiles,
        *(file for job in workflow.dag.targetjobs for file in [*job.output, *job.input]),
    }
    missing = sorted(str(file) for file in asked if not os.path.exists(file) and not is_flagged(file, "temp"))
    if missing and not (settings.until or settings.omit_from):
        give_up(f"{', '.join(missing)} is not made yet: start the same command again")


onsuccess:
    refuse_if_missing()


def runs_of_this_call():
    """The runs that jobs of this call belong to, needed or done: pairs of experiment and seed."""
    everything = [job.wildcards_dict for job in workflow.dag.jobs]
    return {(one["experiment"], int(one["seed"])) for one in everything if {"experiment", "seed"} <= one.keys()}


onstart:
    for folder in TO_BE_FORGOTTEN:
        record.forget(folder)
    # For status, plan, curves and report, which are called without this call's --configfile.
    record_what_runs(Path("results"), CONFIG, config, runs_of_this_call())


onerror:
    print(
        "\nA job failed, or was stopped by you ('saved, to be continued'). Finished work is kept: the same command continues "
        "where it stopped.",
        file=sys.stderr,
    )
    said = list(last_words([Path(log) for job in workflow.scheduler.failed for log in job.log], since=STARTED))
    # After all that Snakemake still prints: what the jobs said is the last thing on the screen.
    atexit.register(print, *said, sep="\n", end="\n" if said else "", file=sys.stderr)
