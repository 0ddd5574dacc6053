"""Lines of jobs: with the time, over ranks with rank and node; errors where people and programs look for them."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from selfsup.job.place import discover_place
from selfsup.logs import DETAIL, logger, start_logging
from selfsup.reports.last_words import last_words

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"
CLOCK = r"\d\d:\d\d:\d\d"


@pytest.fixture
def logged(capsys):
    """Returns stdout and stderr of a note, a warning and an error, logged by a process at a place."""
    root = logging.getLogger()
    before, level = list(root.handlers), logger.level

    def log(*place) -> tuple[list[str], list[str]]:
        start_logging(*place)
        logger.info("saved %s", "step_9.pt")
        logger.warning("the disk is slow")
        logger.error("image 17 is damaged")
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    hook = sys.excepthook
    yield log
    sys.excepthook, root.handlers[:] = hook, before
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("place", "who", "of_error"),
    [
        ((), "", ""),
        ((3, 8), " rank 3", f"rank 3 of 8 at {CLOCK}: "),
        ((3, 8, "node7"), " rank 3 node7", f"rank 3 of 8 on node7 at {CLOCK}: "),
    ],
    ids=["alone", "one machine", "several nodes"],
)
def test_a_line_has_its_time_and_over_ranks_who_says_it(logged, place, who, of_error):
    note, warning = logged(*place)[0]
    assert re.fullmatch(rf"{CLOCK}{who} \| saved step_9\.pt", note)
    assert re.fullmatch(rf"{CLOCK}{who} \| warning: the disk is slow", warning)
    (error,) = logged(*place)[1]
    assert re.fullmatch(f"error: {of_error}image 17 is damaged", error)


def test_a_detail_of_several_lines_is_known_as_one_by_each_of_them(capsys):
    lines = python("start_logging(3, 8, 'node7'); logger.debug('the parameters:\\na | b'); logger.info('a . b')").stdout
    detail, more, other = lines.splitlines()
    assert (
        re.match(DETAIL, detail) and re.fullmatch(rf"{CLOCK} rank 3 node7 \. a \| b", more) and re.match(DETAIL, more)
    )
    assert not re.match(DETAIL, other)


def test_an_error_of_any_rank_is_found_in_the_log(logged, tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join([*logged(3, 8, "node7")[1], "srun: error: node7: task 3: Exited with exit code 1"]))
    assert "image 17 is damaged" in next(iter(last_words([log], since=0)))


def test_a_process_that_learns_its_rank_says_nothing_twice(logged):
    logged()
    assert [len(lines) for lines in logged(1, 2)] == [2, 1]


def python(script: str) -> subprocess.CompletedProcess:
    lines = "import os\nfrom selfsup.logs import logger, start_logging\n" + script
    environment = {"PYTHONPATH": str(SCRIPTS)}
    return subprocess.run([sys.executable, "-c", lines], env=environment, capture_output=True, text=True)


def test_a_line_that_cannot_be_written_ends_nothing_and_is_no_traceback():
    done = python("start_logging(); os.close(1); logger.info('lost'); os.write(2, b'went on'); os._exit(3)")
    assert (done.returncode, done.stderr) == (3, "went on")


def test_a_message_that_the_code_has_wrong_is_not_hidden():
    assert "TypeError" in python("start_logging(); logger.info('%d steps', 'no')").stderr


def test_a_crash_says_which_rank_it_was():
    done = python("start_logging(1, 2); 1 / 0")
    first, second, *_ = done.stderr.splitlines()
    assert re.fullmatch(rf"error: rank 1 of 2 at {CLOCK}: ZeroDivisionError: division by zero", first)
    assert second.startswith("Traceback") and done.returncode == 1


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_NODES": "1"}, False),
        ({"SLURM_STEP_NUM_NODES": "2"}, True),
    ],
)
def test_slurm_says_whether_ranks_are_on_several_nodes(environment, several):
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"}
    assert discover_place({**step, "SLURM_STEP_NODELIST": "n[1-2]", **environment}).several_nodes == several


@pytest.mark.parametrize(("on_this_node", "several"), [("2", False), ("1", True), (None, False)])
def test_torchrun_says_whether_ranks_are_on_several_nodes(on_this_node, several):
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    place |= {"LOCAL_WORLD_SIZE": on_this_node} if on_this_node else {}
    assert discover_place(place).several_nodes == several
