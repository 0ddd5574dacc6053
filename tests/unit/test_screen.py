"""What a call of Snakemake shows: of its records one line for each job; at the end the tables that were asked for."""

import logging
from enum import Enum, auto
from types import SimpleNamespace

import pytest

from selfsup.reports.screen import Screen, closing_words, take_screen

CLOCK = r"^\d\d:\d\d:\d\d \| "


class Event(Enum):
    """As Snakemake's `LogEvent`, by the names that are told apart."""

    WORKFLOW_STARTED = auto()
    RUN_INFO = auto()
    JOB_INFO = auto()
    JOB_STARTED = auto()
    JOB_FINISHED = auto()
    PROGRESS = auto()
    JOB_ERROR = auto()
    ERROR = auto()


class Otherwise(logging.Formatter):
    def format(self, record):
        return str(record.msg)


@pytest.fixture(params=[False, True], ids=["here", "on a cluster"])
def log(request, capsys):
    """A logger with this screen in the place of Snakemake's, and what it has shown, without the time."""
    logger = logging.Logger("as Snakemake's")
    former = logging.StreamHandler(SimpleNamespace(write=lambda text: print(text, end=""), flush=lambda: None))
    former.name = "DefaultStreamHandler"
    former.setFormatter(Otherwise())
    former.addFilter(lambda record: record.msg != "filtered")
    logger.addHandler(former)
    take_screen(logger, elsewhere=request.param, nothing_to_do=lambda: ["the table"])
    assert [type(one) for one in logger.handlers] == [Screen]

    def said(event: Event | None = None, message: str = "", level: int = logging.INFO, **more) -> list[str]:
        logger.log(level, message, extra={**more, "event": event} if event else more)
        return [line.partition(" | ")[2] or line for line in capsys.readouterr().out.splitlines()]

    said.elsewhere = request.param
    return said


def test_a_job_is_a_line_with_what_is_done_so_far(log):
    assert log(Event.RUN_INFO, stats={"pretrain": 2, "table": 1, "total": 3}) == ["3 jobs: 2 pretrain, 1 table"]
    job = {"jobid": 7, "rule_name": "pretrain", "rule_msg": "Pretrain digits"}
    assert log(Event.JOB_INFO, **job) == ["0/3 done | Pretrain digits"]
    finished = log(Event.JOB_FINISHED, "Finished jobid: 7", job_id=7)
    assert finished == (["finished: Pretrain digits"] if log.elsewhere else [])
    assert log(Event.PROGRESS, done=1, total=3) == []
    assert log(Event.JOB_INFO, jobid=8, rule_name="table", rule_msg=None) == ["1/3 done | table"]


def test_what_says_nothing_of_the_work_is_not_shown_and_all_else_is(log):
    for message in ("Building DAG of jobs...", "Using shell: /bin/bash", "Select jobs to execute...", "filtered"):
        assert log(message=message) == []
    assert log(Event.WORKFLOW_STARTED, "SNAKEMAKE") == log(Event.JOB_STARTED, "Execute 1 jobs...") == []
    assert log(message="Trying to restart job 7.") == ["Trying to restart job 7."]
    assert log(message="At least one job failed", level=logging.ERROR) == ["At least one job failed"]


def test_a_job_that_failed_is_one_line_with_its_logs(log):
    log(Event.JOB_INFO, jobid=7, rule_name="pretrain", rule_msg="Pretrain digits")
    failed = {"jobid": 7, "rule_name": "pretrain", "rule_msg": None, "log": ["logs/a.log"], "aux": {"slurm_jobid": 12}}
    (line,) = log(Event.JOB_ERROR, "Error in rule pretrain", logging.ERROR, **failed)
    assert line == "failed or stopped: Pretrain digits (logs/a.log, slurm_jobid 12)"
    assert log(Event.ERROR, "RuleException:\nCalledProcessError in file x:\nCommand y", logging.ERROR) == []
    assert log(Event.ERROR, "WorkflowError: a fault", logging.ERROR) == ["WorkflowError: a fault"]


def test_where_nothing_is_to_be_done_the_table_is_shown_all_the_same(log):
    assert log(message="Nothing to be done (all is there).") == ["Nothing to be done (all is there).", "the table"]


def test_the_end_is_the_table_that_was_asked_for_and_what_may_come_next(tmp_path):
    (tmp_path / "demo.md").write_text("| a |\n| - |\n| 1 |\n\n| details |\n")
    (tmp_path / "digits/seed1").mkdir(parents=True)
    (tmp_path / "digits/seed1/encoder.safetensors").write_text("")
    tables = {"demo": ["digits"], "other": ["digits"]}
    lines = "\n".join(closing_words({str(tmp_path / "demo.csv")}, tables, tmp_path)).splitlines()
    assert lines[1:4] == ["| a |", "| - |", "| 1 |"] and "| details |" not in lines
    assert "make report" in lines[-2] and f"--encoder {tmp_path}/digits/seed1/encoder.safetensors" in lines[-1]
    assert list(closing_words({str(tmp_path / "other.csv"), "elsewhere.txt"}, tables, tmp_path)) == []


def test_a_record_that_cannot_be_shown_ends_no_call(log, monkeypatch):
    """As of another version of Snakemake, whose records lack what is asked for."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    assert log(Event.JOB_INFO, jobid=7) == []
    assert log(message="and it goes on", event_of_none=1) == ["and it goes on"]
