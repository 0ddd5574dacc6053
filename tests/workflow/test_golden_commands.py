"""What jobs are started with: whole commands, as texts that a person can read and compare."""

import re

import pytest
from golden_commands import GOLDEN, KINDS, REPOSITORY, jobs_of, neutral, paragraphs

WAY = "where this is meant: .venv/bin/python tests/workflow/golden_commands.py writes the text anew"


@pytest.mark.parametrize("title", KINDS)
def test_every_job_is_started_with_the_golden_command(title, tmp_path, warm_python):
    _, _, whole = GOLDEN.read_text().partition(f"==== {title}\n\n")
    wanted = whole.partition("\n\n====")[0].strip().split("\n\n")
    assert paragraphs(KINDS[title], tmp_path / "here", warm_python) == wanted, WAY


def test_each_rule_has_a_golden_command():
    """A rule that is added needs one: in the targets of golden_commands.py."""
    rules = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    logs = re.findall(r'"(logs/(?!benchmarks/)[^"{]+)', rules)
    assert len(logs) > 20 and [log for log in logs if log not in GOLDEN.read_text()] == []


def test_the_text_tells_apart_what_differs():
    """The neutral text keeps the words of a command, and leaves out where it was made."""
    printed = (
        "\nJob stats:\nx 1\n\n[Mon]\nJob 3: Pack\nReason: none\nShell command: python a  --b 1\n\n[Mon]\n\nJob stats:\n"
    )
    (job,) = jobs_of(printed)
    assert neutral(job, REPOSITORY / "nowhere") == "Pack\n$ python a\n      --b 1"
