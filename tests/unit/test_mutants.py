"""The list of mutants fits the code: `make mutants`, which takes half an hour, would only tell so at its end."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from mutation.run import REPOSITORY, WANTED, Mutant, mutants

MUTANTS = mutants()
FEWEST = 150


@pytest.mark.parametrize("file", sorted({one.file for one in MUTANTS}))
def test_each_mutant_fits_the_code_and_changes_it(file):
    text = (REPOSITORY / file).read_text()
    for mutant in (one for one in MUTANTS if one.file == file):
        assert mutant.problem(REPOSITORY) is None, f"adapt tests/mutation/mutants.yaml: {mutant}"
        if file.endswith(".py"):
            now = text.replace(mutant.was, mutant.now)
            assert ast.dump(ast.parse(now)) != ast.dump(ast.parse(text)), f"changes a comment alone: {mutant}"


def test_the_tests_that_have_to_find_them_exist():
    named = {test for mutant in MUTANTS for test in mutant.tests}
    for test in named:
        file, _, name = test.partition("::")
        text = (REPOSITORY / file).read_text()
        assert not name or re.search(rf"^def {name.partition('[')[0]}\(", text, re.MULTILINE), f"{test} does not exist"


def test_there_are_enough_of_them_each_once_and_few_may_survive():
    assert len(MUTANTS) >= FEWEST
    assert [one for one, count in Counter(MUTANTS).items() if count > 1] == []
    assert sum(one.survives is not None for one in MUTANTS) <= (1 - WANTED) * len(MUTANTS)


def test_a_mutant_whose_text_is_gone_or_stands_twice_is_told(tmp_path):
    (tmp_path / "some.py").write_text("a = 1\nb = 1\n")
    (tmp_path / "test_some.py").write_text("")

    def problem(was: str, file: str = "some.py") -> str | None:
        return Mutant(file, was, "2", ("test_some.py::test_it",)).problem(tmp_path)

    assert problem("a = 1") is None
    assert "stands 0 times in some.py, wanted once: 'c = 1'" in problem("c = 1")
    assert "stands 2 times" in problem(" = 1")
    assert problem("a = 1", "gone.py") == "there is no file gone.py"


ASKS = """
import sys
from pathlib import Path
from mutation import run
root = Path(sys.argv[1])
HANGS = "[1 for _ in iter(int, 1)]"
for was, now in [("a + b", "a - b"), ("# sum", "# the sum"), ("a + b", HANGS), ("return", "return (")]:
    run.PATIENCE_S = 3 if now == HANGS else 120
    print(run.verdict_on(run.Mutant("some.py", was, now, ("test_some.py::test_it",)), root))
"""


def test_a_mutant_is_caught_by_a_test_that_fails_or_hangs_and_the_file_is_then_what_it_was(tmp_path):
    code = "def add(a, b):\n    return a + b  # sum\n"
    (tmp_path / "some.py").write_text(code)
    (tmp_path / "test_some.py").write_text("from some import add\n\ndef test_it():\n    assert add(2, 1) == 3\n")
    command = [sys.executable, "-c", ASKS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout.splitlines() == ["caught", "survived", "caught", "does not run"], asked.stderr
    assert (tmp_path / "some.py").read_text() == code
