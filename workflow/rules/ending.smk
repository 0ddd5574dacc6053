# What happens when all jobs are known, when all have ended, and when one has failed.

import atexit
import logging
import time

from selfsup.as_run import record_what_runs
from selfsup.reports.last_words import last_words
from selfsup.reports.screen import closing_words, take_screen
from snakemake.io import is_flagged
from snakemake.settings.types import ExecMode

STARTED = time.time() - 60  # clocks of nodes differ


def runs_of_this_call():
    """The runs that this call's jobs belong to, finished jobs too: pairs of experiment and seed. Audits change none."""
    everything = [job.wildcards_dict for job in workflow.dag.jobs if job.rule.name != "audit_segment"]
    return {(one["experiment"], int(one["seed"])) for one in everything if {"experiment", "seed"} <= one.keys()}


onstart:
    for folder in TO_BE_FORGOTTEN:
        record.forget(folder)
    # For status, plan, curves and report, which are called without this call's --configfile.
    record_what_runs(RESULTS, CONFIG, config, runs_of_this_call())


def refuse_if_missing():
    """Fail if something that was asked for was not made: Snakemake itself would end with status 0."""
    settings = workflow.dag_settings
    asked = {
        *workflow.dag.targetfiles,
        *(file for job in workflow.dag.targetjobs for file in [*job.output, *job.input]),
    }
    temporary = {str(file) for job in workflow.dag.jobs for file in job.output if is_flagged(file, "temp")}
    missing = sorted(str(file) for file in asked if not os.path.exists(file) and str(file) not in temporary)
    if missing and not (settings.until or settings.omit_from):
        give_up(f"{', '.join(missing)} is not made yet: start the same command again")


def at_the_end():
    """The tables that were asked for, and what may come next."""
    return closing_words(set(map(str, workflow.dag.targetfiles)), CONFIG.tables, RESULTS)


TALKS = not (IS_MODULE or workflow.output_settings.dryrun or workflow.output_settings.verbose)
if workflow.exec_mode == ExecMode.DEFAULT and TALKS:
    elsewhere = TYPED.executor not in (None, "local")
    take_screen(logging.getLogger("snakemake.logging"), elsewhere=elsewhere, nothing_to_do=at_the_end)


onsuccess:
    refuse_if_missing()
    print(*at_the_end(), sep="\n", flush=True)


onerror:
    print(
        "\nA job failed, or was stopped by you ('saved, to be continued'). Finished work is kept: the same command continues "
        "where it stopped.",
        file=sys.stderr,
    )
    said = list(last_words([Path(log) for job in workflow.scheduler.failed for log in job.log], since=STARTED))
    # After everything that Snakemake still prints, so that the jobs' own words are the last ones on the screen.
    atexit.register(print, *said, sep="\n", end="\n" if said else "", file=sys.stderr)
