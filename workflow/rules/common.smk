# What the rules share: the checked config.yaml, the experiment of a job, and the resources that a job asks for.

import os
import re

from snakemake.utils import update_config

from selfsup import commands, jobs, parts
from selfsup.config import check_config, from_command_line
from selfsup.grids import as_a_person_wrote, without_grids
from selfsup.job.executor import keep_jobs_without_news
from selfsup.layout import CONFIG_AS_RUN, LINEAR, RESULTS, AuditPaths, RunPaths, data_of, probe_of, store_in
from selfsup.recipe import canonical, pretraining_part
from selfsup.targets import evaluation_asked_for, evaluation_with_features, experiment_asked_for


@ends_on_error
def checked_config():
    if not IS_MODULE:
        update_config(config, from_command_line(workflow.config_settings.config))
    as_run = CONFIG_AS_RUN.resolve() in (Path(path).resolve() for path in workflow.configfiles)
    config.update(without_grids(config) if as_run else as_a_person_wrote(config))
    return check_config(config)


keep_jobs_without_news()
CONFIG = checked_config()
RUN = RunPaths(RESULTS, "{experiment}", "{seed}")  # the files of any run
AUDIT = AuditPaths.of("{experiment}", "seed{seed}", "{epoch}")  # and of an audit of one of its segments
# Experiments whose encoder is imported. If there are none, the pattern matches nothing.
IMPORTED = "|".join(map(re.escape, CONFIG.published)) or "(?!)"


wildcard_constraints:
    experiment="|".join(map(re.escape, CONFIG.experiments)),
    dataset="|".join(map(re.escape, CONFIG.datasets)),
    table="|".join(map(re.escape, CONFIG.tables)),
    evaluation="|".join(map(re.escape, CONFIG.evaluations)) or "(?!)",
    features=f"({'|'.join(map(re.escape, CONFIG.datasets))})-[0-9a-f]{{8}}",
    seed=r"\d+",
    epoch=r"\d+",
    revision=r"\d+",


@ends_on_error
def experiment_of(wildcards):
    """The experiment of a job. For a job that belongs to none, it is the largest one that can run here."""
    if not hasattr(wildcards, "experiment"):
        return commands.largest(CONFIG, in_slurm=in_slurm())
    return experiment_asked_for(CONFIG, wildcards.experiment, getattr(wildcards, "seed", None))


def run_of(wildcards):
    return RunPaths(RESULTS, wildcards.experiment, wildcards.seed)


def in_slurm():
    """Whether rules run as Slurm jobs. This is known on the login node, with -n too, and inside a Slurm job."""
    if workflow.remote_exec:
        return "SLURM_JOB_ID" in os.environ
    return TYPED.executor not in (None, "local", "dryrun", "touch")


# `stage` is "pretrain" or "evaluate", the block of the experiment's `compute` that a job is run with.
def threads_of(stage):
    return lambda wildcards: jobs.threads(experiment_of(wildcards).compute[stage])


def resources_of(stage):
    """Return {resource: a function of wildcards}: what a stage's jobs ask of Slurm."""

    def resource(name):
        return lambda wildcards: jobs.resources(experiment_of(wildcards).compute[stage], CONFIG.cluster)[name]

    return {name: resource(name) for name in jobs.resources(experiment_of(None).compute[stage], CONFIG.cluster)}
