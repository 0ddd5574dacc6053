"""Snakemake's executor for Slurm, mended: it forgets all jobs of which it gets no news.

When all its questions of one round fail, because slurmctld is away for a minute, snakemake-executor-plugin-slurm 2.8.0
yields none of the jobs that it asked about. For Snakemake they run no more and have not ended: it waits for ever.
"""

import sys
from collections.abc import AsyncIterator
from types import ModuleType

PLUGIN = "snakemake_executor_plugin_slurm"
MENDED = "_selfsup_keeps_jobs"


def keep_jobs_without_news(plugin: ModuleType | None = None) -> None:
    """Have the executor ask again later about jobs of which a round of questions has told nothing.

    plugin: default the one that this process has loaded, if any. Called once more, it changes nothing.
    """
    executor = getattr(plugin or sys.modules.get(PLUGIN), "Executor", None)
    if executor is None or hasattr(executor, MENDED):
        return
    ask, succeeded, failed = executor.check_active_jobs, executor.report_job_success, executor.report_job_error

    async def check_active_jobs(self, active_jobs) -> AsyncIterator:
        setattr(self, MENDED, set())  # the jobs that have ended, by identity
        running = set()
        async for job in ask(self, active_jobs):
            running.add(id(job))
            yield job
        for job in active_jobs:
            if id(job) not in running | getattr(self, MENDED):
                yield job

    def report_job_success(self, job, *arguments, **named):
        getattr(self, MENDED).add(id(job))
        return succeeded(self, job, *arguments, **named)

    def report_job_error(self, job, *arguments, **named):
        getattr(self, MENDED).add(id(job))
        return failed(self, job, *arguments, **named)

    setattr(executor, MENDED, set())
    executor.check_active_jobs = check_active_jobs
    executor.report_job_success, executor.report_job_error = report_job_success, report_job_error
