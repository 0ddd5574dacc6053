# How an input is named so that finished work stays finished, and what Snakemake was asked for.

from functools import cache

from selfsup.job.slurm import holder_at_work
from snakemake.settings.types import RerunTrigger

# Finished work is recognised by its own record; an edited rule or script is no reason to do it again.
TRIGGERS = frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS})


def set_triggers():
    """Called where Snakemake asks for inputs: while it reads this file, it has no settings yet."""
    workflow.dag_settings.rerun_triggers = TRIGGERS


def nothing(wildcards):
    """The inputs of a job that has none."""
    set_triggers()
    return []


def settled(path, done):
    """Return an input, in a list, that never makes a finished job run again, neither by its age nor by its absence.

    For an unfinished job it must be a plain input: Snakemake 9.27 does not look behind an ancient file that exists (its
    issue 4166), and would end before everything is made.
    """
    set_triggers()
    if not done:
        return [str(path)]
    settings = workflow.dag_settings
    wanted = settings.forceall or settings.forcerun or settings.forcetargets
    return [ancient(str(path))] if wanted or os.path.exists(path) else []


@cache
def is_named(path, maker):
    """Whether the user named this output or its rule to be made again. Looked up once for each output."""
    settings = workflow.dag_settings
    forced = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}
    return not forced.isdisjoint({path, maker})


def made_together(outputs, inputs=()):
    """Make all outputs of a job again, as --force would, if one of them or of its inputs was deleted. If the file that
    is asked for exists, Snakemake checks neither the job's other outputs nor whether its inputs exist."""
    if any(map(os.path.exists, outputs)) and not all(map(os.path.exists, [*outputs, *inputs])):
        workflow.dag.forcefiles.update(map(str, outputs))


def writing():
    """Whether this is the Snakemake that the user started to run jobs: not a dry run, nor one inside a job."""
    return not workflow.remote_exec and not workflow.dryrun


@cache
def refuse_if_busy(folder):
    """Stop if another job, perhaps of a Snakemake that was killed, still works there. Checked once, before ours."""
    holder = holder_at_work(folder) if writing() else None
    if holder:
        give_up(f"{folder} is in use by {holder}: wait until it has ended, or end it; then start again")
