"""What Snakemake's executor for Slurm knows of its jobs when Slurm does not answer."""

import asyncio
import contextlib
from types import ModuleType, SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from selfsup.job.executor import keep_jobs_without_news

JOBS = [SimpleNamespace(external_jobid=str(number), aux={}) for number in (1, 2, 3)]


class Told:
    """What the executor's check needs of an executor: settings, loggers, and where it reports."""

    def __init__(self):
        self.ended = []

    def report_job_success(self, job):
        self.ended.append(job)

    def report_job_error(self, job, **_):
        self.ended.append(job)


@pytest.fixture
def executor(monkeypatch):
    """An executor that asks Slurm twice a round; its class is the plugin's but for what it needs of Snakemake."""
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: None)
    made = type("Executor", (Told,), {"check_active_jobs": plugin.Executor.check_active_jobs})
    one = made()
    silent = SimpleNamespace(**dict.fromkeys(("info", "debug", "warning"), lambda *_: None))
    settings = SimpleNamespace(status_attempts=2, status_command="squeue", init_seconds_before_status_checks=40)
    one.__dict__.update(logger=silent, workflow=SimpleNamespace(executor_settings=settings), run_uuid="run")
    one.__dict__.update(status_rate_limiter=contextlib.nullcontext(), next_seconds_between_status_checks=40)
    one.__dict__.update(_status_query_failures=0, _status_query_calls=0, _status_query_total_seconds=0.0)
    one.__dict__.update(_status_query_min_seconds=None, _status_query_max_seconds=0.0, _status_query_cycle_rows=[])
    one.get_status_command = lambda: "squeue"
    return one


def still_running(executor) -> list[str]:
    async def check() -> list[str]:
        return [job.external_jobid async for job in executor.check_active_jobs(list(JOBS))]

    return asyncio.run(check())


def mend(executor) -> None:
    module = ModuleType("plugin")
    module.Executor = type(executor)
    for _ in range(2):  # Snakemake reads the workflow again
        keep_jobs_without_news(module)


def test_jobs_that_slurm_does_not_answer_about_are_asked_about_again(executor, monkeypatch):
    async def no_answer(*_):
        return None, None

    monkeypatch.setattr(plugin, "query_job_status", no_answer)
    assert still_running(executor) == []  # if this fails, the plugin has been mended: job/executor.py can go
    mend(executor)
    assert still_running(executor) == ["1", "2", "3"] and executor.ended == []
    assert still_running(executor) == ["1", "2", "3"]


def test_jobs_that_have_ended_are_told_once(executor, monkeypatch):
    async def answer(*_):
        return {"1": "RUNNING", "2": "FAILED", "3": "PENDING"}, 0.1

    monkeypatch.setattr(plugin, "query_job_status", answer)
    monkeypatch.setattr(plugin, "is_query_tool_available", lambda name: False)
    mend(executor)
    assert still_running(executor) == ["1", "3"]
    assert [job.external_jobid for job in executor.ended] == ["2"]


def test_a_process_without_the_plugin_is_left_alone():
    keep_jobs_without_news(ModuleType("empty"))
